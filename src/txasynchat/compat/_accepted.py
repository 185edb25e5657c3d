"""
Legacy handlers beside a reactor: what drives them, and the sockets that the hub accepted for them.

A port of the hub gives the socket; the handler gets it as it is, and the facade's own driver calls it,
by `attach`. So a served handler has what it would have in ``loop()``. The maps in which it registers
channels, its own and others that it opens, are attached when the first one is there, and left alone
when they are empty.

Three things are decided here, which ``loop()`` decides otherwise:

- `asyncore.ExitNow`, `SystemExit` and `KeyboardInterrupt` of a handler stop the reactor;
- an exception of a predicate ends the channel that raises it, and not the loop;
- a connection lasts until its channel has left its map, and whoever wants to know is told.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, WeakSet

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import Logger
from typing_extensions import override

from txasynchat.compat import _loop, asyncore
from txasynchat.compat._attach import Attachment, default_reactor
from txasynchat.compat._interest import has_descriptor
from txasynchat.compat._tls_socket import TLSSocket
from txasynchat.compat.asynchat import _framer_of as framer_of
from txasynchat.delivery import carried
from txasynchat.hub.shared import has_descriptors
from txasynchat.limits.deadlines import Standing, report
from txasynchat.log import Throttle, escape, failure, unlogged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from txasynchat.compat._attach import Watcher
    from txasynchat.errors import TimedOut

__all__ = ["Accepted", "Beside", "Handshake", "end", "tell_of_end"]

_log = Logger()
# One line a second for each kind: peers can repeat them.
_failed = Throttle(1.0)


class Accepted:
    """
    One connection whose handler has the socket; what a server knows of it.

    Args:
        channel: the handler; in its map.
        address: the peer's.
        on_timeout: see `LegacyFactory`.

    Attributes:
        channel: the handler.
        on_timeout: as above.
    """

    __slots__ = (
        *("_address", "_before", "_begun", "_header", "_on_end", "_sock"),
        *("channel", "on_timeout"),
    )

    def __init__(
        self, channel: Any, address: Any, on_timeout: Callable[[Any, str], object] | None = None
    ) -> None:
        self.channel = channel
        self._sock = channel.socket
        self._address = address
        self._on_end: list[Callable[[], object]] = []
        self.on_timeout = on_timeout
        self._begun = False
        # The bytes of a proxy's header, which are not the client's.
        self._header: int = getattr(self._sock, "header_length", 0)
        # What TLS has carried for its handshake; a client may have sent its first bytes behind that.
        self._before = carried(self._sock) if isinstance(self._sock, TLSSocket) else None

    def __repr__(self) -> str:
        return f"<Accepted from {self._address!r}: {self.channel!r}>"

    def when_ended(self, call: Callable[[], object]) -> None:
        """Call *call* when the channel has left its map."""
        self._on_end.append(call)

    def settle(self, channel: Any) -> bool:
        """See `_attach.Watcher`; another channel may have taken the socket."""
        if channel is not None and (channel is self.channel or channel.socket is self._sock):
            self.channel = channel
            return True
        for call in self._on_end:
            call()
        return False

    # -- for `limits.deadlines`

    @property
    def carrier(self) -> Any:
        """The socket; None if the channel has none any more."""
        return self.channel.socket

    def getPeer(self) -> Any:  # noqa: N802 as of a transport
        """Return the peer's address; behind a proxy it may be of another family than the socket."""
        if not isinstance(self._address, tuple):
            return UNIXAddress(None)
        kind = IPv6Address if ":" in self._address[0] else IPv4Address
        return kind("TCP", *self._address[:2])

    def _standing(self) -> Standing:
        if not self._begun:
            self._begun = self._has_begun()
        return standing(self.channel, begun=self._begun)

    def _has_begun(self) -> bool:
        sock = self.channel.socket
        counts = None if sock is None else carried(sock)
        if counts is None or self._before is None:
            return counts is None or counts[0] > self._header
        return counts != self._before or sock.pending() > 0

    def _timed_out(self, error: TimedOut) -> None:
        tell_of_timeout(self.channel, self._address, error, self.on_timeout)
        if error.kind == "write_stall":
            self.abortConnection()
        else:
            self.handle_shutdown()

    # -- as of a transport, and its protocol

    def handle_shutdown(self) -> None:
        """
        The server stops: the channel sends what it has queued, and closes.

        One that is no ``async_chat`` has no queue: it meets the end of the stream.
        """
        if hasattr(type(self.channel), "close_when_done"):
            self.channel.close_when_done()
        else:
            self.loseConnection()

    def loseConnection(self) -> None:  # noqa: N802 as of a transport
        """Let the channel meet the end of the stream."""
        try:
            self.channel.socket.shutdown(socket.SHUT_RD)
        except OSError:
            self.channel.handle_close()

    def abortConnection(self) -> None:  # noqa: N802 as of a transport
        """Reset the connection; what the system does not have yet is lost."""
        sock = self.channel.socket
        if isinstance(sock, TLSSocket):
            sock.abandon()
        else:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            self.channel.handle_close()
        finally:
            self.channel.close()


def standing(channel: Any, *, begun: bool, closing: bool = False) -> Standing:
    """Return what `limits.deadlines` is told of a channel."""
    framer = framer_of(channel)
    if framer is None:
        return Standing(begun=begun, closing=closing)
    return Standing(
        begun=begun,
        closing=closing,
        ended=framer.message_ended(),
        length=framer.length if framer.in_message else None,
    )


def tell_of_timeout(
    channel: Any, address: Any, error: TimedOut, hook: Callable[[Any, str], object] | None
) -> None:
    """Log that a deadline of *channel* has passed, and call the application's hook."""
    report(address, error)
    if hook is not None:
        try:
            hook(channel, error.kind)
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            failure(_log, "{channel!r}: on_timeout raised", channel=channel)


class Handshake(asyncore.dispatcher):
    """
    The channel of an accepted socket until TLS is agreed on; then the handler gets the socket.

    Args:
        sock, address: as they were accepted.
        options: a `ServerOptions`.
        serve: called with the socket, which has TLS on it, and *address*.
        done: called with what *serve* returned; with None after a handshake that failed.
    """

    def __init__(
        self,
        sock: socket.socket,
        address: Any,
        options: Any,
        serve: Callable[[Any, Any], Accepted | None],
        done: Callable[[Accepted | None], object],
    ) -> None:
        self._peer = address
        self._serve = serve
        self._done = done
        tls = TLSSocket(
            sock, options, server_side=True, handshake_timeout=options.handshake_timeout
        )
        super().__init__(tls)
        tls.belong_to(self)
        tls.begin()

    @override
    def handle_read(self) -> None:
        self.handle_write()

    @override
    def handle_write(self) -> None:
        """The first event that TLS lets through: the handshake is done."""
        tls = self.socket
        if tls is not None and tls.secure:
            self.del_channel()
            self.socket = None
            self._done(self._serve(tls, self._peer))

    def abandon(self) -> None:
        """The server stops: there will be nobody to talk to."""
        if self.socket is not None:
            self.handle_close()

    @override
    def handle_close(self) -> None:
        self.close()
        self.socket = None
        self._done(None)

    @override
    def handle_error(self) -> None:
        error = sys.exc_info()[1]
        self.close()
        suppressed = _failed.suppressed(type(error).__name__)
        if suppressed is not None:
            _log.info(
                "{peer}: {error}{before}",
                peer=self._peer,
                error=escape(str(error)),
                before=unlogged(suppressed),
            )
        self._done(None)


class Beside:
    """
    The maps that one reactor drives because served handlers use them; there is one for each reactor.
    """

    _all: ClassVar[WeakKeyDictionary[Any, Beside]] = WeakKeyDictionary()

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self._thread = threading.get_ident()
        #: Factories that listen: until the last one has stopped, maps stay attached without channels.
        self.users: WeakSet[Any] = WeakSet()
        self._names = vars(asyncore) | {name: _guarded(name) for name in _CALLS}
        self._attachments: list[_Served] = []

    @classmethod
    def of(cls, reactor: Any) -> Beside:
        """Return the one of *reactor*; of the installed one for None."""
        reactor = reactor or default_reactor()
        return cls._all.get(reactor) or cls._all.setdefault(reactor, cls(reactor))

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Drive each map in which a channel registers meanwhile, in this thread."""
        before = _loop.set_adopter(self.adopt)
        try:
            yield
        finally:
            _loop.set_adopter(before)

    def watch(self, channel: Any, watcher: Watcher) -> Any:
        """
        Tell *watcher* what becomes of *channel*, which is in its map; return what drives it, or None.
        """
        attachment = getattr(_loop.driver_of(channel._map), "attachment", None)
        if attachment is not None:
            attachment.watch(channel._fileno, watcher)
        return attachment

    def is_here(self) -> bool:
        """Return whether this is the reactor's thread."""
        return threading.get_ident() == self._thread

    def leave(self, user: Any) -> None:
        """A factory listens no more."""
        self.users.discard(user)
        for one in list(self._attachments):
            one.detach_if_unused()

    def stop(self) -> None:
        """A handler asked to leave ``loop()``; here that is the reactor."""
        _log.info("a served handler ends the program")
        if getattr(self.reactor, "running", False):
            self.reactor.stop()

    def adopt(self, channels: dict[Any, Any]) -> None:
        """Drive a map in which a channel has just registered, unless somebody does."""
        if not self.is_here():
            return  # its own thread may run a loop()
        kept = _loop.driver_of(channels)
        if kept is not None and not kept.depth:
            _loop.discard(kept)  # of an earlier loop(), which exceptions may end
        driver = _loop.take(channels, self._names)
        if driver is None or driver.depth > 1:
            if driver is not None:
                _loop.release(driver)
            return  # somebody else drives it
        attachment = driver.attachment = _Served(driver, self.reactor, self)
        self._attachments.append(attachment)
        attachment.start()

    def detached(self, attachment: _Served) -> None:
        """*attachment* has ended."""
        self._attachments.remove(attachment)


class _Served(Attachment):
    """The attachment of a map that served handlers use."""

    _expects = False

    def __init__(self, driver: Any, reactor: Any, beside: Beside) -> None:
        super().__init__(driver, reactor)
        self._beside = beside

    @override
    def start(self) -> None:
        # Not asked at once: the first channel is still being made.
        self._driver.start(poll_mode=False)
        if has_descriptors(self.reactor) or hasattr(self.reactor, "add_reader"):
            self._driver.hub.attach(self.reactor, self._turn)
        self.poke()

    @override
    def note(self, fd: Any) -> None:
        super().note(fd)
        if not (self._turns or self._driver.channels) and self._beside.is_here():
            self._settle()
            self.detach_if_unused()

    @override
    def _turn(self, fd: Any = None) -> None:
        before = _loop.set_adopter(self._beside.adopt)
        try:
            super()._turn(fd)
        finally:
            _loop.set_adopter(before)
        if not self._driver.channels:
            self.detach_if_unused()

    @override
    def detach(self) -> None:
        if not self._detached:
            super().detach()
            self._beside.detached(self)

    def detach_if_unused(self) -> None:
        """End, if there is no channel and nobody will bring one."""
        if not (self._driver.channels or self._beside.users):
            self.detach()

    @override
    def _failed(self, error: BaseException) -> bool:
        if isinstance(error, asyncore._reraised_exceptions):
            self._beside.stop()
            return True
        channels = self._driver.channels
        culprits = [one for fd, one in list(channels.items()) if _raises(fd, one)]
        for channel in culprits:
            tell_of_end(channel)
            end(channel)
        return bool(culprits)


#: How a dispatch calls a channel: the functions of ``asyncore``.
_CALLS = ("read", "write", "_exception", "readwrite")


def _guarded(name: str) -> Callable[..., None]:
    """Return a function of ``asyncore`` that ends a channel instead of the loop."""
    call = getattr(asyncore, name)

    def guarded(channel: Any, *flags: int) -> None:
        try:
            call(channel, *flags)
        except asyncore._reraised_exceptions:
            raise
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            failure(_log, "{channel!r}: the handler raised", channel=channel)
            end(channel)

    return guarded


def tell_of_end(channel: Any) -> None:
    """Call ``handle_close`` of *channel*; if it raises, that is logged."""
    try:
        channel.handle_close()
    except Exception:  # noqa: BLE001 it is the application's, and is logged
        failure(_log, "{channel!r}: handle_close raised", channel=channel)


def end(channel: Any) -> None:
    """Close *channel* past what it makes of that."""
    with suppress(Exception):
        asyncore.dispatcher.close(channel)


def _raises(fd: Any, channel: Any) -> bool:
    """
    Return whether *channel* cannot be driven any more: its socket is closed, or a predicate raises,
    which is logged.
    """
    try:
        if has_descriptor(fd):
            os.fstat(channel.socket.fileno())
    except (AttributeError, OSError, ValueError):
        return True
    try:
        channel.readable()
        channel.writable()
    except Exception:  # noqa: BLE001 asyncore lets these end its loop; here one channel
        failure(_log, "{channel!r}: the handler raised", channel=channel)
        return True
    return False
