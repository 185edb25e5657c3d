"""
Handshakes, certificates and ends of TLS: real sockets, real OpenSSL, clients of other makes.
"""

import os
import socket
import ssl
import struct
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import WrappingFactory
from twisted.trial import unittest

sys.path.insert(0, str(Path(__file__).parent / "tls_matrix"))

import support
from support import HOST, Notes, client_context, credentials, in_thread, leaf, pem, trust

from txasynchat import errors
from txasynchat.endpoints import SecureClientEndpoint, SecureServerEndpoint
from txasynchat.tls import ClientCertificate, ClientOptions, Credentials, ServerOptions
from txasynchat.tlslayer import TLSLayer


class Server:
    """A listening `SecureServerEndpoint`, and the handlers it has made."""

    def __init__(self, case, options, handler=Notes, wrap=None, plain=False):
        self.options = options
        self.handlers = []
        self.made = []
        factory = Factory()
        factory.buildProtocol = self._build
        factory.noisy = False
        self._handler = handler
        self._expected: list[Deferred] = []
        self.factory = wrap(factory) if wrap else factory
        self.case = case
        self.plain = plain

    def _build(self, _):
        handler = self._handler()
        self.handlers.append(handler)
        if self._expected:
            self._expected.pop(0).callback(handler)
        return handler

    async def listen(self):
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        if not self.plain:
            endpoint = SecureServerEndpoint(reactor, endpoint, self.options)
        port = await endpoint.listen(self.factory)
        self.case.addCleanup(port.stopListening)
        self.port = port.getHost().port
        return self

    def next(self):
        """Fires with the next handler that is made."""
        expected = Deferred()
        self._expected.append(expected)
        return expected


def server_options(**arguments):
    arguments.setdefault("credentials", credentials())
    return ServerOptions(**arguments)


def connect(port, options, handler):
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    return connectProtocol(SecureClientEndpoint(reactor, endpoint, options), handler)


class Talk(unittest.TestCase):
    timeout = 60

    async def test_handle_secure_then_handle_connect_then_data_in_both_versions(self):
        for version in support.VERSIONS:
            server = await Server(self, server_options()).listen()
            handler = server.next()
            answer = await in_thread(support.talk, server.port, client_context(version))
            notes = (await handler).notes
            self.assertEqual(answer, b"hello\n")
            (kind, info), *rest = notes
            await server.handlers[0].closed
            self.assertEqual((kind, rest[:2]), ("secure", ["connect", b"hello"]))
            self.assertEqual(info.version, f"TLSv{version}")
            self.assertEqual(info.server_name, HOST)
            self.assertIsNone(info.peer_certificate)
            self.assertIsNone(server.handlers[0].close_reason)

    async def test_our_client_talks_to_our_server(self):
        server = await Server(self, server_options()).listen()
        client = await connect(server.port, ClientOptions(HOST, trust()), Notes())
        client.push(b"hello\n")
        got = Deferred()
        client.message_received = got.callback
        self.assertEqual(await got, b"hello")
        client.close()
        await gatherResults([client.closed, server.handlers[0].closed])
        self.assertIsNone(client.close_reason)
        self.assertIsNone(server.handlers[0].close_reason)
        self.assertEqual(
            client.notes[0][1].peer_certificate, leaf().cert_chain_pems and _x509(leaf())
        )

    async def test_the_hook_comes_through_policy_wrappers(self):
        server = await Server(
            self, server_options(), wrap=lambda f: WrappingFactory(WrappingFactory(f))
        ).listen()
        answer = await in_thread(support.talk, server.port, client_context())
        self.assertEqual(answer, b"hello\n")
        (handler,) = server.handlers
        await handler.closed
        self.assertEqual(
            [n if isinstance(n, (str, bytes)) else n[0] for n in handler.notes][:3],
            ["secure", "connect", b"hello"],
        )


def _x509(certificate):
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes())
