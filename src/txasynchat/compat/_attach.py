"""Channels beside other things in a reactor or event loop that already runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from txasynchat.compat import _loop
from txasynchat.compat._reactor import running_event_loop

if TYPE_CHECKING:
    from txasynchat.compat._driver import MapDriver

__all__ = ["Attachment", "attach"]

#: Seconds after which channels are asked although nothing happens to any of them.
TICK = 0.1
#: Events handled before the reactor's other users get their turn.
BATCH = 512


class Attachment:
    """
    A map that a running reactor drives; made by `attach`.

    Attributes:
        reactor: the reactor or event loop.
        exception: what ended the attachment, as it would have ended ``loop()``: ExitNow, SystemExit,
            an error in a predicate; `None` if nothing has.
    """

    def __init__(self, driver: MapDriver, reactor: Any) -> None:
        self.reactor = reactor
        self.exception: BaseException | None = None
        self._driver = driver
        if hasattr(reactor, "callLater"):
            self._call_later, self._call_from_thread = reactor.callLater, reactor.callFromThread
        else:
            self._call_later = reactor.call_later
            self._call_from_thread = reactor.call_soon_threadsafe
        self._tick: Any = None
        self._poked = False
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
            self._call_from_thread(self._look)

    def _look(self) -> None:
        self._poked = False
        if not self._detached:
            self._turn()

    def _ticked(self) -> None:
        self._tick = None
        self._turn()

    def _turn(self) -> None:
        try:
            ready = self._driver.turn(BATCH)
        except BaseException as error:
            self.exception = error
            self.detach()
            if isinstance(error, KeyboardInterrupt):
                raise
            from twisted.logger import Logger  # noqa: PLC0415 - most attachments end in order

            Logger().failure(
                "a map of asyncore channels is detached, because of an exception that ends loop()"
            )
            return
        if self._detached:
            return
        if ready:
            self.poke()
        if self._tick is None:
            self._tick = self._call_later(TICK, self._ticked)


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
        reactor = _default_reactor()
    driver = _loop.take(channels, vars(asyncore))
    if driver is None or driver.depth > 1:
        if driver is not None:
            _loop.release(driver)
        raise RuntimeError(
            "this map is already driven, by a loop() or another attach(): end that first"
        )
    attachment = driver.attachment = Attachment(driver, reactor)
    try:
        driver.start(poll_mode=False)
        driver.hub.attach(reactor, attachment._turn)
        attachment._look()
    except BaseException:
        attachment.detach()
        raise
    return attachment


def _default_reactor() -> Any:
    installed: Any = sys.modules.get("twisted.internet.reactor")
    loop = running_event_loop()
    if loop is not None and getattr(installed, "_asyncioEventloop", None) is not loop:
        return loop
    from twisted.internet import reactor  # noqa: PLC0415 - loaded only where it is used

    return reactor
