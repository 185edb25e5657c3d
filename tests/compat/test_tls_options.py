"""
The package's own TLS options on the facade's channels: one engine refuses, and says the same words.

Also covers `compat._tls_socket`.
"""

import socket
import ssl
from functools import partial

import pytest

from helpers.channels import Lines, Listener, drive, pair, server_context
from helpers.support import HOST, server_options, trust
from txasynchat import ClientOptions, errors
from txasynchat.compat import start_tls
from txasynchat.tls import ClientCertificate


def client_of(channels, listener, options, said=b"quit\n"):
    client = Lines(map=channels)
    client.create_socket(socket.AF_INET, socket.SOCK_STREAM)
    client.push(said)
    client.connect(listener.address)
    start_tls(client, options)
    return client


def first_events(channels, server, client):
    """
    The first event of the listener's handler, and that of the client, by what both are given.
    """
    listener = Listener(channels, server)
    made = client_of(channels, listener, client)
    drive(channels, lambda: made.events and listener.handlers and listener.handlers[0].events)
    return listener.handlers[0], made


@pytest.mark.parametrize("strangers", [False, True])
def test_options_serve_and_connect(channels, strangers):
    """A listener and a client, each from options, talk; what they agreed on is in `tls`."""
    more = {} if strangers else {"alpn": (b"chat/1",)}
    handler, client = first_events(
        channels, server_options(alpn=(b"chat/1",)), ClientOptions(HOST, trust(), **more)
    )
    assert handler.lines == [b"quit"]
    assert client.lines == [b"bye"]
    for each in (handler, client):
        assert each.socket.tls.version() == "TLSv1.3"
        assert each.socket.tls.selected_alpn_protocol() == (None if strangers else "chat/1")
        assert not each.socket.truncated


def test_name_that_no_certificate_has_is_refused(channels):
    handler, client = first_events(
        channels, server_options(strict_names=True), ClientOptions("other.example", trust())
    )
    assert type(handler.events[0][1]) is errors.UnknownServerName
    assert isinstance(client.events[0][1], ssl.SSLError)
    assert "unrecognized name" in str(client.events[0][1]).lower()


def test_protocols_without_overlap_are_refused(channels):
    handler, client = first_events(
        channels,
        server_options(alpn=(b"chat/1",)),
        ClientOptions(HOST, trust(), alpn=(b"chat/2",)),
    )
    assert type(handler.events[0][1]) is errors.NoCommonProtocol
    assert "no application protocol" in str(client.events[0][1]).lower()


def test_server_without_our_protocols_is_refused(channels):
    _, client = first_events(
        channels, server_options(), ClientOptions(HOST, trust(), alpn=(b"chat/2",))
    )
    assert type(client.events[0][1]) is errors.NoCommonProtocol


def test_error_of_openssl_has_the_packages_own_as_its_cause(channels):
    """A program may catch either."""
    _, client = first_events(channels, server_options(), ClientOptions("localhost", None))
    error = client.events[0][1]
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert type(error.__cause__) is errors.UnknownAuthority
    assert error.__cause__.__cause__ is None


def test_client_without_the_certificate_that_options_demand_is_refused(channels):
    options = server_options(
        client_certificate=ClientCertificate.REQUIRED, client_authorities=trust()
    )
    handler, _ = first_events(channels, options, ClientOptions(HOST, trust()))
    assert type(handler.events[0][1].__cause__) is errors.MissingClientCertificate


def test_limits_of_the_options_hold(channels):
    """The time for a handshake, and how many may be unfinished over all that share the options."""
    options = server_options(handshake_timeout=0.2, max_pending=1)
    first, second = (pair(channels, Lines) for _ in range(2))
    for handler, _ in (first, second):
        start_tls(handler, options)
    drive(channels, lambda: first[0].events and second[0].events)
    assert type(first[0].events[0][1]) is errors.HandshakeFailed
    assert type(second[0].events[0][1]) is errors.HandshakeTimedOut
    assert second[0].events[0][1].limit == 0.2
    assert len(options.limit.pending) == 0
    for _, theirs in (first, second):
        theirs.close()


def test_arguments_that_contradict_the_options_are_refused(channels):
    """Nothing has changed then."""
    handler, theirs = pair(channels, Lines)
    plain = handler.socket
    begin = partial(start_tls, handler)
    client = ClientOptions(HOST, trust())
    with theirs:
        for options, arguments in (
            (client, {"server_side": True}),
            (client, {"server_hostname": HOST}),
            (server_options(), {"server_side": False}),
        ):
            with pytest.raises(ValueError, match="follow from the options"):
                begin(options, **arguments)
        with pytest.raises(TypeError, match=r"neither a ssl\.SSLContext nor ServerOptions"):
            begin("server.pem")
        assert handler.socket is plain
        handler.close()


def test_options_for_clients_are_refused_when_listening_begins(channels):
    with pytest.raises(ssl.SSLError, match="a server cannot use options for clients"):
        Listener(channels, ClientOptions(HOST, trust()))


def test_openssl_is_not_started_for_a_silent_client(channels):
    listener = Listener(channels, server_context())
    with socket.create_connection(listener.address) as client:
        drive(channels, lambda: listener.handlers)
        sock = listener.handlers[0].socket
        assert sock.tls is None
        assert sock.server_side
        client.shutdown(socket.SHUT_WR)
        drive(channels, lambda: listener.handlers[0].events)
    assert isinstance(listener.handlers[0].events[0][1], ssl.SSLError)


def test_send_after_shutdown_breaks_the_pipe(channels):
    """As on a plain socket; what the peer sends still arrives."""

    class Staying(Lines):
        def handle_close(self):
            pass

    listener = Listener(channels, server_options(), Staying)
    client = client_of(channels, listener, ClientOptions(HOST, trust()), said=b"hello\n")
    drive(channels, lambda: client.lines)
    client.lines.clear()
    (handler,) = listener.handlers
    client.socket.shutdown(socket.SHUT_WR)
    assert client.socket.send(b"") == 0
    with pytest.raises(BrokenPipeError):
        client.socket.send(b"late\n")
    handler.push(b"still here\n")
    drive(channels, lambda: client.lines)
    assert client.lines == [b"still here"]
