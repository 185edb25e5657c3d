"""
`Opening`: a TLS connection's handshake, in limited time and number.

A server's begins when the ClientHello is complete and `HandshakeLimit` has admitted it. Its steps run
when `Scheduler` has time for them. Meanwhile the transport is read no further, because no peer has a
reason to send more. One timer runs from the beginning to the end; the time that it takes us does not
count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from txasynchat import transports
from txasynchat.errors import HandshakeFailed, HandshakeTimedOut
from txasynchat.tls.handshakes import Scheduler
from txasynchat.tls.pending import EVICTED

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from txasynchat.tls.handshakes import HandshakeLimit

__all__ = ["Opening"]

#: Connections accepted in one turn of the reactor while handshakes go on.
_ACCEPTS = 10


class Opening:
    """
    One handshake, until it is done or its connection is lost; a member of `Pending`.

    Args:
        tls: the `TLSTransport` whose it is.
        clock: measures time; None for no limits on that.
        limit: limits the number; None for no limit.
        timeout: seconds that the peer may take; None for no limit.
    """

    __slots__ = (
        *("_answered", "_clock", "_done", "_greeted", "_limit", "_paused", "_timeout", "_timer"),
        *("_tls", "_waited", "_waits", "_waits_since"),
    )

    def __init__(
        self,
        tls: Any,
        clock: IReactorTime | None,
        limit: HandshakeLimit | None,
        timeout: float | None,
    ) -> None:
        self._tls = tls
        self._clock = clock
        self._limit = limit
        self._timeout = timeout
        self._timer: IDelayedCall | None = None
        # The ClientHello is complete, or this is a client; something was sent; it is over.
        self._greeted = self._answered = self._done = False
        # The next step waits, for a place or for time; the transport is not read meanwhile.
        self._waits = self._paused = False
        # Since when a step waits for time, and how long others did before.
        self._waits_since: float | None = None
        self._waited = 0.0

    def begin(self) -> None:
        """The connection is made."""
        self._start_timer()
        if self._limit is not None:
            self._limit.connected(self, transports.peer_address(self._tls.transport))
        if not self._tls.engine.is_server:
            self._greeted = True
            self._step()

    def receive(self, data: bytes) -> None:
        """Bytes came."""
        if self._done:
            return
        ready = self._tls.engine.feed(data)
        if self._waits:
            pause = getattr(self._tls.transport, "pauseProducing", None)
            if pause is not None:
                self._paused = True
                pause()
        elif ready and self._greeted:
            self._go_on()
        elif ready:
            self._enter()

    def receive_no_more(self) -> None:
        """No more bytes will come: do the step that waits, if it may be the last and not in vain."""
        if self._waits and self._answered:
            self._step()

    def cancel(self) -> None:
        """It is over: it has no time limit any more, and does not count. Harmless when repeated."""
        self._done = True
        self._stop_timer()
        if self._limit is not None:
            self._limit.leave(self, self._clock)
            self._limit = None

    def evict(self) -> None:
        """Called by `Pending`."""
        self._tls.abort(Failure(HandshakeFailed(EVICTED)))

    def _enter(self) -> None:
        """The ClientHello is complete, or the client does not speak TLS."""
        self._greeted = True
        address = transports.peer_address(self._tls.transport)
        if self._limit is None or self._limit.enter(self, address, self._clock, self._admitted):
            self._go_on()
        else:
            self._waits = True

    def _admitted(self) -> None:
        """There is a place for this handshake now."""
        if not self._done:
            self._start_timer()
            self._go_on()

    def _go_on(self) -> None:
        """Do the next step, when it is its turn."""
        if self._clock is None:
            self._step()
            return
        self._waits = True
        transports.accept_fewer(self._tls.transport, _ACCEPTS)
        if not Scheduler.of(self._clock).run(self._step):
            self._waits_since = self._clock.seconds()

    def _step(self) -> None:
        self._waits = False
        if self._waits_since is not None and self._clock is not None:
            self._waited += self._clock.seconds() - self._waits_since
            self._waits_since = None
        tls = self._tls
        if self._is_over():
            return
        if self._paused:
            self._paused = False
            tls.transport.resumeProducing()
        engine = tls.engine
        begins = engine.tls is None
        try:
            engine.shake_hands()
        except Exception:  # noqa: BLE001 the options may be the application's; it is logged
            tls.failed()
            return
        if self._is_over():
            return  # a callback of the options aborted it
        if engine.ended:
            tls.finish(Failure(engine.failure))
        elif engine.is_secure:
            self.cancel()
            tls.secured()
        else:
            answered = tls.flush()
            self._answered = answered or self._answered
            if self._limit is not None and (answered or begins):
                self._limit.answered(self, self._clock)

    def _is_over(self) -> bool:
        return self._done

    def _start_timer(self) -> None:
        self._stop_timer()
        if self._clock is not None and self._timeout is not None:
            self._timer = self._clock.callLater(self._timeout, self._timed_out)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _timed_out(self) -> None:
        self._timer = None
        if self._clock is not None and (self._waited or self._waits_since is not None):
            # The time that it took us is not the peer's.
            waited, self._waited = self._waited, 0.0
            self._timer = self._clock.callLater(waited or 1.0, self._timed_out)
        else:
            self._tls.abort(Failure(HandshakeTimedOut(self._timeout or 0.0)))
