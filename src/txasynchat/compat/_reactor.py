"""
The Twisted reactor of the thread that runs ``loop()``.

In the main thread that is the installed reactor, the one of ``from twisted.internet import reactor``.
Any other thread gets a private one, when it asks for it. Neither is ever run: ``loop()`` gives it
turns, so it can be called repeatedly and nested, and ``reactor.run()`` stays possible afterwards. A
reactor exists only if somebody asked for it; otherwise ``loop()`` waits on its hub alone.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from txasynchat.compat import _renewal
from txasynchat.hub.descriptors import pollers

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase

__all__ = [
    "current_reactor",
    "here",
    "interrupt",
    "refuse_inside_a_running_loop",
    "rest",
    "running_event_loop",
    "turn",
]


class _Private:
    # A thread's own reactor, which gives its descriptors back when the thread ends.

    def __init__(self) -> None:
        from twisted.internet.error import ConnectionAborted  # noqa: PLC0415 - see current_reactor
        from twisted.python.failure import Failure  # noqa: PLC0415 - see current_reactor

        self.pid = os.getpid()
        self.reactor = _new_reactor()
        _renewal.know(self.reactor)
        self.lost = Failure(ConnectionAborted())  # type: ignore[no-untyped-call] # no types there

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit modules may be gone
            reactor: Any = self.reactor
            if os.getpid() != self.pid:
                # In the child of a fork, where the parent's threads end. In the parent the thread goes
                # on with this reactor, and both share what an epoll reactor has registered.
                _abandoned.append(reactor)
                return
            rest(reactor)
            _renewal.renew(reactor)  # or this would close what is somebody else's by now
            for one in (*reactor.removeAll(), *reactor._internalReaders):
                reactor.removeReader(one)
                one.connectionLost(self.lost)
            poller: Any = getattr(reactor, "_poller", None)
            if hasattr(poller, "close"):
                pollers.close(poller)


class _Local(threading.local):
    private: _Private | None = None


_local = _Local()
_main_thread = threading.main_thread().ident
# In the child of a fork: the parent's private reactors, never to be touched.
_abandoned: list[ReactorBase] = []
# In the child of a fork: the reactor that was installed before, and the parent's process id.
_inherited: tuple[Any, int] | None = None


def _after_fork_in_child() -> None:
    global _main_thread, _inherited  # noqa: PLW0603 - the forking thread is the main one now
    _main_thread = threading.get_ident()
    _local.private = None
    _inherited = sys.modules.get("twisted.internet.reactor"), os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def current_reactor() -> Any:
    """
    Return the reactor whose timers and descriptors are served while ``loop()`` runs in this thread.

    Its `callLater`, endpoints, `callFromThread` and thread pool work, but only while ``loop()`` runs.
    If a reactor already runs in this thread, as with an attached map, it is that one.

    Returns:
        the installed reactor in the main thread (this installs the default one if there is none yet);
        a private one in any other thread, the same at each call.
    """
    reactor = here() or _running_here()
    if reactor is not None:
        return reactor
    if threading.current_thread() is threading.main_thread():
        from twisted.internet import reactor as installed  # noqa: PLC0415 - asked for by a program

        if _is_ours(installed):
            return installed
    _local.private = private = _Private()
    return private.reactor


def here() -> Any:
    """Return the reactor that ``loop()`` has to serve in this thread, `None` if there is none."""
    if threading.get_ident() == _main_thread:
        reactor: Any = sys.modules.get("twisted.internet.reactor")
        if reactor is not None and _is_ours(reactor):
            return reactor
    return None if _local.private is None else _local.private.reactor


def _is_ours(reactor: Any) -> bool:
    # Whether nobody runs it or shares its descriptors.
    if getattr(reactor, "running", True):
        return False
    if _inherited is None or reactor is not _inherited[0]:
        return True
    return os.getppid() != _inherited[1]  # a daemon, whose parent is gone


def running_event_loop() -> Any:
    """
    Return the asyncio event loop that runs in this thread, `None` if there is none; loads no asyncio.
    """
    events: Any = sys.modules.get("asyncio.events")
    return None if events is None else events._get_running_loop()


def _running_here() -> Any:
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if getattr(reactor, "running", False):
        from twisted.python import threadable  # noqa: PLC0415 - there is a reactor, so it is loaded

        if threadable.isInIOThread():  # type: ignore[no-untyped-call] # Twisted has no types here
            return reactor
    return None


def refuse_inside_a_running_loop() -> None:
    """
    Raises:
        RuntimeError: a Twisted reactor or an asyncio event loop runs in this thread: it must not block.
    """
    if running_event_loop() is not None:
        runs = "an asyncio event loop"
    elif _running_here() is not None:
        runs = "the Twisted reactor"
    else:
        return
    raise RuntimeError(
        f"asyncore.loop() would block {runs}, which runs in this thread: "
        "let it drive the channels, by txasynchat.compat.attach(map), or call loop(timeout=0, count=1)"
    )


def _new_reactor() -> ReactorBase:
    if hasattr(select, "epoll"):
        from twisted.internet.epollreactor import EPollReactor  # noqa: PLC0415 - not installed

        return EPollReactor()  # type: ignore[no-untyped-call] # Twisted has no types here
    if hasattr(select, "kqueue"):
        from twisted.internet.kqreactor import KQueueReactor  # noqa: PLC0415 - not installed

        return KQueueReactor()  # type: ignore[no-untyped-call] # Twisted has no types here
    from twisted.internet.selectreactor import SelectReactor  # noqa: PLC0415 - not installed

    return SelectReactor()


def turn(reactor: Any, timeout: float | None) -> None:
    """
    Give *reactor*, which does not run, one turn: what is due, then what is ready.

    It waits for *timeout* seconds at most; None is until the reactor's next timer. Not ``iterate``,
    which would sleep past a timer that is set during this very turn.
    """
    loop = getattr(reactor, "_asyncioEventloop", None)
    if loop is not None:
        if running_event_loop() is not None:
            return  # loop(timeout=0, count=1) inside a running event loop: a second one cannot run
        _start_pool(reactor)
        stop = None if timeout is None else loop.call_later(timeout, loop.stop)
        loop.run_forever()
        if stop is not None:
            stop.cancel()
        return
    reactor.runUntilCurrent()
    _start_pool(reactor)
    until_due = reactor.timeout()
    if timeout is None or (until_due is not None and until_due < timeout):
        timeout = until_due
    try:
        reactor.doIteration(timeout)
    except OSError:
        if not _renewal.renew(reactor):
            raise


def _start_pool(reactor: Any) -> None:
    pool = getattr(reactor, "threadpool", None)
    if pool is not None and not pool.started and not pool.joined:
        pool.start()  # run() would have done so


def interrupt(reactor: Any) -> None:
    """End the current `turn`, from inside it."""
    loop = getattr(reactor, "_asyncioEventloop", None)
    if loop is not None:
        loop.stop()


def rest(reactor: Any = None) -> None:
    """
    End the idle pool threads of *reactor*, by default this thread's, after its outermost ``loop()``:
    they keep the process alive.
    """
    pool = getattr(here() if reactor is None else reactor, "threadpool", None)
    if pool is not None and pool.started:
        smallest, largest = pool.min, pool.max
        pool.adjustPoolsize(0, 0)
        pool.min, pool.max = smallest, largest
        pool.started = False
