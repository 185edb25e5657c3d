"""
`AsyncChat`: messages in, a queue of bytes and producers out, on any Twisted transport.

Theory of operation
===================

*Input.* ``dataReceived`` gives the chunk to an `Inbox`, which calls the handlers, and knows what holds
delivery. Delivery never nests: what arrives while handlers run waits there. What a handler returns that
is not None goes to `hook_returned`; if it waits for something, delivery waits for it.

*Output.* `push` appends to an `Outbox`. What was pushed while one chunk was handled is written when the
handlers are done, as one write.

This module has what the transport and the application call, as long as the connection is open. What
follows from it has modules of its own, one for each class that this one is made from.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from twisted.internet import defer, interfaces
from twisted.internet.error import ConnectionDone
from typing_extensions import override
from zope.interface import implementer

from txasynchat import endings, errors, transports
from txasynchat.handlers import check_threads
from txasynchat.producers import Buffer
from txasynchat.protocol import closing, lines, reports, settings
from txasynchat.protocol.draining import AT_ONCE
from txasynchat.protocol.limited import Limited
from txasynchat.protocol.outbox import Phase
from txasynchat.protocol.starttls import Upgrade
from txasynchat.protocol.state import State
from txasynchat.protocol.stream import Stream
from txasynchat.tls.factory import adopt
from txasynchat.tls.info import TLSInfo
from txasynchat.tls.leftovers import Leftovers

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from txasynchat.producers import Producer

__all__ = ["AsyncChat"]

# A module global is read about 10x faster than an enum member in 3.11.
_CONNECTING = State.CONNECTING
_OPEN = State.OPEN
_CLOSING = State.CLOSING
_CLOSED = State.CLOSED
_READY = Phase.READY
_DEPARTED = Phase.DEPARTED


@implementer(interfaces.IPushProducer, interfaces.IConsumer)
@implementer(interfaces.IHalfCloseableProtocol, interfaces.IHandshakeListener)
class AsyncChat(Limited):
    """
    A connection that speaks in messages: ``asynchat.async_chat`` as a Twisted protocol.

    Override either `message_received`, or `collect_incoming_data` and `found_terminator`; and set a
    terminator, as the class attribute or by `set_terminator` in `handle_connect` or ``__init__``.
    A subclass need not call ``__init__`` or ``connectionMade`` of this class; one that overrides
    ``connectionLost`` calls ``super()``.

    All methods belong to the reactor's thread; other threads use ``reactor.callFromThread``. Under
    ``python -X dev`` the methods that an application calls raise `RuntimeError` in any other thread.

    Stdlib: asynchat.async_chat (3.11 library reference), whose names and order of calls these are.
    Deliberate differences: `max_message_length`; `set_terminator` checks its argument; `pause` takes
    effect before the next message; nothing is delivered after `close`.
    """

    # -- IProtocol: called by the transport

    @override
    def makeConnection(self, transport: Any) -> None:
        """
        Set up, call ``connectionMade``, and open the connection: at once, or after a TLS handshake.

        Raises:
            RuntimeError: this object has, or had, another connection; the new one is aborted.
        """
        if self.transport is not None:
            error = RuntimeError(
                f"{self!r} is used for a second connection; a factory makes a new protocol for each"
            )
            transports.turn_away(transport, self, error)
            raise error
        self._outbox.connect(transport)
        bare = endings.own(transport, self)
        if not bare:
            adopt(transport)
            endings.let_protocol_end(transport)
            transports.tell_of_half_close(transport, self)
        try:
            super().makeConnection(transport)  # type: ignore[no-untyped-call] # Twisted's, untyped
            checked = self._checked
            if not (
                self.high_water is checked[0]
                and self.low_water is checked[1]
                and self.max_unsent is checked[2]
                and self.ac_out_buffer_size is checked[3]
                and self.close_timeout is checked[4]
                and self.clock is checked[5]
                and self.max_message_length is checked[6]
            ):
                self._check_settings()
            if self._computes:
                self._inbox.limit = self.max_message_length
                self._inbox.overflow = self.overflow
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
        if self._outbox.phase is _DEPARTED:
            transports.abort(transport)  # abort() was called before there was anything to abort
        elif bare:
            self._open()
        elif transports.when_secure(transport, self):
            self._open_if_introduced()
        elif self._state is _CLOSING:
            self._leave()

    @override
    def dataReceived(self, data: bytes) -> None:
        """
        Deliver the messages in *data*, then write what they made the handlers push.

        A fast path: a line of 64 bytes and its answer, one at a time on 50 connections, cost a server
        10.9 microseconds with it and 13.1 without (CPython 3.11).
        """
        if self._delivering or self._settles:
            self._receive_otherwise(data)
            return
        self._delivering = True
        try:
            try:
                self._inbox.receive(self, data)  # which keeps the bytes where delivery is held
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                self._failed()
            outbox = self._outbox
            if self._unsettled:
                if self._state is not _CLOSING or not closing.at_once(
                    self.transport, self._inbox, outbox
                ):
                    self._settle()
            elif outbox.size and not outbox.send_reply(self.transport):
                self._settle()
        finally:
            self._delivering = False

    # -- IHandshakeListener: called by the transport

    def handshakeCompleted(self) -> None:  # noqa: N802
        """The TLS handshake is done: the connection opens, or goes on after `start_tls`."""
        self._upgrade = None
        if self._outbox.phase is Phase.WAITING:
            self._open_if_introduced()

    # -- IPushProducer: called by the transport

    def pauseProducing(self) -> None:  # noqa: N802
        """
        The transport is full: take nothing more from the queue.

        Raises:
            RuntimeError: the application called it, and means `pause`.
        """
        self._check_caller("pauseProducing", "pause() stops delivery and reading")
        self._outbox.full = True
        try:
            self._outbox.pause()
        except errors.ProducerError:
            self._failed()

    def resumeProducing(self) -> None:  # noqa: N802
        """The transport has room again."""
        self._outbox.full = False
        self._flush()

    def stopProducing(self) -> None:  # noqa: N802
        """
        The transport takes nothing more; the loss of the connection, or of this half, follows.

        Raises:
            RuntimeError: the application called it, and means `abort`.
        """
        self._check_caller("stopProducing", "abort() ends the connection")
        self._outbox.full = True
        self._outbox.registered = False

    # -- IConsumer: called by a Twisted producer whose turn in the queue it is

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802
        """
        Queue a Twisted producer, which then calls `write`, and at its end `unregisterProducer`.

        So ``FileSender().beginFileTransfer(file, chat)`` works. It takes its turn in the queue, and
        several may be registered. Once the connection is closing it is stopped at once.
        """
        self._outbox.register(producer, streaming)
        if not self._outbox.closing:
            self._pushed()

    def unregisterProducer(self) -> None:  # noqa: N802
        """The registered producer whose turn it is has ended."""
        self._outbox.unregister()
        self._pushed()

    def write(self, data: bytes) -> None:
        """
        Take bytes of the registered producer whose turn it is; without one this is `push`.

        Raises:
            TypeError, ValueError: see `push`.
        """
        self._outbox.check_length(data, self.max_unsent)
        if self._outbox.write(data):
            self._pushed()
        else:
            self.push(data)

    # -- asynchat: called by the application

    def push(self, data: Buffer | str) -> None:
        """
        Send bytes after everything that is queued; a producer is better for large data.

        What is pushed inside handlers is written when they have run, in one write. Once the connection
        is closing it is dropped, and counted in `dropped`.

        Args:
            data: bytes-like; or, where the class has an `encoding`, text.

        Raises:
            TypeError: *data* is anything else.
            ValueError: *data* alone is longer than `max_unsent`, or cannot be encoded.
        """
        outbox = self._outbox
        if outbox.closing:
            self.dropped += outbox.length(data)
            return
        outbox.push(data)  # type: ignore[arg-type] # a TextOutbox takes text
        if self._delivering and outbox.size < outbox.piece:
            return
        if self.max_unsent is not None and outbox.size > self.max_unsent:
            try:
                outbox.check_length(data, self.max_unsent)
            except ValueError:
                outbox.take_back()
                raise
        self._pushed()

    def push_line(self, line: Buffer | str) -> None:
        """
        `push` one line, and the delimiter behind it.

        That is the terminator, or the class's, where the one in force is no delimiter. Of a tuple it is
        `matched_terminator`, so that an answer ends as the peer ends its lines; before there was one,
        the first.

        Args:
            line: without its end; bytes-like or, where the class has an `encoding`, text.

        Raises:
            TypeError: *line* is anything else.
            ValueError: *line* contains the delimiter, so that it would be several lines; or, where
                that is a line end, any CR or LF. Or there is no delimiter. Nothing is sent.
        """
        matched = self._inbox.matched
        ends = lines.delimiters(self._inbox.chosen) or lines.delimiters(type(self).terminator)
        if not ends:
            raise ValueError(f"{type(self).__qualname__} has no delimiter to end a line with")
        data = bytes(memoryview(self._outbox.encoded(line)))
        lines.check_line(data, ends)
        self.push(data + (matched if matched in ends else ends[0]))

    def withdraw(self, data: bytes) -> bool:
        """
        Forget what was pushed and need not be sent any more, such as a state that has changed since.

        Args:
            data: the very object that was given to `push`; the oldest, if it was given more than once.

        Returns:
            whether it is forgotten; not, if some of it is with the transport.
        """
        withdrawn = self._outbox.withdraw(data)
        if withdrawn:
            self._pushed()
        return withdrawn

    def push_with_producer(
        self,
        producer: Producer | Buffer | interfaces.IPushProducer | interfaces.IPullProducer,
    ) -> None:
        """
        Send what *producer* gives after everything that is queued; see `txasynchat.producers`.

        It is asked only when the transport takes data. If it fails, what was queued before it is
        sent, and the connection closes as after an exception in a handler. Once the connection is
        closing it is never asked, and stopped at once.

        Raises:
            TypeError: *producer* is not a producer.
        """
        if isinstance(producer, Buffer):
            self.push(producer)
        else:
            self._outbox.add(producer)
            if not self._outbox.closing:
                self._pushed()

    @settings.shown
    def unsent(self) -> int:
        """Bytes that were pushed, and that the transport does not have yet."""
        return self._outbox.size

    def drained(self) -> Deferred[None]:
        """
        Return what fires when everything that was pushed is with the transport.

        So a coroutine sends no faster than the peer reads, and never asks for `unsent`::

            for piece in pieces:
                self.push(piece)
                await self.drained()

        It fires at once if nothing waits, or in the reactor's next iteration when much was sent in this
        one. While the connection closes it fires at the end, when everything was sent.

        Returns:
            A Deferred, which fails with `close_reason`, or with the reason that ``connectionLost`` was
            given, if something that was pushed is lost with the connection.
        """
        if self._state is _CLOSED:
            return defer.fail(self.close_reason or ConnectionDone())
        outbox = self._outbox
        at_once = outbox.taken - outbox.drained_at < AT_ONCE
        if not outbox and at_once and self._state is not _CLOSING:
            return defer.succeed(None)
        waiting = outbox.await_drain().wait()
        if not at_once:
            self._take_turn()
        if self._delivering:
            self._unsettled = True
        return waiting

    def start_tls(self, options: Any, *, leftovers: Leftovers = Leftovers.REJECT) -> None:
        """
        Speak TLS from here on, as server or as client, in mid-connection.

        What was pushed before, producers included, is sent in the clear; what is pushed afterwards
        waits for the handshake. Nothing more is delivered until `handle_secure` has been called. If the
        connection is closing, nothing happens.

        Args:
            options: a `ServerOptions`, a `ClientOptions`, or one of Twisted's connection creators.
            leftovers: what becomes of bytes behind the message that made the application call this,
                and of bytes that arrive before the transport has the last of the plaintext.

        Raises:
            RuntimeError: there is TLS already, or its handshake is going on; the connection is not
                open yet; or TLS cannot be put on a transport of its kind.
            TypeError: *options* is none of those above.
            ValueError: *leftovers* is not a `Leftovers`.
        """
        ways = self._inbox, self._outbox, self._abort, self._forget_input
        upgrade = Upgrade(self, options, leftovers, *ways)
        if self._outbox.closing:
            return
        if self._upgrade is not None:
            raise RuntimeError("TLS was already started")
        if upgrade.begin():
            self._upgrade = upgrade
            self._go_on()

    def stream(self) -> Stream:
        """
        Return the connection as a `Stream`, whose messages are awaited instead of delivered.

        From now on no hook gets a message, and the end of what the peer sends closes nothing: the
        application does. `close_when_idle`, as when the server stops, ends the stream; see there.
        To be called inside `handle_connect`, or between two messages. Always returns the same object.

        Raises:
            RuntimeError: the connection is not open yet, or is gone; a message has begun whose pieces
                were passed on; or `get_terminator` is overridden.
        """
        if self._stream is None:
            if self._state is _CONNECTING or self._state is _CLOSED:
                raise RuntimeError(f"the connection is {self._state.value}; it has no stream")
            if self._asks or (self._inbox.in_message and not self._inbox.whole):
                raise RuntimeError("stream() comes too late, or get_terminator() is overridden")
            ways = self._run_handler, self._close, self._is_malformed
            self._stream = Stream(self, self._inbox, self._outbox, ways)
            self._settles = True
            if self._close_when_idle:
                self._stream.finish()
        return self._stream

    def discard_buffers(self) -> None:
        """
        Drop what was received and is not delivered, and what is queued; stop the producers.

        Stdlib: asynchat.async_chat.discard_buffers.
        """
        self._forget_input()
        self._drop_output(hold_back=self._upgrade is not None and self._upgrade.waits)
        if self._state is not _CLOSED:
            self._pushed()

    def pause(self) -> None:
        """
        Deliver nothing from the next message on, and stop reading; harmless when repeated.

        Bytes that were already read wait, and so do those that TLS has decrypted.
        """
        self._inbox.held = True
        self._hold()

    def resume(self) -> None:
        """
        Deliver and read again.

        No hook is called before this returns: from inside a hook of this connection, delivery goes on
        when that has returned; else in the reactor's next iteration. So a program that resumes many
        connections in a loop has finished the loop when the first message makes it pause them again.
        (On a transport in memory, which has no reactor, delivery goes on at once.)
        """
        inbox = self._inbox
        if inbox.held:
            inbox.held = False
            if inbox.waits and not self._delivering:
                inbox.resting = True
                self._take_turn()
            elif inbox.release():
                self._go_on()

    @settings.shown
    def idle(self) -> bool:
        """
        Nothing is going on: the connection is open, no message is half received, no hook runs or waits
        for anything, delivery is not held, and nothing that was pushed waits here.
        """
        return self._is_idle and not (self._delivering or self._outbox)

    @settings.shown
    def pending(self) -> bool:
        """A hook that takes input is not done: it waits, and the peer waits for its answer."""
        return self._inbox.awaited > 0

    @settings.shown
    def paused(self) -> bool:
        """The application paused delivery."""
        return self._inbox.held

    @settings.shown
    def tls(self) -> TLSInfo | None:
        """What was agreed on in the TLS handshake; None before, and without TLS."""
        return TLSInfo.of(self.transport)

    @settings.shown
    def addr(self) -> Any:
        """
        The peer's address as the `socket` module would give it, ``(host, port)`` or a path.

        None before there is a connection, and where there are no addresses, as with a process.
        """
        return None if self.transport is None else transports.peer_address(self.transport)

    @property
    def proxied(self) -> Any:
        """
        What a proxy said of this connection, a `Proxied`, behind ``proxy:``; None for other ones.

        None, too, before there is a connection, and after it.
        """
        return getattr(self.transport, "proxied", None)

    # -- internals

    def _open_if_introduced(self) -> None:
        """Open the connection as soon as `addr` is the peer's and not a proxy's."""
        if transports.when_introduced(self.transport, self._open):
            self._open()
        elif self._outbox.closing:
            self._leave()

    def _open(self) -> None:
        self._outbox.open(self)
        first = self._state is _CONNECTING
        if first:
            self._set_state(_OPEN)
        self._delivering = self._redeliver = True
        try:
            if not self._inbox.closed:
                if first:
                    self._inbox.open()
                then = self._opened if first else None
                if self._hears_of_tls and (info := TLSInfo.of(self.transport)) is not None:
                    self._call(self.handle_secure, info, then=then)
                elif then is not None:
                    then()
            self._settle()
        finally:
            self._delivering = False

    def _opened(self) -> None:
        if self._state is not _OPEN or self._inbox.closed:
            return
        self._call(self.handle_connect)
        inbox = self._inbox
        framed = inbox.terminator or inbox.awaited or self._asks or self._pipe is not None
        if inbox.whole and not framed:
            reports.no_terminator(self._log, self)

    def _check_caller(self, name: str, remedy: str) -> None:
        if not self._outbox.registered and self._outbox.phase is not _DEPARTED:
            raise RuntimeError(
                f"{type(self).__qualname__}.{name}() is called by the transport, and stops output;"
                f" {remedy}"
            )

    # -- internals: asked by the transport, see `endings.let_protocol_end`

    def _takes_write(self, transport: Any, data: bytes) -> bool:
        # What a policy in between writes is our own, which it delayed, unless a handler is running.
        own = not self._delivering and self.transport is not transport
        if own or self._outbox.flushing or not self._outbox:
            return False
        AsyncChat.push(self, data)
        return True

    def _takes_tls(self) -> None:
        self._flush()
        if self._outbox:
            raise RuntimeError(
                "startTLS() was called with output queued that cannot be sent yet, and would be"
                " encrypted; call AsyncChat.start_tls(), which waits for it"
            )


if sys.flags.dev_mode:
    check_threads(AsyncChat)
