"""The hooks of a connection are called: what they raise is handled, what they return waited for."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from txasynchat import errors
from txasynchat.framing import Overflow
from txasynchat.protocol import lines, reports
from txasynchat.protocol.awaiting import CANCELLED, Awaiting
from txasynchat.protocol.state import HasState, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.protocol.awaiting import Pending

__all__ = ["CallsHooks"]

_CLOSED = State.CLOSED


class CallsHooks(HasState):
    """A connection that calls its hooks; an exception in one ends this connection only."""

    # -- called by the framer

    def hook_returned(self, result: object) -> None:
        """Called by the framer with what a hook returned, for which delivery waits."""
        awaiting = self._awaiting
        if awaiting is None:
            awaiting = self._expect_hooks()
        self._inbox.awaits = awaiting.starts
        if (pending := awaiting.begin(result)) is not None:
            self._watch(pending)

    def overflowed(self, error: errors.MessageTooLong) -> None:
        """Called by the framer when a message broke its limit; `message_too_long` is the hook."""
        self._report(error)
        self._inbox.discarded |= self.overflow is Overflow.CLOSE
        result: object = self.message_too_long(error)
        closes = self.overflow is Overflow.CLOSE  # which the hook may have changed
        then = partial(self._after_overflow, error, closes)
        if result is None or not self._waits(result, then):
            then()

    def _after_overflow(self, error: errors.MessageTooLong, closes: bool) -> None:
        if closes:
            self._inbox.discarded = True
            self.close_reason = error
            if self._stream is None:
                self._close()
        elif self.close_reason is error:
            self._inbox.discarded = False
            self.close_reason = None

    # -- internals: calls, and what they raise

    def _call(self, handler: Any, *arguments: Any, then: Callable[[], None] | None = None) -> None:
        """
        Call a handler of the application, and *then* when it is done; an exception ends this
        connection only.
        """
        try:
            result = handler(*arguments)
            if result is not None and self._waits(result, then):
                return
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
        if then is not None:
            then()

    def _failed(self) -> None:
        """Log the exception that is being handled, ask `handle_error`, and close."""
        error = sys.exc_info()[1]
        if isinstance(error, errors.OtherProtocol):
            self._inbox.discarded = True
            self._report(error)
            self.push(lines.ANSWERS[error.protocol])
            self._close()
            return
        if self._stream is not None and self._stream.ended_with(error):
            # The reason of the connection's end is logged with that. That a peer has left is no news.
            if isinstance(error, errors.IncompleteMessage) and error.partial:
                reports.peer_erred(self._log, self, error)
            self._close()
            return
        if isinstance(error, errors.MalformedMessage):
            self._is_malformed(error)
        else:
            reports.handler_raised(self._log, self)
        if isinstance(error, errors.ProducerError):
            # What is queued behind it would follow a piece that is cut off.
            self._drop_output()
        try:
            result: object = self.handle_error()
            if result is not None and self._waits(result, self._close, self._error_failed):
                self._inbox.discard()
                return
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._error_failed()
        self._close()

    def _is_malformed(self, error: errors.MalformedMessage) -> None:
        self._inbox.discarded = True
        self._report(error)

    def _error_failed(self) -> None:
        reports.handler_raised(self._log, self, "{peer}: {handler}.handle_error raised")

    def _report(self, error: errors.PeerError) -> None:
        if not isinstance(error, errors.MessageTooLong) or self.overflow is Overflow.CLOSE:
            self.close_reason = error
        reports.peer_erred(self._log, self, error)

    # -- internals: hooks that wait

    def shutdown_returned(self, result: object) -> None:
        """Called by a server with what `handle_shutdown` returned; delivery goes on meanwhile."""
        if (pending := self._expect_hooks().begin(result)) is not None:
            self._watch(pending, holds=False)

    def _expect_hooks(self) -> Awaiting:
        if self._awaiting is None:
            self._awaiting = Awaiting()
            self._awaiting.lost = self._state is _CLOSED
        return self._awaiting

    def _waits(self, result: object, *watched: Any) -> bool:
        """
        Run what a hook returned; `_watch` it, and return True, if it has to wait for something.

        Raises:
            BaseException: what it raised without waiting.
        """
        pending = self._expect_hooks().begin(result)
        if pending is not None:
            self._watch(pending, *watched)
        return pending is not None

    def _watch(
        self,
        pending: Pending,
        then: Callable[[], None] | None = None,
        failed: Callable[[], None] | None = None,
        *,
        holds: bool = True,
    ) -> None:
        """
        Wait for a hook that is not done.

        Args:
            pending: the hook.
            then: called when it is done.
            failed: called, before *then*, while what it raises is handled; by default `_failed`,
                without *then*.
            holds: nothing is delivered until it is done.
        """
        holds = holds and self._state is not _CLOSED
        if holds:
            self._inbox.await_hook()
            self._settles = True
            if self._delivering:
                self._unsettled = True
            else:
                self._set_reading()
        self._expect_hooks().watch(pending, partial(self._waited, holds, then, failed))

    def _waited(
        self,
        holds: bool,
        then: Callable[[], None] | None,
        failed: Callable[[], None] | None,
        error: BaseException | None,
    ) -> None:
        """A hook that had to wait is done; see `_watch`."""
        if holds:
            self._inbox.hook_done()
            self._choose_path()
        if self._state is _CLOSED and (error is None or isinstance(error, CANCELLED)):
            return
        nested, self._delivering = self._delivering, True
        try:
            if error is not None:
                try:
                    raise error
                except BaseException:  # noqa: BLE001 it is the application's, and is logged
                    (failed or self._failed)()
            if then is not None and (error is None or failed is not None):
                then()
        finally:
            self._delivering = nested
        if self._state is not _CLOSED:
            self._inbox.release()
            self._go_on()
