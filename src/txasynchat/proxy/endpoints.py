r"""
Endpoints whose connections begin with a header, and the ``proxy:`` strings for them.

``proxy:`` is followed by another endpoint's string, with our own arguments anywhere in it::

    proxy:tcp:8007:from=10.0.0.0/8,192.0.2.1
    proxy:tcp6:8007:from=2001\:db8\:\:/32
    proxy:unix:/run/chat.sock:from=unix
    secure:proxy:tcp:8443:from=10.0.0.0/8:certificate=server.pem
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.protocols.policies import WrappingFactory
from typing_extensions import override
from zope.interface import implementer

from txasynchat.listening import parse, split
from txasynchat.proxy.factory import ProxyFactory
from txasynchat.proxy.header import Proxied
from txasynchat.proxy.trust import ProxyOptions
from txasynchat.ranges import PROXY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IProtocolFactory
    from twisted.internet.protocol import Factory

__all__ = ["ProxyClientEndpoint", "ProxyServerEndpoint", "behind_proxies", "parse_server"]

# What is above the header, and our own prefix where it is written already.
_ABOVE = re.compile(r"((?:secure:)*)(proxy:)?")
_WORDS = ("from", "timeout", "longest")


@implementer(IStreamServerEndpoint)
class ProxyServerEndpoint:
    """
    The connections that another endpoint accepts, each of which a proxy introduces by a header.

    Args:
        reactor: measures time; its hub is the endpoint's, if that has one.
        endpoint: accepts the connections.
        options: whose headers are believed.

    Raises:
        TypeError: *options* is something else.
    """

    def __init__(self, reactor: Any, endpoint: Any, options: ProxyOptions) -> None:
        if not isinstance(options, ProxyOptions):
            raise TypeError(f"options must be ProxyOptions: {options!r:.80}")
        self.options = options
        self._reactor = reactor
        # Under the name that Twisted's own endpoints around others use; see `listening.parse`.
        self._wrappedEndpoint = endpoint

    def over_sockets(self, factory: Any, options: Any) -> Any:
        """Do as the other endpoint does; see `HubServerEndpoint.over_sockets`."""
        over_sockets = getattr(self._wrappedEndpoint, "over_sockets", None)
        return None if over_sockets is None else over_sockets(factory, options)

    def listen(self, protocolFactory: IProtocolFactory | Factory[Any]) -> Deferred[Any]:  # noqa: N803 Twisted's
        """Listen on the other endpoint."""
        factory = ProxyFactory(self.options, protocolFactory, self._reactor)
        listening: Deferred[Any] = self._wrappedEndpoint.listen(factory)
        return listening


@implementer(IStreamClientEndpoint)
class ProxyClientEndpoint:
    """
    A connection that another endpoint makes, on which a header goes first.

    For TLS above it, this is the endpoint that `SecureClientEndpoint` is given.

    Args:
        endpoint: makes the connection.
        header: what is sent; or a function that returns it, called for each connection.

    Raises:
        TypeError: *header* is neither.
        ValueError: *header* cannot be sent; see `Proxied.encode`.
    """

    def __init__(self, endpoint: Any, header: Proxied | Callable[[], Proxied]) -> None:
        if isinstance(header, Proxied):
            encoded = header.encode()
            self._encode = lambda: encoded
        elif callable(header):
            self._encode = lambda: header().encode()
        else:
            raise TypeError(f"header must be a Proxied, or return one: {header!r:.80}")
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory | Factory[Any]) -> Deferred[Any]:  # noqa: N803 Twisted's
        """Connect as the other endpoint does, and send the header."""
        connecting: Deferred[Any] = self._endpoint.connect(_Sending(protocolFactory, self._encode))
        return connecting


class _Sending(WrappingFactory[Any]):
    """The factory of one `ProxyClientEndpoint.connect`; there is no layer."""

    noisy = False

    def __init__(self, factory: Any, encode: Callable[[], bytes]) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call] # Twisted's, untyped
        self._encode = encode

    @override
    def buildProtocol(self, addr: Any) -> Any:
        protocol = self.wrappedFactory.buildProtocol(addr)
        if protocol is not None:
            header, make = self._encode(), protocol.makeConnection

            def make_connection(transport: Any) -> None:
                protocol.makeConnection = make
                transport.write(header)
                make(transport)

            protocol.makeConnection = make_connection
        return protocol


def parse_server(reactor: Any, *arguments: str, **words: str) -> ProxyServerEndpoint:
    """
    Make the endpoint of a ``proxy:`` string; called by Twisted, with the string split.

    Raises:
        ValueError: the string is wrong, or the inner one is.
    """
    inner, ours = split("proxy", _WORDS, arguments, words)
    if "from" not in ours:
        raise ValueError("proxy: needs from=, the networks that proxies connect from")
    more = {name: PROXY[name].parse(name, ours[name]) for name in _WORDS[1:] if name in ours}
    options = ProxyOptions(trusted=ours["from"].split(","), **more)
    return ProxyServerEndpoint(reactor, parse(reactor, inner), options)


def behind_proxies(description: str, networks: Iterable[str]) -> str:
    """
    Return a server's *description* with ``proxy:`` in it, right above what accepts.

    Raises:
        ValueError: TLS of Twisted's own would be below the header; or one of the *networks* is none.
    """
    trusted = ProxyOptions(trusted=networks).trusted
    above, ours = _ABOVE.match(description).groups()  # type: ignore[union-attr] # it matches nothing, too
    rest = description[_ABOVE.match(description).end() :]  # type: ignore[union-attr] # as above
    if ours:
        return description
    if re.match(r"(ssl|tls|haproxy):", rest):
        raise ValueError(
            "a header would have to come before the TLS of ssl: and tls:, and haproxy: reads one "
            "itself; write secure: or nothing in its place"
        )
    return f"{above}proxy:{rest}:from={quoteStringArgument(','.join(trusted))}"  # type: ignore[no-untyped-call] # Twisted's
