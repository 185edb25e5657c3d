"""
`Broadcast`: one message to many connections, of which some read slowly.

All of them share the bytes of a message, which are neither copied nor encoded for each. Nobody waits
for a slow member: what waits for it has a limit, and `Slow` says what becomes of a message that would
exceed that.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Any

from txasynchat.errors import UnsentLimitExceeded
from txasynchat.protocol import AsyncChat, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from txasynchat.producers import Buffer

__all__ = ["Broadcast", "Slow"]


class Slow(enum.Enum):
    """What becomes of a message for which a member has no room, because too much waits for it."""

    #: The member does not get it.
    SKIP = "skip"
    #: The oldest messages that wait for the member are dropped, as many as have to be.
    DROP_OLDEST = "drop oldest"
    #: All messages that wait for the member are dropped: this one stands for them. For states, of which
    #: only the latest counts.
    COALESCE = "coalesce"
    #: The connection is aborted; its `AsyncChat.close_reason` is an `UnsentLimitExceeded`.
    DISCONNECT = "disconnect"


class _Member:
    __slots__ = ("chat", "missed", "size", "waiting")

    def __init__(self, chat: AsyncChat) -> None:
        self.chat = chat
        self.missed = 0
        # Messages that may wait for it, the oldest first, and their size. Those that were sent
        # meanwhile are forgotten with the next message.
        self.waiting: deque[bytes] = deque()
        self.size = 0

    def note(self, message: bytes, unsent: int) -> None:
        self.waiting.append(message)
        self.size += len(message)
        while self.waiting and self.size - len(self.waiting[0]) >= unsent:
            self.size -= len(self.waiting.popleft())

    def drop_oldest(self) -> bool:
        """Return whether it was dropped; not, if it was sent meanwhile."""
        message = self.waiting.popleft()
        self.size -= len(message)
        dropped = self.chat.withdraw(message)
        self.missed += dropped
        return dropped


def _unsent(chat: Any) -> int:
    # The instance may have an attribute of this name for a purpose of its own.
    return int(AsyncChat.unsent.__get__(chat))


def _state(chat: Any) -> State:
    state: State = AsyncChat.state.__get__(chat)
    return state


class Broadcast:
    """
    A group of connections that get the same messages: a room, the readers of a ticker.

    A connection may be in several groups. One that is lost is forgotten with the next message; where
    its leaving matters to others, `discard` it in `AsyncChat.handle_end`.

    Args:
        slow: what becomes of a message for which a member has no room.
        limit: bytes that may wait for a member, its own answers included, when a message is sent to
            it; at most its `AsyncChat.max_unsent` counts. What the transport and the operating system
            hold comes on top of that, and is limited by these.

    Raises:
        ValueError: *limit* is not positive.

    Attributes:
        sent: how often a member was given a message.
        skipped: how often a member had no room for one, and did not get it.
        dropped: messages that were dropped for a newer one, by `Slow.DROP_OLDEST`.
        coalesced: messages that were dropped for a newer one, by `Slow.COALESCE`.
        disconnected: members that were disconnected.
    """

    def __init__(self, *, slow: Slow = Slow.SKIP, limit: int = 1 << 20) -> None:
        if not isinstance(slow, Slow):
            raise TypeError(f"slow must be a Slow, not {slow!r:.80}")
        if limit <= 0:
            raise ValueError(f"limit must be positive: {limit!r}")
        self.slow = slow
        self.limit = limit
        self.sent = self.skipped = self.dropped = self.coalesced = self.disconnected = 0
        # By identity: a handler that is a dataclass has no hash.
        self._members: dict[int, _Member] = {}
        self._to_send: deque[tuple[bytes, AsyncChat | None]] = deque()
        self._sending = False

    def __repr__(self) -> str:
        return f"<Broadcast to {len(self)}: {self.slow.value}, limit {self.limit}>"

    # -- who is a member

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[AsyncChat]:
        """Iterate over those who are members now, in the order in which they came."""
        return iter([member.chat for member in self._members.values()])

    def __contains__(self, chat: object) -> bool:
        return id(chat) in self._members

    def add(self, chat: AsyncChat) -> None:
        """
        Let *chat* get what is sent from now on; harmless when repeated.

        Raises:
            TypeError: it is no `AsyncChat`.
        """
        if not isinstance(chat, AsyncChat):
            raise TypeError(f"a member is an AsyncChat, not {chat!r:.80}")
        if id(chat) not in self._members:
            self._members[id(chat)] = _Member(chat)

    def discard(self, chat: AsyncChat) -> None:
        """Send *chat* nothing more, whether it was a member or not; what waits for it is still sent."""
        self._members.pop(id(chat), None)

    def missed(self, chat: AsyncChat) -> int:
        """
        Return how many messages *chat* did not get since it was added, because it reads slowly.

        Raises:
            KeyError: it is no member.
        """
        return self._members[id(chat)].missed

    # -- messages

    def send(self, data: Buffer, *, but: AsyncChat | None = None) -> None:
        """
        Send *data* to every member, in the order in which `send` was called.

        May be called from inside any handler, and while another message is being sent, as by the
        `AsyncChat.handle_end` of a member who is disconnected: then it follows that one.

        Args:
            data: bytes-like, with whatever ends a message.
            but: who does not get it.

        Raises:
            TypeError: *data* is not bytes-like.
            ValueError: it is longer than the limit.
        """
        # An object of its own, by which a queue finds it again.
        message = bytes(memoryview(data))
        if len(message) > self.limit:
            raise ValueError(f"a message of {len(message)} bytes exceeds the limit, {self.limit}")
        self._to_send.append((message, but))
        if self._sending:
            return
        self._sending = True
        try:
            while self._to_send:
                message, but = self._to_send.popleft()
                for member in list(self._members.values()):
                    if member.chat is not but and member.chat in self:
                        self._give(member, message)
        finally:
            self._sending = False

    def _give(self, member: _Member, message: bytes) -> None:
        chat = member.chat
        if (state := _state(chat)) is State.CLOSED:
            self.discard(chat)
        elif state is not State.CLOSING and self._has_room(member, len(message)):
            chat.push(message)
            self.sent += 1
            if self.slow in {Slow.DROP_OLDEST, Slow.COALESCE}:
                member.note(message, _unsent(chat))

    def _has_room(self, member: _Member, size: int) -> bool:
        """Return whether a message of that *size* may wait, having done what makes room for it."""
        chat = member.chat
        limit = self.limit if chat.max_unsent is None else min(self.limit, chat.max_unsent)
        if _unsent(chat) + size <= limit:
            return True
        if self.slow is Slow.DISCONNECT:
            self.disconnected += 1
            self.discard(chat)
            chat.abort(UnsentLimitExceeded(limit, _unsent(chat) + size))
            return False
        if self.slow is Slow.DROP_OLDEST:
            while member.waiting and _unsent(chat) + size > limit:
                self.dropped += member.drop_oldest()
        elif self.slow is Slow.COALESCE:
            while member.waiting:
                self.coalesced += member.drop_oldest()
        if _unsent(chat) + size <= limit:
            return True
        self.skipped += 1
        member.missed += 1
        return False
