"""Channels beside other things in a reactor or event loop that already runs."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

from txasynchat.compat import _loop
from txasynchat.compat._reactor import running_event_loop

if TYPE_CHECKING:
    from txasynchat.compat._driver import MapDriver

__all__ = ["Attachment", "attach", "default_reactor"]

#: Seconds after which channels are asked although nothing happens to any of them.
TICK = 0.1
#: Events handled before the reactor's other users get their turn.
BATCH = 512


class Watcher(Protocol):
    """Somebody who has to know what becomes of a channel."""

    def settle(self, channel: Any) -> bool:
        """
        Called after a turn in which something may have; return whether to watch on.

        Args:
            channel: who is in the map where it was; None if nobody.
        """


class Attachment:
    """
    A map that a running reactor drives; made by `attach`.

    Attributes:
        reactor: the reactor or event loop.
        exception: what ended the attachment, as it would have ended ``loop()``: ExitNow, SystemExit,
            an error in a predicate; `None` if nothing has.
        watchers: by the keys of their channels.
    """

    #: A program may put channels into the map at any time, and tell nobody.
    _expects = True

    def __init__(self, driver: MapDriver, reactor: Any) -> None:
        self.reactor = reactor
        self.exception: BaseException | None = None
        self._driver = driver
        self.watchers: dict[Any, Watcher] = {}
        # Keys of channels that may have left, or have had an event.
        self._noted: list[Any] = []
        if hasattr(reactor, "callLater"):
            self._call_later: Any = reactor.callLater
            # A clock has no threads.
            self._call_from_thread: Any = getattr(reactor, "callFromThread", None)
        else:
            self._call_later = reactor.call_later
            self._call_from_thread = reactor.call_soon_threadsafe
        # The reactor's, once it is known.
        self._thread = 0
        self._tick: Any = None
        self._poked = False
        self._turns = 0
        self._detached = False

    def detach(self) -> None:
        """Take the map away from the reactor. Channels stay open and in the map. May be repeated."""
        if self._detached:
            return
        self._detached = True
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        self._driver.attachment = None
        _loop.release(self._driver)

    def poke(self) -> None:
        """Have the reactor's thread look soon at what changed; from any thread."""
        if not self._poked and not self._detached:
            self._poked = True
            if self._call_from_thread is None or self._thread == threading.get_ident():
                self._call_later(0, self._look)  # does not write to the reactor's waker
            else:
                self._call_from_thread(self._look)

    def watch(self, fd: Any, watcher: Watcher) -> None:
        """Tell *watcher* what becomes of the channel that is in the map under *fd* now."""
        earlier = self.watchers.get(fd)
        if earlier is not None:
            earlier.settle(None)  # the number is another's already
        self.watchers[fd] = watcher

    def note(self, fd: Any) -> None:
        """Something happened to the channel under *fd*, or it has left the map."""
        if fd in self.watchers:
            self._noted.append(fd)

    def serve(self, fd: Any) -> bool:
        """See to an event of the channel under *fd*; return False if that has to wait for a turn."""
        if self._turns or self._detached or self._thread != threading.get_ident():
            return False
        self._turn(fd)
        return True

    def start(self) -> None:
        """Begin."""
        self._driver.start(poll_mode=False)
        self._driver.hub.attach(self.reactor, self._turn)
        self._look()

    def _look(self) -> None:
        self._poked = False
        if not self._detached:
            self._turn()

    def _ticked(self) -> None:
        self._tick = None
        # Whoever takes a channel out of the map by hand tells nobody.
        channels = self._driver.channels
        self._noted += [fd for fd in self.watchers if fd not in channels]
        self._turn()

    def _turn(self, fd: Any = None) -> None:
        self._thread = threading.get_ident()
        self._turns += 1
        try:
            try:
                ready = self._driver.turn(BATCH) if fd is None else self._driver.serve(fd)
            except BaseException as error:  # noqa: BLE001 raised again, or told of
                if not self._failed(error):
                    self._end(error)
                    return
                ready = True
            if self._noted:
                self._settle()
            watcher = None if fd is None else self.watchers.get(fd)
            if watcher is not None and not watcher.settle(self._driver.channels.get(fd)):
                self.watchers.pop(fd, None)
        finally:
            self._turns -= 1
        if self._detached:
            return
        if ready:
            self.poke()
        if self._tick is None and (self._expects or self._driver.channels):
            self._tick = self._call_later(TICK, self._ticked)

    def _end(self, error: BaseException) -> None:
        self.exception = error
        self.detach()
        if isinstance(error, KeyboardInterrupt):
            raise error
        from twisted.logger import Logger  # noqa: PLC0415 - most attachments end in order

        Logger().failure(
            "a map of asyncore channels is detached, because of an exception that ends loop()"
        )

    def _settle(self) -> None:
        noted, self._noted = dict.fromkeys(self._noted), []
        for fd in noted:
            watcher = self.watchers.get(fd)
            if watcher is not None and not watcher.settle(self._driver.channels.get(fd)):
                self.watchers.pop(fd, None)

    def _failed(self, error: BaseException) -> bool:  # noqa: ARG002
        """Return whether the attachment goes on after *error*."""
        return False


def attach(map: dict[Any, Any] | None = None, reactor: Any = None) -> Attachment:  # noqa: A002
    """
    Let a reactor that runs, or will run, drive the channels of a map, instead of ``loop()``.

    Their handlers then live beside Twisted services: Deferreds, `callLater` and endpoints work in them.
    The map may be empty now or at any time. The semantics are those of select mode.

    Args:
        map: descriptor to channel; ``asyncore.socket_map`` if not given.
        reactor: a Twisted reactor, or an asyncio event loop. If not given, the asyncio event loop that
            runs in this thread without Twisted, or else the installed reactor.

    Returns:
        the handle to `Attachment.detach` it.

    Raises:
        RuntimeError: the map is attached already, or a ``loop()`` drives it.
    """
    from txasynchat.compat import asyncore  # noqa: PLC0415 - loaded only where it is used

    channels = asyncore.socket_map if map is None else map
    if reactor is None:
        reactor = default_reactor()
    driver = _loop.take(channels, vars(asyncore))
    if driver is None or driver.depth > 1:
        if driver is not None:
            _loop.release(driver)
        raise RuntimeError(
            "this map is already driven, by a loop() or another attach(): end that first"
        )
    attachment = driver.attachment = Attachment(driver, reactor)
    try:
        attachment.start()
    except BaseException:
        attachment.detach()
        raise
    return attachment


def default_reactor() -> Any:
    """
    Return the asyncio event loop that runs in this thread without Twisted, or the installed reactor.
    """
    installed: Any = sys.modules.get("twisted.internet.reactor")
    loop = running_event_loop()
    if loop is not None and getattr(installed, "_asyncioEventloop", None) is not loop:
        return loop
    from twisted.internet import reactor  # noqa: PLC0415 - loaded only where it is used

    return reactor
