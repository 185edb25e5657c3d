r"""
TLS over any endpoint: the ``secure:`` strings, and the classes behind them.

``secure:`` is followed by another endpoint's string, with our own arguments anywhere in it; all other
arguments go to the other endpoint::

    secure:tcp:8443:interface=127.0.0.1:certificate=server.pem:key=server.key
    secure:unix:/run/chat.sock:certificate=server.pem:client_ca=staff.pem:client=required
    secure:systemd:domain=INET:index=0:certificate=one.pem,two.pem:names=strict
    secure:tcp:chat.example.org:8443:ca=company.pem

If both need an argument of the same name, write the inner string as one argument, with its colons
escaped: ``secure:tcp\:8443:certificate=server.pem``.

`server_options` and `client_options` list our arguments.
"""

from __future__ import annotations

import re
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

from twisted.application._client_service import _ReconnectingProtocolProxy
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import implementer

from txasynchat import transports
from txasynchat.errors import ChatError, HandshakeFailed
from txasynchat.listening import parse, split
from txasynchat.ranges import TLS, UNSET
from txasynchat.tls.certificates import Credentials
from txasynchat.tls.factory import TLSFactory
from txasynchat.tls.options import ClientCertificate, ClientOptions, ServerOptions, Version

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory
    from twisted.internet.protocol import Factory

    from txasynchat.tls.transport import TLSTransport

__all__ = [
    "SecureClientEndpoint",
    "SecureServerEndpoint",
    "client_options",
    "parse_client",
    "parse_server",
    "server_options",
]


@implementer(IStreamServerEndpoint)
class SecureServerEndpoint:
    """
    TLS on the connections that another endpoint accepts.

    Args:
        reactor: measures the time for the limits.
        endpoint: accepts the connections.
        options: how TLS is spoken; its limit on handshakes holds for all endpoints that share it.

    Raises:
        TypeError: *options* is for clients.
    """

    def __init__(self, reactor: Any, endpoint: Any, options: ServerOptions) -> None:
        if getattr(options, "is_client", False):
            raise TypeError(f"options must be ServerOptions: {options!r:.80}")
        self.options = options
        self._reactor = reactor
        self._endpoint = endpoint

    def limit_handshakes(self, count: int | None) -> None:
        """
        Let so many handshakes go on at once; called by a `Server` whose limits say so.

        Raises:
            ValueError: the options say how many.
        """
        if self.options.handshakes is not UNSET:
            raise ValueError(
                "how many handshakes go on at once is said twice: by the endpoint, and in limits"
            )
        self.options.limit.count = count

    def listen(self, protocolFactory: IProtocolFactory | Factory[Any]) -> Deferred[Any]:  # noqa: N803 Twisted's
        """Listen on the other endpoint."""
        # A factory may serve the sockets of the hub's ports by itself, TLS included.
        over_sockets = getattr(self._endpoint, "over_sockets", None)
        factory = None if over_sockets is None else over_sockets(protocolFactory, self.options)
        if factory is None:
            factory = TLSFactory(self.options, False, protocolFactory, self._reactor)
        listening: Deferred[Any] = self._endpoint.listen(factory)
        return listening


@implementer(IStreamClientEndpoint)
class SecureClientEndpoint:
    """
    TLS on a connection that another endpoint makes.

    Args:
        reactor: measures the time for the limits.
        endpoint: makes the connection.
        options: how TLS is spoken, and with whom; or what Twisted's ``optionsForClientTLS`` returns.

    Raises:
        TypeError: *options* is not for clients only, like Twisted's ``CertificateOptions``, which
            verifies no name.
    """

    def __init__(self, reactor: Any, endpoint: Any, options: ClientOptions) -> None:
        if not getattr(options, "is_client", False) and (
            not IOpenSSLClientConnectionCreator.providedBy(options)
            or IOpenSSLServerConnectionCreator.providedBy(options)
        ):
            raise TypeError(
                "options must be ClientOptions(hostname), or Twisted's optionsForClientTLS(hostname),"
                f" which verify the server's name: {options!r:.80}"
            )
        self.options = options
        self._reactor = reactor
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory | Factory[Any]) -> Deferred[Any]:  # noqa: N803 Twisted's
        """
        Connect, and shake hands.

        Returns:
            A Deferred that fires with the protocol when the handshake is done. It fails with a
            `TLSError` if the handshake failed or the protocol ended it, or with what the other
            endpoint or the factory raised; always before the protocol hears that the connection is
            lost. Cancelling it closes the connection.
        """
        return _Connecting(self.options, protocolFactory, self._reactor).begin(self._endpoint)


class _Connecting(TLSFactory):
    """
    One call of `SecureClientEndpoint.connect`: the factory for the other endpoint, and the Deferred.

    The Deferred fires once, whatever the application raises, and before the protocol hears that its
    connection is lost.
    """

    _log = Logger()

    def __init__(self, options: ClientOptions, factory: IProtocolFactory, reactor: Any) -> None:
        super().__init__(options, True, factory, reactor)
        # None once it has fired.
        self._secured: Deferred[Any] | None = Deferred(self._cancel)
        # The other endpoint's, until it asks for a protocol.
        self._connecting: Deferred[Any] | None = None
        self._asked = False
        self._layer: TLSTransport | None = None

    def begin(self, endpoint: Any) -> Deferred[Any]:
        """Have the other endpoint connect; return the Deferred."""
        secured = self._secured
        connecting = maybeDeferred(endpoint.connect, self)
        if not self._asked:
            self._connecting = connecting
        connecting.addErrback(self._fail)
        return cast("Deferred[Any]", secured)

    @override
    def buildProtocol(self, addr: Any) -> Any:
        """Build the protocol, and TLS below it; None if the Deferred was cancelled."""
        self._asked = True
        self._connecting = None
        if not self._waits():
            return None
        try:
            layer = super().buildProtocol(addr)
        except Exception:
            self._fail(Failure())
            raise
        if layer is None:
            self._fail(Failure(NoProtocol()))
        # The application's factory may have cancelled the Deferred.
        self._layer = layer if self._waits() else None
        return self._layer

    @override
    def settled(self, layer: TLSTransport, failure: Failure | None) -> None:
        """Fire with the protocol, or fail."""
        if self._secured is None:
            return
        if failure is None:
            self._fire(layer.wrappedProtocol)
            return
        if not isinstance(failure.value, ChatError):
            # The protocol closed the connection, or raised.
            error = HandshakeFailed(f"ended by this side: {failure.getErrorMessage()}")
            error.__cause__ = failure.value
            failure = Failure(error)
        self._fail(failure)

    def _waits(self) -> bool:
        return self._secured is not None

    def _cancel(self, _: object) -> None:
        connecting, layer = self._connecting, self._layer
        try:
            if connecting is not None:
                connecting.cancel()
        except Exception:  # noqa: BLE001 the endpoint may be anybody's
            self._log.failure("{endpoint} cannot be cancelled", endpoint=connecting)
        self._fail(Failure(CancelledError()))
        if layer is not None:
            transports.abort(layer)

    def _fail(self, failure: Failure) -> None:
        if self._layer is not None:
            _leave_service(self._layer)
        if self._secured is not None:
            self._fire(failure)

    def _fire(self, result: Any) -> None:
        secured, self._secured, self._layer = self._secured, None, None
        if secured is not None:
            secured.callback(result)


def _leave_service(layer: Any) -> None:
    """
    Remove the proxy that `ClientService` keeps above *layer*: it breaks if it hears of the end of a
    connection that it never had.
    """
    while isinstance(layer.wrappedProtocol, ProtocolWrapper):
        layer = layer.wrappedProtocol
    if isinstance(layer.wrappedProtocol, _ReconnectingProtocolProxy):
        layer.wrappedProtocol = layer.wrappedProtocol._protocol


def server_options(  # noqa: PLR0913 one for each argument
    *,
    certificate: str,
    key: str = "",
    client_ca: str = "",
    client: str = "",
    alpn: str = "",
    names: str = "any",
    version: str = "",
    sessions: str = "no",
    reload: str = "1",
    handshake_timeout: str = "10",
    close_timeout: str = "3",
    handshakes: str = "",
    max_handshakes: str = "",
    max_pending: str = "",
) -> ServerOptions:
    """
    Make a `ServerOptions` from the arguments of a ``secure:`` string.

    Args:
        certificate: file of the certificate and its chain; or several, separated by commas: a client
            gets the one that has the name it asks for, or else the first.
        key: file of the key, or as many files as certificates; by default the same files.
        client_ca: file of the authorities that vouch for clients.
        client: certificates of clients are ``required`` (the default with *client_ca*) or ``optional``.
        alpn: protocols, separated by commas, the preferred one first; ``!`` behind the last one refuses
            clients that offer none of them.
        names: ``strict`` refuses a client that asks for a name that no certificate has.
        version: ``1.2`` or ``1.3``, to allow only that one.
        sessions: ``yes`` lets clients resume with a shorter handshake.
        reload: seconds between looks for renewed files, or ``never``.
        handshake_timeout: seconds.
        close_timeout: seconds.
        handshakes: how many go on at once.
        max_handshakes: the older name of *handshakes*.
        max_pending: how many connections may have an unfinished handshake.

    Raises:
        CredentialsError: see `ServerOptions`.
        ValueError: an argument has a value that it cannot have.
    """
    certificates = certificate.split(",")
    keys: list[str | None] = [*key.split(",")] if key else [None] * len(certificates)
    if len(keys) != len(certificates):
        raise ValueError(f"certificate= names {len(certificates)} files, key= {len(keys)}")
    modes = {one.name.lower(): one for one in ClientCertificate}
    mode = _one_of("client", client or ("required" if client_ca else "off"), modes)
    if mode is not ClientCertificate.OFF and not client_ca:
        raise ValueError(f"client={client} needs client_ca=")
    lowest, highest = _versions(version)
    more: dict[str, Any] = {}
    if handshakes and max_handshakes:
        raise ValueError("handshakes= and max_handshakes= are the same; give one of them")
    for name, given in (("handshakes", handshakes), ("max_handshakes", max_handshakes)):
        if given:
            more["handshakes"] = TLS["handshakes"].parse(name, given)
    if max_pending:
        more["max_pending"] = _number("max_pending", max_pending)
    return ServerOptions(
        [Credentials(one, its) for one, its in zip(certificates, keys, strict=True)],
        strict_names=_one_of("names", names, {"any": False, "strict": True}),
        client_certificate=mode,
        client_authorities=client_ca or None,
        alpn=_protocols(alpn.removesuffix("!")),
        require_alpn=alpn.endswith("!"),
        minimum=lowest,
        maximum=highest,
        sessions=_one_of("sessions", sessions, {"no": False, "yes": True}),
        reload_interval=None
        if reload == "never"
        else TLS["reload_interval"].parse("reload", reload),
        handshake_timeout=_number("handshake_timeout", handshake_timeout),
        close_timeout=_number("close_timeout", close_timeout),
        **more,
    )


def client_options(  # noqa: PLR0913 one for each argument
    *,
    hostname: str,
    ca: str = "",
    certificate: str = "",
    key: str = "",
    alpn: str = "",
    version: str = "",
    handshake_timeout: str = "10",
    close_timeout: str = "3",
) -> ClientOptions:
    """
    Make a `ClientOptions` from the arguments of a ``secure:`` string.

    Args:
        hostname: the name or address that the server's certificate must be for; by default the host
            that ``secure:tcp:`` connects to.
        ca: file of the authorities that vouch for the server; by default those of the system.
        certificate: file of our own certificate and its chain.
        key: file of its key; by default the same file.
        alpn: protocols, separated by commas, the preferred one first.
        version: ``1.2`` or ``1.3``, to allow only that one.
        handshake_timeout: seconds.
        close_timeout: seconds.

    Raises:
        CredentialsError: see `ClientOptions`.
        ValueError: an argument has a value that it cannot have.
    """
    lowest, highest = _versions(version)
    return ClientOptions(
        hostname,
        authorities=ca or None,
        credentials=Credentials(certificate, key or None) if certificate else None,
        alpn=_protocols(alpn),
        minimum=lowest,
        maximum=highest,
        handshake_timeout=_number("handshake_timeout", handshake_timeout),
        close_timeout=_number("close_timeout", close_timeout),
    )


def parse_server(reactor: Any, *arguments: str, **words: str) -> SecureServerEndpoint:
    """
    Make the endpoint of a ``secure:`` string; called by Twisted, with the string split.

    Raises:
        ValueError: the string is wrong, or the inner one is; `CredentialsError` is one of these.
    """
    inner, ours = split("secure", signature(server_options).parameters, arguments, words)
    if "certificate" not in ours:
        raise ValueError("secure: needs certificate=")
    return SecureServerEndpoint(reactor, parse(reactor, inner), server_options(**ours))


def parse_client(reactor: Any, *arguments: str, **words: str) -> SecureClientEndpoint:
    """
    Make the endpoint of a ``secure:`` string; called by Twisted, with the string split.

    Raises:
        ValueError: the string is wrong, or the inner one is; `CredentialsError` is one of these.
    """
    inner, ours = split("secure", signature(client_options).parameters, arguments, words)
    if "hostname" not in ours:
        host = re.match(r"(?:hub:)?tcp:((?:[^:\\]|\\.)+)", inner)
        if host is None:
            raise ValueError("secure: needs hostname= where the inner string is not tcp:host:port")
        ours["hostname"] = re.sub(r"\\(.)", r"\1", host[1])
    return SecureClientEndpoint(reactor, clientFromString(reactor, inner), client_options(**ours))


def _protocols(text: str) -> tuple[bytes, ...]:
    if not text.isascii():
        raise ValueError(f"protocols of alpn= must be in ASCII: {text!r}")
    return tuple(one.encode() for one in text.split(",")) if text else ()


def _versions(text: str) -> tuple[Version, Version]:
    both = (Version.TLS_1_2, Version.TLS_1_3)
    lowest, highest = _one_of("version", text, {"": both, "1.2": both[:1] * 2, "1.3": both[1:] * 2})
    return lowest, highest


def _one_of(name: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(filter(None, choices))}, not {value!r}")
    return choices[value]


def _number(name: str, text: str) -> Any:
    return TLS[name].parse(name, text)
