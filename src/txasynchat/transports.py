"""
What is known of Twisted's own transports beyond their interfaces, in one place.

Everything here has an answer for an unknown transport, which is used through `ITransport` alone, a
little slower.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet import address
from twisted.internet.endpoints import _WrappingProtocol
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.unix import _SendmsgMixin
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from txasynchat import pipes
from txasynchat.delivery import unacknowledged, unread
from txasynchat.pipes import (
    innermost,
    layers,
    reactor_of,
    read_what_is_there,
    tell_of_ends,
    waits_for_exit,
    writing_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    _Port: Any = Any
else:
    _Port = object

__all__ = [
    "Lent",
    "TLSBase",
    "abort",
    "accept_fewer",
    "address_of",
    "can_half_close",
    "closes_by_itself",
    "end_sending",
    "has_room",
    "has_unread_bytes",
    "immediate_sender",
    "innermost",
    "is_open",
    "is_secure",
    "is_tls",
    "link_to",
    "lose",
    "outstanding_bytes",
    "own_address",
    "peer_address",
    "peer_name",
    "reactor_of",
    "reactor_stopped",
    "read_what_is_there",
    "real_socket",
    "stays_open",
    "tell_of_ends",
    "tell_of_half_close",
    "tls_layer",
    "turn_away",
    "unsent_bytes",
    "waits_for_exit",
    "was_accepted",
    "when_introduced",
    "when_secure",
    "writing_end",
    "writing_was_ended",
]


class TLSBase(ProtocolWrapper):
    """TLS of this package, as far as it is known here; `txasynchat.tls.transport` has the rest."""

    #: The handshake is done.
    is_secure: bool
    #: What ``connectionLost`` will tell; None: what the transport below says.
    reason: Failure | None

    def send_now(self, data: bytes) -> bytes:
        """Do what the function of `immediate_sender` does."""
        return data

    @property
    def sent_everything(self) -> bool:
        """Nothing more is to be sent: close_notify was, or TLS is over."""
        return True


def immediate_sender(transport: Any) -> Callable[[Any, bytes], bytes] | None:
    """
    Return a function that hands bytes to the operating system at once, or None if there is none.

    ``transport.write`` waits until the reactor finds the descriptor writable, and sends in its next
    iteration: two system calls and an iteration, which cost more than the sending.

    The function takes the transport and the bytes, and returns what the operating system did not take,
    for ``transport.write``. That is everything if other bytes wait before them, or if the connection is
    lost, which the reactor will notice and report by itself.
    """
    send_now: Callable[[Any, bytes], bytes] | None = getattr(type(transport), "send_now", None)
    if send_now is not None:  # our own TLS, or a connection of the hub
        return send_now
    if not isinstance(transport, Connection):
        return None
    return _send_after_descriptors if isinstance(transport, _SendmsgMixin) else _send


def has_room(connection: Connection) -> bool:
    """
    Return whether the next bytes may go to the operating system at once, because none wait before them
    and the sending was not ended.

    Args:
        connection: one that `immediate_sender` has a function for.
    """
    return not (
        connection.dataBuffer
        or connection._tempDataBuffer
        or connection.TLS
        or connection.disconnecting
        or connection._writeDisconnecting
    )


def _send(transport: Any, data: bytes) -> bytes:
    if not has_room(transport):
        return data
    try:
        sent = transport.socket.send(data)
    except (OSError, AttributeError):  # Twisted deletes the socket of a connection that is lost
        return data
    return b"" if sent == len(data) else data[sent:]


def _send_after_descriptors(transport: Any, data: bytes) -> bytes:
    # Queued descriptors go out with the next byte, which Twisted then has to send.
    return data if transport._sendmsgQueue else _send(transport, data)


def unsent_bytes(transport: Any) -> int | None:
    """Count the bytes that transports hold and the operating system has not taken; None if unknown."""
    end = writing_end(transport)
    return None if end is None else int(len(end.dataBuffer) - end.offset + end._tempDataLen)


def outstanding_bytes(transport: Any) -> tuple[int | None, int | None]:
    """Count what is on its way to the peer: the `unsent_bytes`, and the unacknowledged ones."""
    sock = real_socket(transport)
    return unsent_bytes(transport), None if sock is None else unacknowledged(sock)


def has_unread_bytes(transport: Any) -> bool:
    """
    Return whether the operating system has received bytes that nobody has read.

    Closing a socket in this state resets the connection, which may destroy what was sent last, in
    flight or in the peer's own buffer (RFC 2525, section 2.17).
    """
    one = real_socket(transport)
    if one is None:
        return False
    count = unread(one.fileno())
    if count >= 0:
        return count > 0
    try:
        return bool(one.recv(1, socket.MSG_PEEK))
    except OSError:  # nothing there, or reset already
        return False


def can_half_close(transport: Any) -> bool:
    """
    Return whether ``loseWriteConnection`` ends the sending, and leaves the connection readable.

    TLS has no such state, but passes the method of the transport beneath on; some transports in memory
    have the method and do nothing.
    """
    return (
        real_socket(transport) is not None
        and hasattr(transport, "loseWriteConnection")
        and tls_layer(transport) is None
    )


def end_sending(transport: Any) -> None:
    """
    Let the peer see the end of what *transport* has sent, and go on reading; see `can_half_close`.

    Our TLS can do that on any transport. Where it is not possible nothing happens.
    """
    tls = tls_layer(transport)
    end = getattr(transport, "loseWriteConnection", None)
    if tls is None and pipes.close_input(transport):
        return
    if end is not None and (tls is None or isinstance(tls, TLSBase)):
        end()


def tls_layer(transport: Any) -> Any:
    """
    Return the TLS that *transport* is, or is wrapped around; None without TLS.

    A TCP transport that was told to ``startTLS`` has it above itself, as its protocol.
    """
    if is_tls(transport):
        return transport
    found = layers(transport)
    if getattr(found[-1], "TLS", False):
        found.append(getattr(found[-1], "protocol", None))
    for one in found:
        if is_tls(one):
            return one
    return None


def is_tls(layer: Any) -> bool:
    """Return whether *layer* is TLS, ours or Twisted's."""
    return isinstance(layer, TLSBase | TLSMemoryBIOProtocol)


def is_secure(tls: Any) -> bool:
    """Return whether the handshake of what `tls_layer` returned is done."""
    return bool(tls.is_secure if isinstance(tls, TLSBase) else tls._handshakeDone)


def is_open(transport: Any) -> bool:
    """Return whether there is no TLS, or its handshake is done."""
    tls = tls_layer(transport)
    return tls is None or is_secure(tls)


def when_secure(transport: Any, listener: Any) -> bool:
    """
    Return whether *transport* is ready, because there is no TLS or its handshake is done.

    Otherwise ``listener.handshakeCompleted()`` will be called. TLS calls it on the protocol right
    above itself, if that provides `IHandshakeListener`; a policy's wrapper is made to pass it on.
    """
    tls = tls_layer(transport)
    if tls is None or is_secure(tls):
        return True
    _pass_on(tls.wrappedProtocol, listener, IHandshakeListener)
    _pass_on(tls.wrappedProtocol, listener, IHalfCloseableProtocol)
    return False


def when_introduced(transport: Any, then: Callable[[], None]) -> bool:
    """
    Return whether the peer's address is known, because no proxy still has to send it.

    Behind a ``haproxy:`` endpoint the first bytes say whose connection the proxy passes on. While they
    are missing this is False; *then* is called when they have come, before what follows is delivered.
    """
    # Only programs with such an endpoint load the module.
    haproxy = sys.modules.get("twisted.protocols.haproxy._wrapper")
    if haproxy is None or not isinstance(transport, ProtocolWrapper):
        return True
    for layer in layers(transport):
        if isinstance(layer, haproxy.HAProxyProtocolWrapper) and layer._proxyInfo is None:
            layer.dataReceived = partial(_introduce, layer, then)
            return False
    return True


def _introduce(layer: Any, then: Callable[[], None], data: bytes) -> None:
    type(layer).dataReceived(layer, data)
    if layer._proxyInfo is not None and "dataReceived" in vars(layer):
        del layer.dataReceived
        then()


def tell_of_half_close(transport: Any, listener: Any) -> None:
    """
    Ensure that *listener*, an `IHalfCloseableProtocol`, hears of the end of the peer's bytes.

    A socket, and our TLS, ask the protocol right above themselves. That may be a policy's wrapper or a
    client endpoint's, which do not pass it on. Then the connection would be lost at once, with the
    answers still in flight.
    """
    if getattr(transport, "protocol", None) is listener:
        return
    tls = tls_layer(transport)
    one = innermost(transport)
    if tls is not None:
        above = tls.wrappedProtocol
    elif isinstance(one, (Connection, pipes.STANDARD_IO)):
        above = one.protocol
    else:
        tell_of_ends(one, listener)
        return
    if isinstance(above, ProtocolWrapper | _WrappingProtocol):
        _pass_on(above, listener, IHalfCloseableProtocol)


def _pass_on(above: Any, listener: Any, interface: Any) -> None:
    """
    Make *above* provide *interface* by calling *listener*.

    Its class decides whether it already does, because a wrapper claims whatever is below it.
    """
    if above is listener or interface.implementedBy(type(above)):
        return
    for name in interface.names():
        # Weakly, or every such connection would be left to the garbage collector.
        setattr(above, name, pipes.call_weakly(getattr(listener, name)))
    alsoProvides(above, interface)


def link_to(transport: Any, protocol: Any) -> tuple[Any, str] | None:
    """
    Find what leads from *transport* to *protocol*: an object, and the attribute to change.

    Twisted keeps a protocol of its own between a transport and a protocol that an endpoint connected.
    """
    for attribute in ("protocol", "wrappedProtocol"):
        above, above_attribute = transport, attribute
        while (found := getattr(above, above_attribute, None)) is not None:
            if found is protocol:
                return above, above_attribute
            above, above_attribute = found, "_wrappedProtocol"
    return None


def turn_away(transport: Any, protocol: Any, error: Exception) -> None:
    """
    End the connection of *transport*, which *protocol* refuses, and hears no more of.

    If an endpoint made the connection, its caller gets *error*.
    """
    link = link_to(transport, protocol)
    if link is not None:
        above, attribute = link
        setattr(above, attribute, Protocol())
        if is_tls(above):
            name = "reason" if isinstance(above, TLSBase) else "_reason"
            setattr(above, name, Failure(error))  # type: ignore[no-untyped-call] # Twisted's, untyped
        connected = getattr(above, "_connectedDeferred", None)
        if connected is not None and not connected.called:
            connected.errback(error)
    abort(transport)


def accept_fewer(transport: Any, count: int) -> None:
    """
    Let the port that accepted *transport* accept at most *count* in the reactor's next iteration.

    It begins with a hundred, and raises that while that many arrive.
    """
    port: Any = getattr(transport, "server", None)
    if getattr(port, "numberAccepts", 0) > count:
        port.numberAccepts = count


def was_accepted(transport: Any) -> bool:
    """Return whether a port accepted the connection of *transport*, as far as that is known."""
    return getattr(innermost(transport), "server", None) is not None


def stays_open(port: Any) -> bool:
    """
    Return whether the socket of a port continues to listen when the port is closed: another process,
    such as systemd, has it open too.
    """
    # What Twisted notes of a socket that it did not bind, and `Lent` of any.
    return getattr(port, "_shouldShutdown", True) is False


def closes_by_itself(transport: Any) -> bool:
    """
    Return whether ``loseConnection`` needs only the reactor's next iteration.

    A descriptor is closed once it is writable. It never is if it was just filled up and the peer does
    not read.
    """
    if (
        unsent_bytes(transport) != 0
        or waits_for_exit(transport)
        or tls_layer(transport) is not None
    ):
        return False
    descriptor = writing_end(transport).fileno()
    if descriptor < 0:  # it is closed
        return True
    if not hasattr(select, "poll"):
        return False
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return bool(poller.poll(0))


def lose(transport: Any, *, sent: bool) -> None:
    """Close *transport* when it has sent everything, if anything was *sent*; see `pipes.let_go`."""
    by_itself = isinstance(transport, Connection) or tls_layer(transport) is not None
    if by_itself or not pipes.let_go(transport, sent=sent):
        transport.loseConnection()


def abort(transport: Any) -> None:
    """Close now, whatever kind of transport it is; what is not sent is lost."""
    abort_connection = getattr(transport, "abortConnection", None)
    if abort_connection is not None:
        abort_connection()
    elif not pipes.end(transport, ConnectionAborted()):
        transport.loseConnection()


def writing_was_ended(transport: Any, end: Any) -> bool:
    """
    Return whether it was this side that ended the sending, rather than the peer the receiving.

    Args:
        transport: a transport that reports the loss of its writing half.
        end: what `writing_end` returned for it while it had that half.
    """
    if end is None:
        return hasattr(transport, "loseWriteConnection")
    return bool(end.disconnecting or end._writeDisconnecting)


def peer_address(transport: Any) -> Any:
    """
    Return the peer's address in the form that the `socket` module would give it.

    Returns:
        (host, port) for TCP; a path, perhaps empty, for a Unix socket; for other transports, what
        ``getPeer()`` returns; None if it has no address, as for a process or a serial port.
    """
    return _as_socket_would(transport.getPeer)


def address_of(name: Any) -> Any:
    """Return Twisted's form of an address that is in the form of `peer_address`."""
    if not isinstance(name, tuple):
        return address.UNIXAddress(name or None)
    cls = address.IPv6Address if len(name) == 4 else address.IPv4Address
    return cls("TCP", *name)


def own_address(transport: Any) -> Any:
    """Return this side's address in the form of `peer_address`; None if the connection is lost."""
    try:
        return _as_socket_would(transport.getHost)
    except (OSError, AttributeError):  # its socket is closed, or with Twisted's transports deleted
        return None


def peer_name(transport: Any) -> Any:
    """Return what to call the peer in the log. It never raises."""
    try:
        bottom = innermost(transport)
        if isinstance(bottom, pipes.STANDARD_IO):
            return "standard input"
        if waits_for_exit(bottom):
            return f"process {bottom.pid}"
        return transport.getPeer()
    except Exception:  # noqa: BLE001 a transport may be anybody's
        return type(transport).__name__


def _as_socket_would(ask: Callable[[], Any]) -> Any:
    try:
        one = ask()
    except NotImplementedError:
        return None
    if isinstance(one, address.IPv4Address):
        return (one.host, one.port)
    if isinstance(one, address.IPv6Address):
        return (one.host, one.port, one.flowInfo, one.scopeID)
    if isinstance(one, address.UNIXAddress):
        return os.fsdecode(one.name or b"")
    return one


def reactor_stopped(transport: Any) -> bool:
    """Return whether the reactor of *transport* has stopped, which ends all its connections."""
    reactor = reactor_of(transport)
    # A reactor that was never run, but is driven by others, does not run either.
    return bool(getattr(reactor, "_startedBefore", False)) and not reactor.running


def real_socket(transport: Any) -> socket.socket | None:
    """Return the socket beneath *transport*, for its options; None where there is none."""
    one = getattr(innermost(transport), "socket", None)
    return one if isinstance(one, socket.socket) else None


class Lent(_Port):  # type: ignore[misc] # its base has no types
    """
    The part of a port on a Unix socket that another process has open too, and whose file is not ours.
    """

    # Or the socket would stop listening for the other process, too.
    _shouldShutdown = False  # noqa: N815 Twisted's

    def startListening(self) -> None:  # noqa: N802 Twisted's
        """Begin to accept."""
        # Twisted sets the file's mode, which only the owner may, and removes the file at the end. It
        # does neither if the name begins with a null byte, because then there is no file.
        name = "_bindPath" if hasattr(self, "_bindPath") else "port"  # as in older versions
        path = os.fsencode(getattr(self, name))
        setattr(self, name, b"\0" + path.removeprefix(b"\0"))
        super().startListening()
