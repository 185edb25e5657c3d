"""
`Sending`: how applications, and Twisted's producers, give an `AsyncChat` what it sends.

What they give goes into the `Outbox`. `AsyncChat` decides when it is written, because it knows whether
handlers that may give more are running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txasynchat.errors import ProducerError
from txasynchat.producers import Buffer
from txasynchat.protocol import settings
from txasynchat.protocol.hooks import Hooks
from txasynchat.protocol.outbox import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IPullProducer, IPushProducer

    from txasynchat.producers import Producer
    from txasynchat.protocol.outbox import Outbox

__all__ = ["Sending"]


class Sending(Hooks):
    """
    The part of `AsyncChat` that takes what is to be sent. Not to be used by itself.
    """

    #: Bytes that were dropped, because they were pushed after the connection began to close.
    dropped: int = 0

    # The rest of `AsyncChat`, as far as it is used here.
    transport: Any
    _outbox: Outbox
    _delivering: bool
    _pushed: Callable[[], None]
    _flush: Callable[[], None]
    _failed: Callable[[], None]

    # -- asynchat: called by the application

    def push(self, data: Buffer) -> None:
        """
        Send bytes after everything that is queued; a producer is better for large data.

        What is pushed inside handlers is written when they have run, in one write. Once the connection
        is closing it is dropped, and counted in `dropped`.

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
            try:
                self._check_length(data)
            except ValueError:
                outbox.take_back()
                raise
        self._pushed()

    def push_with_producer(
        self, producer: Producer | Buffer | IPushProducer | IPullProducer
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
        """
        Bytes that were pushed, and that the transport does not have yet.
        """
        return self._outbox.size

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
        self._check_length(data)
        if self._outbox.write(data):
            self._pushed()
        else:
            self.push(data)

    # -- internals

    def _check_length(self, data: Buffer) -> None:
        """
        Raise a ValueError if *data* alone is more than may ever wait.
        """
        length = memoryview(data).nbytes
        if self.max_unsent is not None and length > self.max_unsent and not self._outbox.closing:
            raise ValueError(
                f"{length} bytes in one push exceed max_unsent, {self.max_unsent}; send them with"
                " push_with_producer()"
            )

    def _check_caller(self, name: str, remedy: str) -> None:
        """
        Raise a RuntimeError if it was not the transport that called.
        """
        if not self._outbox.registered and self._outbox.phase is not Phase.DEPARTED:
            raise RuntimeError(
                f"{type(self).__qualname__}.{name}() is called by the transport, and stops output;"
                f" {remedy}"
            )
