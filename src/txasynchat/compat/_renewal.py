"""
New descriptors for a reactor whose own were closed by the program.

Daemons close descriptors that they do not know. A reactor that ``loop()`` serves then gets new ones.
The program's own in it, ports and connections, stay closed. An asyncio event loop cannot be repaired
from outside; a reactor on one gets only a new waker.
"""

from __future__ import annotations

import errno
import os
import select
import weakref
from contextlib import suppress
from typing import Any

from txasynchat.hub.descriptors import Owned, pollers

__all__ = ["know", "renew"]


class _Pipe:
    """
    The ends of the pipe that wakes a reactor.

    Raises:
        AttributeError: it is not a pipe.
        OSError: it was closed already.
    """

    def __init__(self, waker: Any) -> None:
        self.waker = waker
        self.ends = Owned(waker.i), Owned(waker.o)
        if not self.ends[0].is_same(self.ends[1]):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def is_ours(self) -> bool:
        return all(end.is_ours() for end in self.ends)


_known: weakref.WeakKeyDictionary[Any, _Pipe] = weakref.WeakKeyDictionary()


def know(reactor: Any) -> None:
    """
    Remember the descriptors of *reactor*, which was just made.
    """
    epoll = _epoll_of(reactor)
    if epoll is not None:
        pollers.hold(epoll)
    _waker_is_ours(reactor)


def renew(reactor: Any) -> bool:
    """
    Give *reactor* new descriptors in place of those of its own that the program closed.

    Args:
        reactor: it does not run.

    Returns:
        whether there were any.
    """
    waker = getattr(reactor, "waker", None)
    if waker is None:
        return False
    if reactor not in _known:
        know(reactor)
    epoll = _epoll_of(reactor)
    waker_is_ours = _waker_is_ours(reactor)
    if waker_is_ours and (epoll is None or _knows(epoll, waker)):
        return False
    if not waker_is_ours:
        _forget(reactor, waker)
    if epoll is not None:
        _replace(reactor, epoll)
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
    pipe = _known.get(reactor)
    if pipe is None or pipe.waker is not waker:
        try:
            pipe = _known[reactor] = _Pipe(waker)
        except AttributeError:
            return True  # it is not a pipe, so nothing is known of it
        except OSError:
            return False
    return pipe.is_ours()


def _knows(epoll: Any, waker: Any) -> bool:
    """
    Return whether *waker* is registered with *epoll*, as it is while both are the reactor's own.
    """
    try:
        epoll.register(waker.fileno(), 0)
    except FileExistsError:
        return True
    except OSError:
        return False
    epoll.unregister(waker.fileno())  # it is a stranger's
    return False


def _forget(reactor: Any, waker: Any) -> None:
    """
    Make *reactor* forget *waker*, whoever has its numbers now.
    """
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


def _replace(reactor: Any, epoll: Any) -> None:
    """
    Build the epoll of *reactor* anew.
    """
    pollers.lose(epoll)
    fresh = reactor._poller = select.epoll()
    for number in list(reactor._selectables):
        mask = select.EPOLLIN if number in reactor._reads else 0
        mask |= select.EPOLLOUT if number in reactor._writes else 0
        try:
            fresh.register(number, mask)
        except OSError:  # closed by the program: the old epoll would not have reported it either
            _strike(reactor, number)
