"""
``asyncore.loop()``: one driver a map, whoever calls; and what channels report to it.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from typing import Any, Protocol

from txasynchat.compat import _interest, _reactor
from txasynchat.compat._attributes import own
from txasynchat.compat._driver import MapDriver

__all__ = [
    "Driver",
    "added",
    "discard",
    "driver_of",
    "emptied",
    "ended",
    "register",
    "release",
    "removed",
    "rest",
    "run",
    "take",
    "touch",
    "waits_for_tls",
]


class Driver(Protocol):
    """
    Who drives the channels of a map: what they report to.

    A `MapDriver` does in ``loop()``, and there is one as long as that goes on; whoever else drives a
    map calls `register`.
    """

    @property
    def channels(self) -> Any:
        """
        The map.
        """

    @property
    def attachment(self) -> Any:
        """
        Who drives it instead of ``loop()``, which is refused then; None if nobody does.
        """

    def add(self, fd: Any) -> None:
        """
        See `added`.
        """

    def remove(self, fd: Any) -> None:
        """
        See `removed`.
        """

    def end(self, fd: Any) -> None:
        """
        See `ended`.
        """

    def touch(self, fd: Any) -> None:
        """
        See `touch`.
        """

    def wait_for(self, fd: Any, doing: str, wants: str) -> None:
        """
        See `waits_for_tls`.
        """

    def rest(self, fd: Any) -> None:
        """
        See `rest`.
        """

    def wake(self) -> None:
        """
        See `emptied`.
        """


_drivers: dict[int, Driver] = {}
_registry = threading.Lock()


class _Kept:
    """
    The driver that a thread used last: it is kept, with its registrations, for the next call.

    The map and its channels are not.  Another map may get the `id` of one that is gone: the driver
    finds out by what is in it.
    """

    driver: MapDriver | None = None

    def keep(self, driver: MapDriver | None) -> None:
        old, self.driver = self.driver, driver
        if old is not None and old is not driver and old.depth == 0:
            discard(old)

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit modules may be gone
            self.keep(None)


class _Local(threading.local):
    def __init__(self) -> None:
        self.kept = _Kept()


_local = _Local()


def driver_of(channels: Any) -> Driver | None:
    """
    Returns:
        the driver of a map, if anything drives it or did so a moment ago.
    """
    return _drivers.get(id(channels))


def register(driver: Driver, owner: Any) -> None:
    """
    Let the channels of a map report to *driver*, which no ``loop()`` takes, while *owner* lives.

    Args:
        driver: of a map that nothing else drives.
        owner: what keeps the map alive, and is not kept alive by *driver*.
    """
    key = id(driver.channels)
    _drivers[key] = driver
    weakref.finalize(owner, _drivers.pop, key, None)


def take(channels: Any, names: dict[str, Any]) -> MapDriver | None:
    """
    Take the driver of a map for this thread, one level deeper if it has it already.

    Returns:
        `None` when something else drives that map right now, or another thread.
    """
    me = threading.get_ident()
    with _registry:
        driver = _drivers.get(id(channels))
        if driver is None:
            driver = _drivers[id(channels)] = MapDriver(channels, names)
        elif not isinstance(driver, MapDriver) or (driver.depth and driver.thread != me):
            return None
        driver.take(channels)
    return driver


def release(driver: MapDriver) -> None:
    """
    The reverse of `take`.
    """
    is_worth_keeping = driver.is_worth_keeping
    if driver.release():
        if not is_worth_keeping:
            discard(driver)
        elif _local.kept.driver is not driver:
            _local.kept.keep(driver)


def discard(driver: MapDriver) -> None:
    """
    Close *driver*; the next ``loop()`` builds a new one.
    """
    with _registry:
        if driver.depth:
            return  # another thread has just taken it
        if _drivers.get(driver.key) is driver:
            del _drivers[driver.key]
    driver.close()


def run(
    channels: Any, timeout: float | None, poll_mode: bool, count: int | None, names: dict[str, Any]
) -> None:
    """
    ``loop()``: passes over *channels* until it is empty or *count* of them are done.

    Args:
        channels: the map.
        timeout: seconds that a pass may last at most; `None` for ever.
        poll_mode: the semantics of poll(2) instead of select(2)'s.
        count: how many passes at most; `None` for any number.
        names: the globals of the facade's asyncore module.

    Raises:
        RuntimeError: a reactor or event loop runs in this thread, and this would block it; or the map
            is attached to one.
        BaseException: what must leave ``loop()``: ExitNow, KeyboardInterrupt, SystemExit, what a
            predicate or a signal handler raised.
    """
    if count is None or timeout != 0:
        _reactor.refuse_inside_a_running_loop()
    driver = take(channels, names)
    if driver is None or driver.attachment is not None:
        if driver is not None:
            release(driver)
        elif getattr(driver_of(channels), "attachment", None) is None:
            # Two threads with one map: the second looks at all of it on each pass, as ever.
            poll = names["poll2" if poll_mode else "poll"]
            while channels and (count is None or count > 0):
                poll(timeout, channels)
                count = None if count is None else count - 1
            return
        raise RuntimeError("this map is attached to a reactor already: that one drives it")
    try:
        driver.start(poll_mode)
        if count is None:
            while channels:
                driver.run_pass(timeout)
        else:
            while channels and count > 0:
                driver.run_pass(timeout)
                count -= 1
    except BaseException:
        driver.distrust()
        raise
    finally:
        release(driver)


# -- what channels report ------------------------------------------------------------------


def added(channels: Any, fd: Any) -> None:
    """
    A channel was put into the map *channels* under *fd*.
    """
    driver = _drivers.get(id(channels))
    if driver is not None:
        driver.add(fd)


def removed(channels: Any, fd: Any) -> None:
    """
    The channel under *fd* was taken out of *channels*; its descriptor is still open.
    """
    driver = _drivers.get(id(channels))
    if driver is not None:
        driver.remove(fd)
        if not channels and isinstance(driver, MapDriver) and not driver.depth:
            discard(driver)


def emptied(channels: Any) -> None:
    """
    The map *channels* was cleared.
    """
    driver = _drivers.get(id(channels))
    if driver is not None:
        if isinstance(driver, MapDriver) and not driver.depth:
            discard(driver)
        else:
            driver.wake()


def ended(channel: Any) -> None:
    """
    *channel* was told of the end of its stream.
    """
    driver, fd = _found(channel)
    if driver is not None:
        driver.end(fd)


def waits_for_tls(channel: Any, doing: str) -> bool:
    """
    Return whether the exception being handled says no more than that TLS has to wait.

    It comes out of a socket that the program wrapped by `ssl` or pyOpenSSL itself, and is no error: the
    rest of a record is still to come, or has still to go. Where TLS waits for the other direction than
    what is done, so does the channel from now on, and does this again when that comes.

    Args:
        channel: whose socket or handler raised it.
        doing: what it was doing, "read" or "write".
    """
    wants = _interest.tls_wants(channel)
    if wants is None:
        return False
    if wants != doing:
        driver, fd = _found(channel)
        if driver is not None:
            driver.wait_for(fd, doing, wants)
    return True


def rest(channel: Any) -> None:
    """
    Leave *channel* alone for a while: it cannot take now what it is told of.
    """
    driver, fd = _found(channel)
    if driver is not None:
        driver.rest(fd)


def _found(channel: Any) -> tuple[Driver | None, Any]:
    """
    Return the driver of *channel* and its key in the map; no driver where it is not in there.
    """
    driver = _drivers.get(id(own(channel, "_map")))
    fd = own(channel, "_fileno")
    if driver is None or fd is None or driver.channels.get(fd) is not channel:
        return None, fd
    return driver, fd


def touch(channel: Any) -> None:
    """
    What *channel* waits for may be another thing now; wakes a ``loop()`` in another thread.
    """
    driver = _drivers.get(id(own(channel, "_map")))
    if driver is not None:
        fd = own(channel, "_fileno")
        if fd is not None:
            driver.touch(fd)


def _after_fork_in_child() -> None:
    # Only this thread went on: no other drives anything.  Hubs start again by themselves.
    global _registry  # noqa: PLW0603 - its holder may not exist here
    _registry = threading.Lock()
    for driver in list(_drivers.values()):
        if isinstance(driver, MapDriver):
            driver.go_on_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
