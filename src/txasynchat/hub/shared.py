"""
The hub of a reactor: sockets of our own, in one descriptor of the reactor, served in batches.

There is one `SharedHub` for each reactor. It is made for the first socket, and is gone with the last
one. It knows what a `Served` is, and no transport.

Whatever can wait until the handlers of this turn have run is noted by `SharedHub.later`: to send what
was written, to close. So the writes of one turn go out together, and nobody hears of the end of a
connection inside the call that ended it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from twisted.internet.error import ConnectionLost
from twisted.internet.posixbase import PosixReactorBase
from twisted.logger import Logger
from twisted.python.failure import Failure

from txasynchat.hub.hub import Hub
from txasynchat.log import failure

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOST", "Served", "SharedHub", "has_descriptors", "served_by", "shared_hub"]

#: Events that are handled at most in one iteration of the reactor; the rest comes in the next one.
LARGEST_TURN = 512
#: As many may be handled with a few sockets, too.
SMALLEST_TURN = 16

LOST = Failure(ConnectionLost())  # type: ignore[no-untyped-call] # Twisted's, untyped


class Served(Protocol):
    """A socket in a `SharedHub`."""

    def ready(self, events: int) -> None:
        """
        Called for *events* of the socket, which may be those of an earlier socket with its number.
        """

    def proceed(self) -> None:
        """Called once for each `SharedHub.later`."""

    def failed(self) -> None:
        """Called while an exception of one of the others is handled, which is logged already."""

    def connectionLost(self, reason: Failure, /) -> None:  # noqa: N802 Twisted's
        """Called when the reactor stops."""


class SharedHub:
    """
    The sockets of one reactor.

    Args:
        reactor: one that `has_descriptors`.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_due",
        "_hub",
        "_served",
        "_trigger",
        "_turns",
        "reactor",
    )

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self._hub = Hub()
        self._served: dict[int, Served] = {}
        self._due: list[Served] = []
        # How many turns are going on, which look at _due when they end; else _call does. A handler may
        # drive the reactor, or end it.
        self._turns = 0
        self._call: Any = None
        self._hub.attach(reactor, self._turn)
        self._trigger = reactor.addSystemEventTrigger("during", "shutdown", self._reactor_stops)

    # -- called by the sockets

    def add(self, number: int, served: Served, mask: int) -> None:
        """
        Serve a socket from now on.

        Args:
            number: its descriptor.
            served: whom to call.
            mask: what to wait for; see `Hub.watch`.

        Raises:
            OSError: the socket cannot be waited for, and is not served.
        """
        earlier = self._served.get(number)
        if earlier is not None:
            # Somebody closed its descriptor, and the number belongs to another now.
            self._hub.forget(number)
            self.reactor.callLater(0, earlier.connectionLost, LOST)
        self._served[number] = served
        try:
            self._hub.watch(number, mask)
        except BaseException:
            self.remove(number, served)
            raise

    def watch(self, number: int, mask: int) -> None:
        """Change what a socket waits for; it may be nothing."""
        self._hub.watch(number, mask)

    def remove(self, number: int, served: Served) -> None:
        """Serve a socket no more. To be called before it is closed."""
        if self._served.get(number) is served:
            self._hub.forget(number)
            del self._served[number]
        if not self._served and not self._turns:
            self._close()

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._served.values()))

    def later(self, served: Served) -> None:
        """Call ``served.proceed()`` soon, but not now: at the end of this turn if there is one."""
        self._due.append(served)
        if not self._turns and self._call is None:
            self._call = self.reactor.callLater(0, self._begin_turn)

    # -- called by the reactor

    def _turn(self) -> None:
        hub = self._hub
        served = self._served
        # About as many calls as there are sockets: what they would be in one iteration of the reactor.
        # But what is ready soon need not wait for the next one, which costs as much as a message.
        room = min(max(len(served), SMALLEST_TURN), LARGEST_TURN)
        self._turns += 1
        try:
            while room > 0:
                events = hub.wait(0, room)
                if not (events or self._due):
                    break
                room -= len(events) or 1
                for number, bits in events:
                    one = served.get(number)
                    if one is None:
                        if number not in hub.masks:  # else it was closed a moment ago
                            hub.quiet(number)
                        continue
                    try:
                        one.ready(bits)
                    except BaseException:  # noqa: BLE001 it is an application's, and is logged
                        self._failed(one)
                if self._due:
                    due, self._due = self._due, []
                    for one in due:
                        try:
                            one.proceed()
                        except BaseException:  # noqa: BLE001 as above
                            self._failed(one)
        finally:
            self._turns -= 1
            if not self._turns:
                self._end_turn()

    def _begin_turn(self) -> None:
        self._call = None
        self._turn()

    def _end_turn(self) -> None:
        if not self._served:
            self._close()
        elif self._due and self._call is None:
            # The reactor comes first.
            self._call = self.reactor.callLater(0, self._begin_turn)

    def _failed(self, one: Served) -> None:
        failure(self._log, "{served!r} raised", served=one)
        try:
            one.failed()
        except BaseException:  # noqa: BLE001 as above
            failure(self._log, "{served!r} raised when it was lost", served=one)

    def _close(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if _shared.get(self.reactor) is self:
            del _shared[self.reactor]
            if self._trigger is not None:
                self.reactor.removeSystemEventTrigger(self._trigger)
            self._hub.close()

    def _reactor_stops(self) -> None:
        """Be lost, as everything that Twisted's reactors poll is when they stop."""
        self._trigger = None
        for one in self:
            try:
                one.connectionLost(LOST)
            except BaseException:  # noqa: BLE001 as above
                failure(self._log, "{served!r} raised when it was lost", served=one)


def has_descriptors(reactor: Any) -> bool:
    """Return whether *reactor* polls real descriptors, unlike one in memory."""
    return isinstance(reactor, PosixReactorBase)


_shared: WeakKeyDictionary[Any, SharedHub] = WeakKeyDictionary()


def shared_hub(reactor: Any) -> SharedHub:
    """Return the hub of *reactor*, which begins with this call if there is none."""
    found = _shared.get(reactor)
    if found is None:
        found = _shared[reactor] = SharedHub(reactor)
    return found


def served_by(reactor: Any) -> list[Served]:
    """List what is in the hub of *reactor*."""
    try:
        found = _shared.get(reactor)
    except TypeError:  # a reactor in memory may not be hashable, or referred to weakly
        return []
    return [] if found is None else list(found)
