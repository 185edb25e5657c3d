"""
New descriptors for a reactor whose own were closed by the program.

Daemons close descriptors that they do not know. A reactor that ``loop()`` serves then gets new ones.
The program's own in it, ports and connections, stay closed. An asyncio event loop cannot be repaired
from outside; a reactor on one gets only a new waker.
"""

from __future__ import annotations

import select
import weakref
from contextlib import suppress
from typing import Any

from txasynchat.hub.descriptors import Owned, is_registered, pollers

__all__ = ["know", "renew"]


# Each reactor's waker, and the two ends of its pipe.
_known: weakref.WeakKeyDictionary[Any, tuple[Any, Owned, Owned]] = weakref.WeakKeyDictionary()


def know(reactor: Any) -> None:
    """Remember the descriptors of *reactor*, which was just made."""
    epoll = _epoll_of(reactor)
    if epoll is not None:
        pollers.hold(epoll)
    _waker_is_ours(reactor)


def renew(reactor: Any) -> bool:
    """
    Give *reactor*, which does not run, new descriptors in place of those of its own that the program
    closed; return whether there were any.
    """
    waker = getattr(reactor, "waker", None)
    if waker is None:
        return False
    if reactor not in _known:
        know(reactor)
    epoll = _epoll_of(reactor)
    waker_is_ours = _waker_is_ours(reactor)
    if waker_is_ours and (epoll is None or is_registered(waker.fileno(), epoll)):
        return False
    if not waker_is_ours:
        _forget(reactor, waker)
    if epoll is not None:
        _replace_epoll(reactor, epoll)
    if not waker_is_ours:
        reactor.waker = None
        reactor.installWaker()
    know(reactor)
    return True


def _epoll_of(reactor: Any) -> Any:
    poller = getattr(reactor, "_poller", None)
    return poller if isinstance(poller, getattr(select, "epoll", ())) else None


def _waker_is_ours(reactor: Any) -> bool:
    waker = reactor.waker
    known = _known.get(reactor)
    if known is None or known[0] is not waker:
        try:
            known = waker, Owned(waker.i), Owned(waker.o)
        except AttributeError:
            return True  # it is not a pipe, so nothing is known of it
        except OSError:
            return False
        if not known[1].is_same(known[2]):
            return False
        _known[reactor] = known
    return known[1].is_ours() and known[2].is_ours()


def _forget(reactor: Any, waker: Any) -> None:
    # It is this waker that goes, whoever has its numbers now.
    reactor._internalReaders.discard(waker)
    if _epoll_of(reactor) is None:
        with suppress(OSError):
            reactor.removeReader(waker)
        return
    for number in [number for number, one in reactor._selectables.items() if one is waker]:
        _strike(reactor, number)


def _strike(reactor: Any, number: int) -> None:
    del reactor._selectables[number]
    reactor._reads.discard(number)
    reactor._writes.discard(number)


def _replace_epoll(reactor: Any, epoll: Any) -> None:
    pollers.lose(epoll)
    fresh = reactor._poller = select.epoll()
    for number in list(reactor._selectables):
        mask = select.EPOLLIN if number in reactor._reads else 0
        mask |= select.EPOLLOUT if number in reactor._writes else 0
        try:
            fresh.register(number, mask)
        except OSError:  # closed by the program: the old epoll would not have reported it either
            _strike(reactor, number)
