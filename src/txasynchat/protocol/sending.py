"""
`Sending`: how an application, and Twisted's producers, give an `AsyncChat` what it sends.

What is given goes into the `Outbox`. When it is written is for `AsyncChat` to say, which knows whether
handlers are running that may give more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txasynchat.errors import ProducerError
from txasynchat.producers import Buffer
from txasynchat.protocol import settings
from txasynchat.protocol.outbox import Phase, refuse

if TYPE_CHECKING:
    from twisted.internet.interfaces import IPullProducer, IPushProducer

    from txasynchat.producers import Producer
    from txasynchat.protocol.outbox import Outbox

__all__ = ["Sending"]


class Sending:
    """
    The part of `AsyncChat` that takes what is to be sent. Not to be used by itself.
    """

    #: Bytes pushed too late, which were dropped.
    dropped: int = 0

    max_unsent: int | None
    ac_out_buffer_size: int
    high_water: int | None
    low_water: int
    transport: Any
    _outbox: Outbox
    #: Handlers are running.
    _delivering: bool

    # -- asynchat: called by the application

    def push(self, data: Buffer) -> None:
        """
        Send bytes after everything that is queued; what is large is better sent by a producer.

        What is pushed from inside handlers is written when they have run, in one write. Dropped, and
        counted in `dropped`, once the connection is closing.

        Raises:
            TypeError: *data* is not bytes-like.
            ValueError: *data* alone is longer than `max_unsent`.
        """
        outbox = self._outbox
        if outbox.closing:
            self.dropped += memoryview(data).nbytes
            return
        outbox.push(data)
        if self._delivering and outbox.size < outbox.piece:
            return
        if self.max_unsent is not None and outbox.size > self.max_unsent:
            outbox.check_latest(data, self)
        self._pushed()

    def push_with_producer(
        self, producer: Producer | Buffer | IPushProducer | IPullProducer
    ) -> None:
        """
        Send what *producer* gives after everything that is queued; see `txasynchat.producers`.

        It is asked only when the transport takes data. If it fails, what was queued before it is
        sent, and the connection is handled as after an exception in a handler. Once the connection
        is closing it is not asked at all, and told at once that it is not needed.

        Raises:
            TypeError: *producer* is no producer.
        """
        if isinstance(producer, Buffer):
            self.push(producer)
        elif self._outbox.closing:
            refuse(producer)
        else:
            self._outbox.add(producer)
            self._pushed()

    @settings.shown
    def unsent(self) -> int:
        """
        Bytes that were pushed and not yet given to the transport.
        """
        return self._outbox.size

    # -- IPushProducer: called by the transport

    def pauseProducing(self) -> None:  # noqa: N802
        """
        The transport is full: take nothing more from the queue.

        Raises:
            RuntimeError: the application called it, who means `pause`.
        """
        self._check_caller("pauseProducing", "pause() stops delivery and reading")
        self._outbox.full = True
        try:
            self._outbox.pause()
        except ProducerError:
            self._failed()

    def resumeProducing(self) -> None:  # noqa: N802
        """
        The transport has room again.
        """
        self._outbox.full = False
        self._flush()

    def stopProducing(self) -> None:  # noqa: N802
        """
        The transport takes nothing any more; the loss of the connection, or of this half, follows.

        Raises:
            RuntimeError: the application called it, who means `abort`.
        """
        self._check_caller("stopProducing", "abort() ends the connection")
        self._outbox.full = True
        self._outbox.registered = False

    # -- IConsumer: called by a Twisted producer whose turn in the queue it is

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802
        """
        Queue a Twisted producer, which then calls `write`, and at its end `unregisterProducer`.

        So ``FileSender().beginFileTransfer(file, chat)`` works. It takes its turn in the queue like
        any other; several may be registered. Stopped at once if the connection is closing.
        """
        if self._outbox.closing:
            producer.stopProducing()
        else:
            self._outbox.register(producer, streaming)
            self._pushed()

    def unregisterProducer(self) -> None:  # noqa: N802
        """
        The registered producer whose turn it is has ended.
        """
        self._outbox.unregister()
        self._pushed()

    def write(self, data: bytes) -> None:
        """
        Take bytes of the registered producer whose turn it is; without one this is `push`.

        Raises:
            TypeError, ValueError: see `push`.
        """
        self._outbox.check_length(data, self)
        if self._outbox.write(data):
            self._pushed()
        else:
            self.push(data)

    # -- internals

    def _pushed(self) -> None:
        """
        Something was queued: write it, unless the handlers are running and there is little of it.
        """
        raise NotImplementedError

    def _flush(self) -> None:
        """
        Write what the transport takes, and do what follows when it has.
        """
        raise NotImplementedError

    def _failed(self) -> None:
        """
        Do what follows from the exception that is being handled.
        """
        raise NotImplementedError

    def _check_caller(self, name: str, remedy: str) -> None:
        """
        Raise if it is not the transport that tells its producer something.
        """
        if not self._outbox.registered and self._outbox.phase is not Phase.DEPARTED:
            raise RuntimeError(
                f"{type(self).__qualname__}.{name}() is called by the transport, and stops output;"
                f" {remedy}"
            )
