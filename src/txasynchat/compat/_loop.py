"""``asyncore.loop()``, with one driver for each map; and what channels report to it."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from txasynchat.compat import _interest, _reactor
from txasynchat.compat._attributes import own
from txasynchat.compat._driver import MapDriver

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "added", "discard", "driver_of", "emptied", "ended", "release", "removed", "rest", "run",
    "set_adopter", "take", "tell", "touch", "waits_for_tls",
]  # fmt: skip

_drivers: dict[int, MapDriver] = {}
_registry = threading.Lock()


class _Kept:
    """
    The driver that a thread used last, kept with its registrations for the next call.

    The map and its channels are not kept. A new map may have the `id` of a former one: the driver finds
    out by its content.
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


def driver_of(channels: Any) -> MapDriver | None:
    return _drivers.get(id(channels))


_adopter: Callable[[Any], None] | None = None


def set_adopter(adopter: Callable[[Any], None] | None) -> Callable[[Any], None] | None:
    """
    Have *adopter* called with each map that gets a channel while nothing drives it; return the former.
    """
    global _adopter
    before, _adopter = _adopter, adopter
    return before


def take(channels: Any, names: dict[str, Any]) -> MapDriver | None:
    """
    Take the driver of a map for this thread, one level deeper if this thread has it already; return
    `None` if another thread drives that map now.
    """
    me = threading.get_ident()
    with _registry:
        driver = _drivers.get(id(channels))
        if driver is None:
            driver = _drivers[id(channels)] = MapDriver(channels, names)
        elif driver.depth and driver.thread != me:
            return None
        driver.take(channels)
    return driver


def release(driver: MapDriver) -> None:
    if driver.release():
        discard(driver)
    elif _local.kept.driver is not driver:
        _local.kept.keep(driver)


def discard(driver: MapDriver) -> None:
    """Close *driver*, unless something is driven by it; the next ``loop()`` builds a new one."""
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

    Args and errors are those of `asyncore.loop`, which has the facade's globals as *names*. A map that
    is attached is a RuntimeError too.
    """
    if count is None or timeout != 0:
        _reactor.refuse_inside_a_running_loop()
    driver = take(channels, names)
    if driver is None or driver.attachment is not None:
        if driver is not None:
            release(driver)
        elif getattr(driver_of(channels), "attachment", None) is None:
            # Two threads with one map: the second asks all channels on each pass, as the stdlib does.
            poll = names["poll2" if poll_mode else "poll"]
            repeat(lambda timeout: poll(timeout, channels), timeout, channels, count)
            return
        raise RuntimeError("this map is attached to a reactor, which drives it: detach() it first")
    try:
        driver.start(poll_mode)
        repeat(driver.run_pass, timeout, channels, count)
    except BaseException:
        driver.distrust()
        raise
    finally:
        release(driver)


def repeat(one_pass: Any, timeout: float | None, channels: Any, count: int | None) -> None:
    """Call *one_pass* with *timeout* until *channels* is empty, or *count* times."""
    while channels and (count is None or count > 0):
        one_pass(timeout)
        count = None if count is None else count - 1


# -- what channels report ------------------------------------------------------------------


def added(channels: Any, fd: Any) -> None:
    """A channel was put into the map *channels* under *fd*."""
    driver = _drivers.get(id(channels))
    if _adopter is not None and (driver is None or not driver.depth):
        _adopter(channels)
        driver = _drivers.get(id(channels))
    if driver is not None:
        driver.add(fd)


def removed(channels: Any, fd: Any) -> None:
    """The channel under *fd* was taken out of *channels*; its descriptor is still open."""
    driver = _drivers.get(id(channels))
    if driver is not None:
        driver.remove(fd)
        if not channels:
            discard(driver)


def emptied(channels: Any) -> None:
    """The map *channels* was cleared."""
    driver = _drivers.get(id(channels))
    if driver is not None:
        driver.wake()
        discard(driver)


def ended(channel: Any) -> None:
    """*channel* was notified of the end of its stream."""
    driver, fd = _found(channel)
    if driver is not None:
        driver.end(fd)


def tell(channels: Any, fd: Any, *, now: bool = False) -> None:
    """
    What stands for a descriptor under *fd* may have an event; in the thread of the passes.

    Handlers are called *now*, if a reactor drives the map and calls none of them already.
    """
    driver = _drivers.get(id(channels))
    if driver is not None:
        driver.tell(fd, now)


def waits_for_tls(channel: Any, doing: str) -> bool:
    """
    Return whether the exception being handled says no more than that TLS has to wait.

    A socket that the program itself wrapped by `ssl` or pyOpenSSL raises it. It is not an error: the
    rest of a record has still to arrive, or to be sent. If TLS waits for the other direction than
    *doing*, "read" or "write", so does the channel from now on, and then tries again.
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
    """Leave *channel* alone for a while, because it cannot handle its events now."""
    driver, fd = _found(channel)
    if driver is not None:
        driver.rest(fd)


def _found(channel: Any) -> tuple[MapDriver | None, Any]:
    """Return the driver of *channel* and its key in the map; None as driver if it is not in the map."""
    driver = _drivers.get(id(own(channel, "_map")))
    fd = own(channel, "_fileno")
    if driver is None or fd is None or driver.channels.get(fd) is not channel:
        return None, fd
    return driver, fd


def touch(channel: Any) -> None:
    """*channel* may wait for something else now; this wakes a ``loop()`` in another thread."""
    driver = _drivers.get(id(own(channel, "_map")))
    if driver is not None:
        fd = own(channel, "_fileno")
        if fd is not None:
            driver.touch(fd)


def _after_fork_in_child() -> None:
    # Only this thread exists here, so no other drives anything. Hubs start again by themselves.
    global _registry  # noqa: PLW0603 - its holder may not exist here
    _registry = threading.Lock()
    for driver in list(_drivers.values()):
        driver.go_on_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
