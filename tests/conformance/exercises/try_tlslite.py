"""tlslite-ng: `TLSAsyncDispatcherMixIn` between a dispatcher and the loop, over a TLS of its own."""

import asyncore
import socket
import ssl
import threading

import trustme
from tlslite.api import X509CertChain, parsePEMKey
from tlslite.integration.tlsasyncdispatchermixin import TLSAsyncDispatcherMixIn


class Upper(asyncore.dispatcher):
    """What the mix-in hands plaintext to: it calls the class beside it, not the subclass."""

    pending = b""

    def handle_read(self):
        self.pending += self.recv(16384).upper()

    def writable(self):
        return bool(self.pending)

    def handle_write(self):
        data, self.pending = self.pending, b""
        self.send(data)


class Echo(TLSAsyncDispatcherMixIn, Upper):
    def __init__(self, sock, own_map, chain, key):
        Upper.__init__(self, sock, own_map)
        TLSAsyncDispatcherMixIn.__init__(self, sock)
        self.tlsConnection.ignoreAbruptClose = True
        self.setServerHandshakeOp(certChain=chain, privateKey=key, reqCert=False)


class Server(asyncore.dispatcher):
    def __init__(self, own_map, chain, key):
        asyncore.dispatcher.__init__(self, map=own_map)
        self.material = chain, key
        self.create_socket()
        self.bind(("127.0.0.1", 0))
        self.listen(5)

    def handle_accepted(self, sock, addr):
        Echo(sock, self._map, *self.material)


def test_lines_come_back_over_tls():
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    chain = X509CertChain()
    chain.parsePemList(issued.cert_chain_pems[0].bytes().decode())
    key = parsePEMKey(issued.private_key_pem.bytes().decode(), private=True)
    own_map = {}
    server = Server(own_map, chain, key)
    address = server.socket.getsockname()
    thread = threading.Thread(target=asyncore.loop, kwargs={"timeout": 0.1, "map": own_map})
    thread.start()
    try:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with (
            socket.create_connection(address, timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            for size in (1, 100, 15_000):
                client.sendall(b"a" * size)
                got = b""
                while len(got) < size:
                    got += client.recv(65536)
                assert got == b"A" * size
    finally:
        asyncore.close_all(own_map, ignore_all=True)
        thread.join(20)
    assert not thread.is_alive()
