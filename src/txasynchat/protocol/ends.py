"""
The ends of a connection: this side's, the peer's, the server's, and the loss.

One method changes the `State`. CLOSING takes nothing new, sends what is queued, and then closes the
transport; how it does that, in limited time, is in `txasynchat.protocol.closing`. Where others end the
connection, the transport asks first (`endings.let_protocol_end`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.protocol import connectionDone
from typing_extensions import override

from txasynchat import endings, errors, transports
from txasynchat.protocol import closing
from txasynchat.protocol.hooks import Hooks
from txasynchat.protocol.outbox import HalfClose, Phase
from txasynchat.protocol.settling import Settles
from txasynchat.protocol.state import State

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from twisted.python.failure import Failure

__all__ = ["Ends"]

_CONNECTING = State.CONNECTING
_OPEN = State.OPEN
_CLOSING = State.CLOSING
_CLOSED = State.CLOSED
_READY = Phase.READY
_DEPARTED = Phase.DEPARTED


class Ends(Settles):
    """A connection that ends, whoever wants it to."""

    # -- IProtocol, IHalfCloseableProtocol: called by the transport

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Stop the queued producers, and cancel hooks that are not done; call `handle_close`, unless the
        application closed, and `handle_end`.
        """
        if self._state is _CLOSED:
            return
        self._set_state(_CLOSED)
        self.connected = False
        error = closing.why_lost(reason.value, self.transport, self._outbox)
        if isinstance(error, errors.PeerError) and error is reason.value:
            self._report(error)
        elif self.close_reason is None:
            self.close_reason = error
        outbox = self._outbox
        outbox.phase = _DEPARTED
        outbox.registered = False
        if self._pipe is not None:
            self._pipe.pass_on(last=True)
        if self._stream is None or self._pipe is not None:
            self._inbox.close()
        else:
            self._inbox.end_pulling()
        sent = outbox.finished and not outbox.incomplete
        if outbox:
            self._drop_output()
        for ending in (self._closing, self._upgrade):
            if ending is not None:
                ending.stall.cancel()
        self._closing = self._upgrade = None
        if self._deadlines is not None:
            self._deadlines.end()
            self._deadlines = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        told = self._stream is not None and (self._stream.lost() or self._close_requested)
        if self._awaiting is not None and not told:
            for cancel in self._awaiting.cancel():
                self._call(cancel)
        try:
            if not self._close_requested:
                self._call(self.handle_close)
        finally:
            self._call(self.handle_end, self.close_reason)
            self._uncouple()
            if (draining := outbox.draining) is not None:
                outbox.draining = None
                draining.over(None if sent else self.close_reason or reason.value)

    def readConnectionLost(self) -> None:  # noqa: N802
        """
        The peer will send no more: deliver what it sent, call `handle_eof`, send what is queued, close.

        An application that cannot answer yet when a hook is called makes that ``async def``, or pauses
        delivery until it can.
        """
        self._inbox.peer_finished = True
        if self._closing is not None:
            self._closing.peer_finished()
        if self._pipe is not None:
            self._await_idle()
        elif self._stream is None:
            self.close_when_idle()
        else:
            self._go_on()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """
        Nothing more can be sent: the connection ends, unless this side ended the sending.

        What has arrived is delivered first. A process may close its input because it needs none; that
        connection ends when there is something to send.
        """
        transport, outbox = self.transport, self._outbox
        outbox.full = False  # so the next attempt to send finds out; a request to close is not one
        end = outbox.writing_end or transports.writing_end(transport)
        # TLS ends its own sending, and leaves the descriptor beneath it open.
        if outbox.half_close is HalfClose.DONE or transports.writing_was_ended(transport, end):
            return
        if outbox or self._state is not _OPEN or not transports.waits_for_exit(transport):
            self._cannot_send()

    # -- asynchat: overridden by the application

    def handle_shutdown(self) -> Awaitable[object] | None:
        """
        The server is stopping, so finish; see `Server`. Called once, however long that takes.

        By default `close_when_idle`. A handler that works between messages (a transaction) should
        finish that, and then close. It may be ``async def``; messages are delivered meanwhile.
        """
        if self._state is _CONNECTING:
            self.abort()
        else:
            self.close_when_idle()
        return None

    # -- asynchat: called by the application

    def close_when_done(self) -> None:
        """
        Close when everything queued so far is sent; what is pushed from now on is dropped.

        Messages are delivered until then, as in ``asynchat``. `handle_close` is called at the end.
        """
        if self._state is _CLOSING or self._state is _CLOSED:
            return
        if self._delivering and (self._inbox.kept or self._inbox.buffer):
            # The peer did not wait for the answer, so more may come when the connection is closed.
            self._inbox.overran = True
        self._set_state(_CLOSING)
        self._unchoke()
        if self._delivering:
            self._unsettled = True
        else:
            self._pushed()
            self._leave()

    def close_when_idle(self) -> None:
        """
        `close_when_done`, as soon as no message is half received, no hook waits for anything, and
        delivery is not paused.

        So a message that has begun is still answered, and so is one whose handler paused delivery
        until its answer is there. A connection that is piped to another one is idle when no byte went
        either way for a second, and none waits; see `pipe_to`.
        """
        if self._pipe is not None:
            self._pipe.finishing = True
        elif self._stream is not None:
            self._stream.finish()
            return
        self._await_idle()

    def end_sending(self) -> None:
        """
        Send what is queued, then tell the peer that this was all, and go on reading.

        The peer sees the end of the stream: a FIN, close_notify over TLS, the end of its standard input
        where it is a process. `state` stays OPEN and messages are still delivered; what is pushed from
        now on is dropped, and counted in `dropped`. When the peer ends its sending too, the connection
        closes. One that never does is the application's to end. Harmless when repeated.

        Terminals, serial ports, and TLS that Twisted's ``startTLS`` has put on a connection cannot end
        one direction only: the peer sees the end when the connection closes.
        """
        outbox = self._outbox
        if outbox.closing:
            return
        outbox.half_close = HalfClose.WHEN_SENT
        outbox.close_when_done()
        self._unchoke()
        self._pushed()
        if self._pipe is not None and self._inbox.peer_finished:
            self._go_on()

    def close(self) -> None:
        """
        Deliver nothing more, send what is queued, and close; `handle_close` is not called.

        Harmless when repeated.
        """
        self._close_requested = True
        self._close()

    def abort(self, reason: errors.PeerError | None = None) -> None:
        """
        Close now; what is queued is lost, and `handle_close` is not called.

        Args:
            reason: what the peer did; it is logged, and is the `close_reason`.
        """
        self._close_requested = True
        self._abort(reason)

    # -- internals: asked by the transport, see `endings.let_protocol_end`

    def _takes_closing(self) -> bool:
        # What we are done with, or have nothing to send to yet, may close at once.
        if self._outbox.phase is _DEPARTED or not (self._outbox.phase is _READY or self._outbox):
            return False
        self._close()
        return True

    def _takes_half_closing(self) -> bool:
        outbox = self._outbox
        if outbox.phase is _DEPARTED or outbox.half_close is HalfClose.DONE:
            return False  # it was we who told it
        self.end_sending()
        return True

    # -- called by a server that stops

    def _server_stops(self) -> None:
        """Called by a server that is stopping, before `handle_shutdown`."""
        self._server_is_stopping = True
        if self._closing is not None:
            self._closing.server_stops()

    def _stopped_by_server(self) -> None:
        """Called by a server that is stopping, and that ends this connection now."""
        over = self._outbox.phase is _DEPARTED and endings.sent_all(self.transport)
        if self.close_reason is None and not over:
            self.close_reason = errors.StoppedByServer()

    # -- internals

    def _close(self) -> None:
        if self._state is _CLOSED:
            return
        self._inbox.discard()
        self.close_when_done()
        if not self._delivering:
            self._set_reading()
        if self._stream is not None:
            self._go_on()

    def _abort(self, error: errors.PeerError | None = None) -> None:
        """Close now, because of *error* where there is one; the transport calls ``connectionLost``."""
        if error is not None:
            self._report(error)
        if self._state is _CLOSED:
            return
        self._inbox.discard()
        self._set_state(_CLOSING)
        self._outbox.phase = _DEPARTED
        self._drop_output()
        if self.transport is not None:
            transports.abort(self.transport)

    def _await_idle(self) -> None:
        self._close_when_idle = self._settles = True
        if self._is_idle and self._state is _OPEN:
            self._go_on()

    def _close_if_idle(self) -> None:
        """Everything was delivered that can be: at the peer's end call `handle_eof`; then close."""
        inbox = self._inbox
        if self._state is not _OPEN or not self._is_idle:
            return
        if self._pipe is not None:
            if inbox.peer_finished and not inbox.told_of_end:
                inbox.told_of_end = True
                self._pipe.target.end_sending()
            if not (inbox.peer_finished and self._outbox.closing):
                if self._pipe.finishing and not self._pipe.quiet.waiting:
                    self._end_when_quiet()
                return
        elif inbox.peer_finished and not inbox.told_of_end:
            inbox.told_of_end = True
            ours = getattr(self.handle_eof, "__func__", None) is Hooks.handle_eof
            if not (ours or inbox.suspended):  # what comes before TLS is not handled
                rest = b"".join((*(self._incoming or ()), inbox.unfinished))
                self._forget_input()
                self._call(self.handle_eof, rest)
                self._unsettled = True
                return
        self.close_when_done()

    @property
    def _is_idle(self) -> bool:
        if self._stream is not None and self._pipe is None:
            return False  # it is for the application to close
        return self._inbox.idle and (self._awaiting is None or not self._awaiting.busy)

    def _cannot_send(self) -> None:
        """The transport takes nothing more: deliver what has arrived, and close."""
        outbox = self._outbox
        if outbox.phase is _DEPARTED or self._state is _CLOSED:
            return
        outbox.full = True  # or reaching the end of the queue would end the connection too soon
        self._set_state(_CLOSING)
        self._drop_output()
        self._unchoke()
        transports.read_what_is_there(self.transport)
        outbox.full = False
        if self._delivering:
            self._unsettled = True
        else:
            self._flush()

    def _leave(self) -> None:
        """While closing: something was written, or there is nothing to write."""
        if self.transport is None:
            return
        if self._closing is None:
            if closing.at_once(self.transport, self._inbox, self._outbox):
                return
            self._closing = closing.Closing(self, self._inbox, self._outbox, self._abort)
            self._closing.server_is_stopping = self._server_is_stopping
        self._closing.proceed()
