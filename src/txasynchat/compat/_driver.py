"""
What drives a map of channels: a `MapDriver`, over a hub; `_loop` has one for each map.

A pass asks the channels what they wait for (`_asking`), waits for that (`_waiting`), and calls their
handlers (`_dispatch`).  What another thread reports meanwhile is noted, and wakes the wait; a handler's
own changes are seen to when it has returned.

A ``loop()`` whose map has the same channels as at the end of the last one goes on with its passes,
and with its time.  A socket that was closed and a predicate that was put on a channel are noticed at
once; what else was changed meanwhile of a steady channel, with no method called, is found by the next
full pass, at most 100 ms after the last.  Between two calls of ``loop()`` neither the map nor what is
in it is kept alive.

This module does not know who is asked and why, nor what an event means.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from txasynchat.compat._asking import Asking
from txasynchat.compat._dispatch import Dispatch
from txasynchat.compat._entries import Entries
from txasynchat.compat._waiting import Waiting
from txasynchat.compat._wants import DIRECTIONS, Wants
from txasynchat.hub import Hub

__all__ = ["MapDriver"]

#: Events of one turn, if there are fewer channels.
FEW = 16

_get_ident = threading.get_ident
_monotonic = time.monotonic


class MapDriver:
    """
    The passes over one map.

    What channels report comes from any thread; the rest is for the one that runs the passes.

    Args:
        channels: the map, descriptor to channel; kept alive, like what is in it, only while it is
            driven.
        names: the globals of the facade's asyncore module.

    Attributes:
        key: the map's `id`.
        hub: waits for the channels.
        depth: how many ``loop()`` calls, nested in each other, use this driver.
        thread: in which thread.
        attachment: what drives the map instead of ``loop()``; None if nothing does.
        waiting: the waits between the passes.
    """

    def __init__(self, channels: dict[Any, Any], names: dict[str, Any]) -> None:
        self.key = id(channels)
        self.hub = Hub()
        self.depth = 0
        self.thread = 0
        self.attachment: Any = None
        self._entries = Entries(channels)
        self._wants = Wants(self._entries, self.hub)
        self._asking = Asking(self._wants)
        self._dispatch = Dispatch(self._wants, self._asking, names)
        self.waiting = Waiting(self._wants, self._asking, self._dispatch)

    # -- what channels report: see `_loop`

    @property
    def channels(self) -> dict[Any, Any]:
        return self._entries.channels

    def add(self, fd: Any) -> None:
        self._wants.depart(fd)
        if self.depth and _get_ident() != self.thread:
            self._entries.newcomers.announce(fd)
        else:
            self._entries.newcomers.moments.pop(fd, None)
            self._asking.touched[fd] = None
        self.wake()

    def remove(self, fd: Any) -> None:
        if self.attachment is not None:
            self.attachment.note(fd)
        entries = self._entries
        entries.newcomers.moments.pop(fd, None)
        if entries.batches and _get_ident() == self.thread:
            self._wants.drop(fd)  # by a handler: nothing else is under way
        else:
            entries.departed[fd] = None  # first: see `Dispatch.dispatch`
            self._wants.depart(fd)
        if self.depth:
            self.wake()

    def touch(self, fd: Any) -> None:
        self._asking.touch(fd)
        self.wake()

    def tell(self, fd: Any, now: bool) -> None:
        attachment = self.attachment
        if attachment is not None:
            if now and attachment.serve(fd):
                return
            attachment.note(fd)
        self._wants.buffered[fd] = None
        self.wake()

    def wake(self) -> None:
        """Let what was changed just now take effect, if the driver sits in a wait."""
        if self.waiting.is_going_on:
            self.hub.wake()
        elif self.attachment is not None and not self._entries.batches:
            self.attachment.poke()

    def end(self, fd: Any) -> None:
        if self._wants.backoff.end(fd):
            self._asking.rest(fd)

    def rest(self, fd: Any) -> None:
        self._asking.rest(fd)

    def wait_for(self, fd: Any, doing: str, wants: str) -> None:
        self._wants.tls_waits[fd] = DIRECTIONS[doing], DIRECTIONS[wants]
        self.touch(fd)

    # -- the beginning and the end

    def take(self, channels: dict[Any, Any]) -> None:  # for this thread, or one level deeper
        self._entries.channels = channels
        self.thread = _get_ident()
        self.depth += 1

    def release(self) -> bool:
        """
        Undo `take`; return whether to `close` this, because nothing is driven any more, and there are
        no channels for another ``loop()``, or one of them or a key would be kept alive until then.
        """
        if self.depth > 1:
            self.depth -= 1
            return False
        entries = self._entries
        channels, entries.channels = entries.channels, {}  # it may be dropped by the program
        try:
            self._asking.release()
            self.waiting.end()
        finally:
            self.depth = 0  # from here on another thread may take it
        return not channels or entries.is_holding or bool(entries.keys)

    def go_on_in_child(self) -> None:  # of a fork, in its one thread
        if self.attachment is None:
            self.hub.abandon()
        if self.thread != _get_ident():
            self.depth = 0
            self._entries.batches.clear()

    def close(self) -> None:
        self.hub.close()
        self._entries.sort({})

    # -- passes

    def start(self, poll_mode: bool) -> None:
        """
        A ``loop()`` begins: its first pass is a full one, unless all is as the last one left it.

        Programs that call ``loop(count=1)`` in a circle would have nothing but full passes otherwise. A
        nested one begins in the middle of a dispatch, where handlers may have changed anything.
        """
        if (
            self.depth > 1
            or poll_mode is not self._wants.poll_mode
            or not self._entries.are_current()
        ):
            self.distrust()
        self._wants.poll_mode = poll_mode
        self._asking.look_again()

    def distrust(self) -> None:
        self._asking.next_full = 0.0  # the next pass is a full one

    def run_pass(self, timeout: float | None) -> None:
        """
        Do what the stdlib's ``poll()`` does: ask, wait up to *timeout* seconds, `None` for ever, and
        dispatch what happened.
        """
        now = _monotonic()
        full = self.waiting.prepare(now)
        events = self.waiting.wait(timeout, now, full)
        if events:
            self._dispatch.dispatch(events)

    def turn(self, limit: int) -> bool:
        """
        Passes that do not wait, for a reactor that runs; with *limit* events at most.

        What is ready soon need not wait for the reactor's next iteration, which costs as much as two
        messages: there are about as many events as channels.

        Return whether another turn is due at once, with nothing that would tell the reactor so.
        """
        self.thread = _get_ident()  # a reactor may run in another one than it was attached in
        wants = self._wants
        hub = self.hub
        room = min(max(len(self._entries.channels), FEW), limit)
        self.waiting.prepare(_monotonic())
        while room > 0 and self.depth:  # a handler may detach the map
            if wants.closed:
                wants.refuse_closed()
            events = hub.wait(0.0, room)
            if wants.buffered:
                events = wants.with_ready(events)
            if not events:
                break
            room -= len(events)
            self._dispatch.dispatch(events)
            self._asking.refresh()
            if hub.busy:
                break
        return hub.busy or (bool(wants.buffered or wants.closed) and bool(wants.ready()))

    def serve(self, fd: Any) -> bool:
        """
        Dispatch what happened to the channel under *fd*, which has no descriptor, outside a turn.

        Return whether a turn is due, for the rest, or others who may wait for something else now.
        """
        wants = self._wants
        asking = self._asking
        entries = self._entries
        always = entries.always
        if asking.recent or asking.touched or entries.departed or not entries.seem_current():
            asking.refresh(ask_always=False)
        bits = wants.poll(fd)
        if bits:
            self._dispatch.dispatch_one(fd, bits)
            if fd in always:
                asking.touched[fd] = None
            if asking.touched or asking.recent:
                asking.refresh(ask_always=False)
            if wants.poll(fd):
                wants.buffered[fd] = None
        return bool(wants.buffered) or len(always) > (fd in always)
