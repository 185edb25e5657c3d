"""
What each channel of a map waits for, as the hub knows it.

A channel answers two questions, readable and writable; the hub wants a mask of events for a
descriptor.  Between them stand:

- the mode: select(2) lets a listener wait to write and poll(2) does not, for example;
- TLS.  Where the facade's own sits on the socket, that turns the answers into what the descriptor
  has to be watched for, and has deadlines.  A program's own may want the other direction than the
  channel does, and then the channel waits for that, once;
- a rest (see `_backoff`);
- what no poller reports: decrypted bytes inside OpenSSL, descriptors that are not open, and what
  happens to channels without one.

So a channel that comes is adopted here, and one that departs is forgotten.  Another thread may close a
channel between its answer and the hub's registration.  So after each registration the map is looked at
once more, and the registration undone if the channel has departed.

Of the parts of a driver, this alone tells the hub anything about a channel.  It does not know when a
channel is asked, nor what is done about an event.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from txasynchat.compat._attributes import own, socket_of
from txasynchat.compat._backoff import Backoff
from txasynchat.compat._deadlines import Deadlines
from txasynchat.compat._interest import (
    STEADY,
    LayeredSocket,
    Pollable,
    has_descriptor,
    kind_of,
    pending_of,
    pollables,
)
from txasynchat.hub import ENDED, ERROR, HANGUP, INVALID, READ, URGENT, WRITE, Events, Hub

if TYPE_CHECKING:
    from txasynchat.compat._entries import Entries, Entry

__all__ = ["DIRECTIONS", "GONE", "IDLE", "Wants"]

#: What a channel waits for that reads, such as a chat channel that has nothing to send.
IDLE = READ | URGENT | ENDED
#: What poll(2) reports of a channel that is gone.
GONE = HANGUP | ERROR | INVALID
#: What TLS may wait for, by the names that `tls_wants` has for it.
DIRECTIONS = {"read": READ, "write": WRITE}


class Wants:
    """
    Tells the hub what the channels of a map wait for.

    Attributes:
        entries: the map and its table.
        hub: waits for the channels.
        backoff: which of them rest.
        poll_mode: the semantics of poll(2) instead of select(2)'s.
        deadlines: when the handshake of a channel must be done, or its last bytes be gone.
        closed: keys of channels whose descriptor is not open.
        buffered: keys of channels with decrypted bytes inside OpenSSL; or without a descriptor, who may
            have an event.
        pollables: by the keys of channels without a descriptor.
        tls_waits: keys of channels whose TLS, which is the program's own, wants the other direction
            than they do: what they do, again when that comes, and what it wants.
    """

    def __init__(self, entries: Entries, hub: Hub) -> None:
        self.entries = entries
        self.hub = hub
        self.backoff = Backoff()
        self.poll_mode = False
        self.deadlines = Deadlines()
        self.closed: dict[Any, None] = {}
        self.buffered: dict[Any, None] = {}
        self.pollables: dict[Any, Pollable] = {}
        self.tls_waits: dict[Any, tuple[int, int]] = {}
        # What they themselves wait for, while the hub waits for what TLS wants instead.
        self._exchanged: dict[Any, int] = {}

    def depart(self, fd: Any) -> None:
        """
        The channel under *fd* is not in the map any more; its entry stays, as nobody's.

        From any thread; what follows is for the loop's.
        """
        self.pollables.pop(fd, None)
        if self.entries.depart(fd):
            self.hub.forget(self.entries.number(fd))
            self.buffered.pop(fd, None)
            self.closed.pop(fd, None)
            self.deadlines.drop(fd)
            self.backoff.drop(fd)
        self.tls_waits.pop(fd, None)
        self._exchanged.pop(fd, None)

    def drop(self, fd: Any) -> None:
        self.depart(fd)
        self.entries.drop(fd)

    def adopt(self, fd: Any, channel: Any) -> Entry:
        """Make an entry for *channel*, which was not in the map before, or not under *fd*."""
        entries = self.entries
        if fd in entries.known and not entries.has_departed(fd):  # replaced with no method called
            self.depart(fd)
        is_new = fd in entries.newcomers.moments  # nobody asks it, for now
        entry = entries.enter(fd, channel, STEADY if is_new else kind_of(channel))
        sock = socket_of(channel)
        if pending_of(sock):
            self.buffered[fd] = None
        if isinstance(sock, LayeredSocket):
            sock.belong_to(channel)
        if not has_descriptor(fd) and fd in pollables:
            self.pollables[fd] = pollables[fd]
        leaves_at = own(channel, "_leaves_at")
        if leaves_at is not None:
            self.deadlines.set(fd, leaves_at)
        return entry

    def set(self, fd: Any, channel: Any, is_readable: Any, is_writable: Any) -> None:
        if LayeredSocket.are_used and isinstance(socket_of(channel), LayeredSocket):
            is_readable, is_writable = channel.socket.interest(is_readable, is_writable)
            if channel.socket.deadline is not None:
                self.deadlines.set(fd, channel.socket.deadline)
        mask = IDLE if is_readable else 0
        if is_writable:
            if not channel.accepting:
                mask |= WRITE
            if not self.poll_mode:
                mask |= URGENT
        if self.tls_waits:
            mask = self._exchange(fd, mask)
        if fd in self.backoff.resting:
            mask = self.backoff.mask(fd, mask)
        if self.closed:
            self.closed.pop(fd, None)
        number = self.entries.number(fd)
        if number < -1:
            self.buffered[fd] = None
        hub = self.hub
        if hub.masks.get(number, 0) != mask:
            channels = self.entries.channels
            try:
                hub.watch(number, mask)
            except OSError:
                if channels.get(fd) is channel:  # else another thread just closed it
                    self.closed[fd] = None
            else:
                if channels.get(fd) is not channel:  # likewise
                    hub.forget(number)

    def _exchange(self, fd: Any, mask: int) -> int:
        """Return what to wait for in place of *mask*, where TLS wants the other direction."""
        self._exchanged.pop(fd, None)
        waits = self.tls_waits.get(fd)
        if waits is None:
            return mask
        doing, wants = waits
        if not mask & doing:  # the channel does not want to go on
            self.tls_waits.pop(fd, None)
            return mask
        self._exchanged[fd] = mask
        return mask & ~(doing | ENDED) | wants

    def change_back(self, ready: dict[Any, int]) -> None:
        """Let an event in *ready* that TLS wanted be one for what it kept the channel from; once."""
        for fd, mask in list(self._exchanged.items()):
            bits = ready.get(fd, 0)
            doing, wants = self.tls_waits.get(fd, (0, 0))
            if bits & (wants | GONE):
                ready[fd] = bits & (mask | GONE) | doing
                self.tls_waits.pop(fd, None)
                self._exchanged.pop(fd, None)
                channel = self.entries.channels.get(fd)
                if channel is not None:
                    self.set(fd, channel, mask & READ, mask & WRITE)

    # -- what the system does not report

    def refuse_closed(self) -> None:
        """
        Raise EBADF, as select(2) does where a descriptor is not open; poll mode has an event for that.
        """
        if not self.poll_mode:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def ready(self) -> dict[Any, int]:
        """Return the events that the system does not report, by the keys of the channels."""
        masks = self.hub.masks
        number = self.entries.number
        ready = {}
        for fd in list(self.buffered):
            bits = masks.get(number(fd), 0) & READ if has_descriptor(fd) else self.poll(fd)
            if bits:
                ready[fd] = bits
            elif not has_descriptor(fd):
                self.buffered.pop(fd, None)  # until it tells, or waits for more
        ready.update((fd, INVALID) for fd in list(self.closed) if fd not in self.backoff.resting)
        return ready

    def poll(self, fd: Any) -> int:
        """Return what the channel under *fd*, which has no descriptor, waited for and happened."""
        pollable = self.pollables.get(fd)
        mask = self.hub.masks.get(fd, 0)
        bits = 0 if pollable is None else pollable.poll() & mask
        if LayeredSocket.are_used and (bits ^ READ) & mask & READ:
            channel = self.entries.channels.get(fd)
            if pending_of(socket_of(channel)):
                bits |= READ
        return bits

    def with_ready(self, events: Events) -> Events:
        ready = dict(events)
        for fd, bits in self.ready().items():
            number = self.entries.number(fd)
            if number >= 0:
                self.buffered.pop(fd, None)
            ready[number] = bits if bits == INVALID else ready.get(number, 0) | bits
        return list(ready.items())
