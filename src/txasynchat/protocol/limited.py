"""What the deadlines of a connection ask it, and limits that hold for a part of a conversation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from txasynchat.limits.deadlines import Standing, begin
from txasynchat.limits.modes import Mode
from txasynchat.limits.options import UNSET, Limits
from txasynchat.protocol.coupling import Couples
from txasynchat.protocol.state import State

if TYPE_CHECKING:
    from txasynchat import errors
    from txasynchat.limits.deadlines import Deadlines

__all__ = ["Limited"]

_CONNECTING = State.CONNECTING
_OPEN = State.OPEN
_CLOSING = State.CLOSING
_CLOSED = State.CLOSED


class Limited(Couples):
    """A connection whose peer may take only so much time; see `txasynchat.limits`."""

    # -- asynchat: called by the application

    def set_limits(self, **limits: Any) -> Mode:
        """
        Let other limits hold from now on, for this connection and a part of its conversation.

        They come before all others, the server's too, and take the place of those of an earlier call;
        without arguments there are none. What was measured so far counts: a message that has begun is
        not younger than it was.

        Args:
            limits: as for `Limits`. ``first_message`` has an effect before the connection is open.

        Returns:
            A context manager, at whose end holds what held before this call.

        Raises:
            TypeError, ValueError: see `Limits`.
        """
        before = self._mode
        mode = Mode(
            Limits(**limits),
            self.max_message_length if before is None else before.longest,
            partial(self._return_to_mode, before),
        )
        if before is not None:
            before.replaced()
        self._enter_mode(mode if limits else None)
        return mode

    # -- internals: asked by `Deadlines`

    def _begin_deadlines(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        if self._mode is not None:
            deadlines.enter_mode(self._mode.limits)

    def _standing(self) -> Standing:
        inbox, outbox = self._inbox, self._outbox
        begun = outbox.taken > 0 or outbox.size > 0 or not (inbox.terminator or self._asks)
        busy = inbox.awaited > 0
        if (stream := self._stream) is not None:
            busy = not stream.waits
            begun = begun or busy or stream.took
        return Standing(
            opening=self._state is _CONNECTING or self._upgrade is not None,
            closing=self._state is _CLOSING,
            busy=inbox.held or inbox.choked or busy,
            begun=begun,
            ended=inbox.message_ended(),
            length=inbox.length if inbox.in_message else None,
            sent=outbox.taken,
            unsent=outbox.size,
        )

    def _quiet(self, sent: int) -> bool:
        """
        Return whether there is nothing to tell, since `_standing` said that so much was *sent*.
        """
        inbox, outbox = self._inbox, self._outbox
        return (
            outbox.taken == sent
            and not outbox.size
            and self._state is _OPEN
            and self._upgrade is None
            and bool(inbox.terminator)
            and not inbox.paused
            and inbox.kept is None
            and inbox.untouched
        )

    def _timed_out(self, error: errors.TimedOut) -> None:
        if self._state is not _OPEN:
            self._abort(error)
            return
        self._report(error)
        # A peer that takes nothing would not take an answer either.
        ends = self._abort if error.kind == "write_stall" else self._close
        self._call(self.handle_timeout, error.kind, then=ends)

    # -- internals

    def _return_to_mode(self, mode: Mode | None) -> None:
        self._enter_mode(None if mode is not None and mode.ended else mode)

    def _enter_mode(self, mode: Mode | None) -> None:
        before, self._mode = self._mode, mode
        limits = Limits() if mode is None else mode.limits
        for one in (mode, before):
            if one is not None and one.limits.max_message_length is not UNSET:
                self.max_message_length = limits.value("max_message_length", one.longest)
                break
        if self._deadlines is not None:
            self._deadlines.enter_mode(limits)
        elif self.transport is not None and self._state is not _CLOSED:
            begin(self, self.transport, limits)
