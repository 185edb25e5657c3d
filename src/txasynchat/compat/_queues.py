"""
What a channel has to send: queues that report when somebody else puts something in.

`producer_fifo` and `out_buffer` are public, and programs fill those of other channels: a relay, a room,
a timer, a thread. ``asyncore`` notices because it asks every channel on every pass. Here the queue
reports its channel, by `_loop.touch`, and only that one is asked.

A queue that cannot report, because the program replaced ours, makes its channel one that is asked on
every pass: see `_interest.kind_of`.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress
from functools import wraps
from itertools import repeat, starmap
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any, Self

from txasynchat.compat import _loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "BYTES", "Fifo", "OutBuffer", "append", "join_first", "put", "put_first", "settle", "take_all",
]  # fmt: skip

#: What is sent as it is.
BYTES = (bytes, bytearray, memoryview)

#: Appends one item to a `Fifo`, and reports nothing.
append = deque.append


def _reporting(change: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(change)
    def change_and_report(self: Fifo, *args: Any) -> Any:
        result = change(self, *args)
        channel = self._channel()
        if channel is not None:
            _loop.touch(channel)
        return result

    return change_and_report


class Fifo(deque[Any]):
    """
    ``async_chat.producer_fifo``, a deque: every change reports the channel that it belongs to.

    The channel itself uses the functions of this module, which report nothing: it knows what to report.
    A copy belongs to no channel; a pickled one is a plain deque.
    """

    __slots__ = ("_channel",)

    _channel: Callable[[], Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        fifo = super().__new__(cls, *args, **kwargs)
        fifo._channel = lambda: None
        return fifo

    def __reduce__(self) -> tuple[Any, ...]:
        return deque, (list(self), self.maxlen)

    def __repr__(self) -> str:
        return repr(deque(self, self.maxlen))

    def adopt(self, channel: Any) -> None:
        """
        Report *channel*, which is not kept alive, from now on; do nothing if it is another channel's.
        """
        if self._channel() is None:
            self._channel = weakref.ref(channel)

    def is_of(self, channel: Any) -> bool:
        return self._channel() is channel


for _name in (
    *("append", "appendleft", "extend", "extendleft", "insert", "__iadd__", "__imul__"),
    *("pop", "popleft", "remove", "clear"),
):
    setattr(Fifo, _name, _reporting(getattr(deque, _name)))


def put(fifo: Any, items: Iterable[Any]) -> None:
    """
    Append *items*, atomically for other threads, and report nothing.

    If the queue is the program's own, its ``append`` is called.
    """
    if type(fifo) is Fifo:
        deque.extend(fifo, items)
    else:
        for item in items:
            fifo.append(item)


def put_first(fifo: Any, items: list[Any]) -> None:
    if type(fifo) is Fifo:
        deque.extendleft(fifo, reversed(items))
    else:
        for item in reversed(items):
            fifo.appendleft(item)


def take_all(fifo: Any) -> list[Any]:
    """Remove and return what is queued now, and report nothing; other threads may append meanwhile."""
    take = deque.popleft.__get__(fifo) if type(fifo) is Fifo else fifo.popleft
    items: list[Any] = []
    with suppress(IndexError):  # another thread has emptied it; return what was taken
        items.extend(starmap(take, repeat((), len(fifo))))
    return items


def settle(fifo: Any, first: Any, num_sent: int | None = None) -> None:
    """
    Remove the first *num_sent* bytes of *first*, which was at the head; all of it if that is `None`.

    Meanwhile another thread may have put something before it, or have emptied the queue.
    """
    at = 0
    if type(fifo) is Fifo and not (fifo and fifo[0] is first):
        places = [at for at, item in enumerate(fifo.copy()) if item is first]
        if not places:
            return
        at = places[0]
    if num_sent is not None:
        fifo[at] = first[num_sent:]
    else:
        del fifo[at]


def join_first(fifo: Any, size: int) -> None:
    """
    Join what is queued into one item, or what is at its head as far as it is bytes.

    More than *size* bytes are sent in pieces: they become a view, which is sliced without a copy.
    """
    items = take_all(fifo)
    count = len(items)
    try:
        joined = b"".join(items)
    except TypeError:
        count = next(at for at, item in enumerate(items) if not isinstance(item, BYTES))
        joined = b"".join(items[:count])
    whole: list[Any] = [joined if len(joined) <= size else memoryview(joined)] if joined else []
    put_first(fifo, whole + items[count:])


class OutBuffer:
    """
    What a ``dispatcher_with_send`` keeps, for several threads.

    Attributes:
        data: bytes, or whatever the program assigned.
    """

    __slots__ = ("_given", "_lock", "data")

    def __init__(self, data: Any = b"") -> None:
        self.data = data
        # Reentrant, because a program's signal handler may come here in the middle of it.
        self._lock = RLock()
        # What each thread got last, until the thread itself changes `data`.
        self._given: dict[int, Any] = {}

    def get(self) -> Any:
        with self._lock:
            self._given[get_ident()] = self.data
            return self.data

    def set(self, value: Any) -> None:
        """
        Keep *value*, which the program assigns.

        ``channel.out_buffer += data`` is a `get` and a `set`. If another thread has sent or added
        something in between, then this thread means to add *data* only.
        """
        with self._lock:
            given = self._given.pop(get_ident(), None)
            kept = self.data
            if (
                given is not None
                and kept is not given
                and type(given) is type(value) is bytes
                and len(value) > len(given)
                and value.startswith(given)
            ):
                value = kept + value[len(given) :]
            self.data = value

    def append(self, data: Any) -> bool:
        """Keep *data* too; return whether anything was kept before."""
        with self._lock:
            kept = self.data
            self.data = kept + data
            if self._given:
                self._given.pop(get_ident(), None)
            return bool(kept)

    def cut(self, sent: Any, count: int) -> None:
        """
        Drop the first *count* bytes, which were sent as the beginning of *sent*.

        Drop nothing if another thread has replaced them.
        """
        with self._lock:
            if self.data[:count] == sent[:count]:
                self.data = self.data[count:]
            if self._given:
                self._given.pop(get_ident(), None)
