"""
What follows when handlers have run: what they pushed is written, what arrived meanwhile is delivered,
and the transport is told whether to read.

Handlers may push, pause, close or fail at any moment, and so may producers that are asked meanwhile.
Each of these only notes that something changed; `_settle` acts on it, until nothing changes any more.
"""

from __future__ import annotations

from typing import Any

from txasynchat import errors, transports
from txasynchat.protocol import reports
from txasynchat.protocol.calling import CallsHooks
from txasynchat.protocol.inbox import LOW
from txasynchat.protocol.outbox import HalfClose, Phase
from txasynchat.protocol.pipe import HIGH_WATER
from txasynchat.protocol.state import State

__all__ = ["Settles"]

_CONNECTING = State.CONNECTING
_OPEN = State.OPEN
_CLOSING = State.CLOSING
_READY = Phase.READY
_DEPARTED = Phase.DEPARTED


class Settles(CallsHooks):
    """A connection that comes to rest after each call from outside."""

    # -- internals: turns

    def _go_on(self) -> None:
        """Deliver what waits, as far as that is allowed, and settle what follows from it."""
        self._redeliver = True
        if self._delivering:
            self._unsettled = True
            return
        self._delivering = True
        try:
            self._settle()
        finally:
            self._delivering = False

    def _run_handler(self, function: Any, *arguments: Any) -> None:
        """Call something as handlers are called: what it pushes is one write."""
        if self._delivering:
            function(*arguments)
            return
        self._delivering = True
        try:
            function(*arguments)
            self._settle()
        finally:
            self._delivering = False

    def _settle(self) -> None:
        """
        The handlers have run: write what they pushed, deliver what arrived meanwhile, set reading.

        This may call handlers again, so it repeats until nothing changes.
        """
        inbox = self._inbox
        self._unsettled = True
        while self._unsettled:
            self._unsettled = False
            if inbox.kept is not None:
                inbox.feed_kept()
                self._redeliver = True
            if self._redeliver:
                self._redeliver = False
                try:
                    if self._pipe is not None:
                        self._pipe.pass_on()
                    elif self._stream is not None:
                        self._stream.arrived()
                    else:
                        inbox.deliver(self, self.get_terminator if self._asks else None)
                except Exception:  # noqa: BLE001 it is the application's, and is logged
                    self._failed()
            if inbox.resting:
                self._take_turn()
            if self._outbox or self._state is _CLOSING:
                self._flush()
            if self._outbox.draining is not None and self._turn is None:
                self._tell_drained()
            if self._upgrade is not None:
                self._upgrade.proceed()
            if inbox.paused or not inbox.reading:
                self._set_reading()
            if self._close_when_idle and not self._unsettled:
                self._close_if_idle()

    def _take_turn(self) -> None:
        """Settle again in the reactor's next iteration; at once where there is no reactor."""
        if self._turn is not None:
            return
        reactor = None if self.transport is None else transports.reactor_of(self.transport)
        if reactor is None:
            self._next_turn()
        else:
            self._turn = reactor.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        self._outbox.drained_at = self._outbox.taken
        self._inbox.go_on()
        self._go_on()

    # -- internals: input

    def _receive_otherwise(self, data: bytes) -> None:
        if self._inbox.shut and self._state is not _CONNECTING:
            self._inbox.discarded = True
        elif self._delivering:
            self._inbox.keep(data)
            self._unsettled = True
        else:
            stream = self._stream
            if stream is None:
                self._inbox.feed(data)
                if self._outbox.phase is _READY:
                    self._go_on()
                return
            inbox, outbox = self._inbox, self._outbox
            inbox.add(data)
            if outbox.phase is not _READY:
                return
            # What `_settle` does, where nothing unusual happens.
            self._delivering = True
            try:
                stream.arrived()
                sent = not outbox.size or outbox.send_reply(self.transport)
                if self._unsettled or not sent or inbox.ahead > LOW or not inbox.reading:
                    self._settle()
            finally:
                self._delivering = False

    def _hold(self) -> None:
        self._inbox.pause()
        if self._delivering:
            self._unsettled = True
        else:
            self._set_reading()

    def _choke(self) -> None:
        """Hold delivery, because too much waits to be sent."""
        if not self._inbox.choked:
            self._inbox.choked = True
            self._hold()

    def _unchoke(self) -> None:
        """What waits to be sent is not a reason to hold delivery any more."""
        if self._stream is not None:
            self._stream.drained()
        if self._inbox.choked:
            self._inbox.choked = False
            if self._inbox.release():
                self._go_on()

    def _set_reading(self) -> None:
        if self._outbox.phase is _READY:
            self._inbox.set_reading(self.transport)

    def _forget_input(self) -> None:
        self._inbox.clear()
        self._incoming = None

    # -- internals: output

    def _pushed(self) -> None:
        """Something was queued: write it, unless handlers are running and it is less than a piece."""
        if not self._delivering or self._outbox.size >= self._outbox.piece:
            self._flush()
        else:
            self._unsettled = True
        self._check_level()

    def _check_level(self) -> None:
        outbox, size = self._outbox, self._outbox.size
        source = self._fed_by
        if source is not None:
            high_water = HIGH_WATER if self.high_water is None else self.high_water
            if size > high_water:
                source._choke()
            elif size <= self.low_water:
                source._unchoke()
        elif self.max_unsent is not None and size > self.max_unsent:
            if outbox.phase is not _DEPARTED:
                self._abort(errors.UnsentLimitExceeded(self.max_unsent, size))
            return
        if self._pipe is not None:
            return  # what it receives is not answered here
        if self.high_water is not None and size > self.high_water:
            # While closing nothing is added, and a peer that we do not read from may stop reading too.
            if not (outbox.closing or self._inbox.pulled):
                self._choke()
        elif size <= self.low_water:
            self._unchoke()

    def _flush(self) -> None:
        """Write what the transport takes, and do what had to wait for that."""
        outbox = self._outbox
        if outbox.flushing or outbox.phase is not _READY:
            return
        heard = self._hears_of_drain and bool(outbox)
        try:
            if not outbox.flush(self):
                self._cannot_send()
        except errors.ProducerError:
            self._failed()
        if self._state is _CLOSING:
            if outbox.phase is not _DEPARTED:
                self._leave()
        elif outbox.half_close is HalfClose.WHEN_SENT and outbox.finished:
            outbox.half_close = HalfClose.DONE
            outbox.resign(self.transport)
            transports.end_sending(self.transport)
        if outbox.size or self._inbox.choked or self._inbox.pulled or self._fed_by is not None:
            self._check_level()
        if (heard or outbox.draining is not None) and not outbox and self._state is _OPEN:
            if heard:
                outbox.await_drain().heard = True
            if self._delivering:
                self._unsettled = True
            else:
                self._take_turn()  # not inside a call of push()
        if self._upgrade is not None and not self._delivering:
            self._upgrade.proceed()

    def _tell_drained(self) -> None:
        """Tell who waits for it that the queue is empty, if it is; handlers are running."""
        outbox = self._outbox
        draining = outbox.draining
        if draining is None or outbox or self._state is not _OPEN:
            return
        pending = self._inbox.awaited > 0
        if pending and not draining.awaited:
            return  # the hook is not called while another one is pending
        outbox.draining = None
        draining.over()
        if draining.heard:
            if pending:
                outbox.await_drain().heard = True
            else:
                self._call(self.handle_drained)
        self._unsettled = True
        if outbox and self._state is _OPEN:
            # That is told too, be it sent at once; but others have their turn before.
            outbox.await_drain().heard |= draining.heard
            self._take_turn()

    def _drop_output(self, *, hold_back: bool = False) -> None:
        """Forget what is queued, and stop the producers; see `Outbox.stop`."""
        if raised := self._outbox.stop(hold_back=hold_back):
            reports.stopped_producers_raised(self._log, self, raised)
