"""`AsyncChat.pipe_to`: what a connection receives goes to another one, and to no hook any more."""

from __future__ import annotations

from txasynchat import transports
from txasynchat.delivery import StallWatch
from txasynchat.protocol.ends import Ends
from txasynchat.protocol.outbox import Phase
from txasynchat.protocol.pipe import QUIET, Pipe
from txasynchat.protocol.state import State

__all__ = ["Couples"]

_OPEN = State.OPEN
_CLOSED = State.CLOSED
_READY = Phase.READY


class Couples(Ends):
    """A connection that may be coupled with another one, whose end is then its own."""

    def pipe_to(self, other: Couples) -> None:
        """
        Send to *other* whatever this connection receives from now on, as it came.

        With all that no hook was given yet, the beginning of an unfinished message included; no hook
        for messages is called any more. Two calls couple the two connections both ways. *other* need
        not be connected yet: what comes before waits in its queue.

        While more than `high_water` bytes of *other* wait there, this connection does not read, until
        no more than its `low_water` do; `max_unsent` of *other* does not count. `pause` holds what
        arrives, as ever. When the peer ends its sending, *other* does (`end_sending`), and not
        `handle_eof` is called; this connection stays open for what is still to be sent, until its own
        sending has ended too. When either is lost, what has arrived is passed on, and the other one
        closes once everything is sent.

        `close_when_idle`, as when the server stops, closes this connection, and so both, when no byte
        went either way for a second, nothing waits, and delivery is not paused on either.

        Raises:
            TypeError: *other* is no `AsyncChat`.
            RuntimeError: this connection is piped already, or another one is piped to *other*.
        """
        if not isinstance(other, Couples):
            raise TypeError(f"pipe_to() takes an AsyncChat, not {other!r:.80}")
        if self._pipe is not None or other._fed_by is not None:
            raise RuntimeError("only one connection is piped to one other")
        collected = b"" if self._delivering else b"".join(self._incoming or ())
        self._incoming = None
        self._pipe = Pipe(self._inbox, other, other._take_piped, collected)
        self._pipe.finishing = self._close_when_idle and not self._inbox.peer_finished
        other._fed_by = self
        self._settles = True
        if _CLOSED in (self._state, other._state):
            ended = self if self._state is _CLOSED else other
            ended._uncouple()
            return
        self._unchoke()  # what waits here is no reason to stop reading any more
        other._check_level()
        if self._outbox.phase is _READY:
            self._go_on()

    # -- internals

    def _take_piped(self, data: bytes) -> None:
        if self._outbox.closing:
            self.dropped += len(data)
        else:
            self._outbox.push(data)
            self._pushed()

    def _uncouple(self) -> None:
        """This connection is lost: end those that it is coupled with."""
        pipe, source = self._pipe, self._fed_by
        self._pipe = self._fed_by = None
        if pipe is not None:
            pipe.quiet.cancel()
        if pipe is not None and pipe.target is not self:
            pipe.target._fed_by = None
            pipe.target._close()
        if source is not None and source is not self:
            if source._pipe is not None:
                source._pipe.quiet.cancel()
            source._pipe = None
            source._inbox.choked = False
            source._close()

    def _end_when_quiet(self) -> None:
        """Close if no byte went either way for a while; else look again later."""
        pipe = self._pipe
        if pipe is None or self._state is not _OPEN:
            return
        ours, theirs = self._outbox, pipe.target._outbox
        waits = bool(ours or theirs or pipe.target._inbox.held or not self._is_idle)
        if waits:
            pipe.quiet.cancel()
            pipe.quiet = StallWatch()
        clock = self.clock or transports.reactor_of(self.transport)
        counts = ours.taken, theirs.taken
        quiet = pipe.quiet.stalled(clock, QUIET, self._end_when_quiet, *counts)
        if (quiet or clock is None) and not waits:
            self.close_when_done()
