"""
`Outbox` on a transport in memory: what is written when, and what its owner is told.
"""

from types import SimpleNamespace

import pytest
from twisted.internet.testing import StringTransport
from typing_extensions import override

from txasynchat.errors import ProducerError
from txasynchat.protocol.outbox import Outbox, Phase


class Owner(SimpleNamespace):
    """A producer that only holds its place in the queue."""

    def __init__(self, transport, **settings):
        super().__init__(
            transport=transport,
            **{"ac_out_buffer_size": 10, "max_unsent": 40} | settings,
        )

    def stopProducing(self):  # noqa: N802 Twisted's name
        self.outbox.full = True
        self.outbox.registered = False


def opened(owner):
    outbox = owner.outbox = Outbox()
    outbox.connect(owner.transport)
    outbox.open(owner)
    return outbox


def test_nothing_is_written_before_the_transport_is_open():
    owner = Owner(StringTransport())
    outbox = Outbox()
    outbox.push(b"early")
    assert outbox.flush(owner)
    assert owner.transport.value() == b""
    outbox.open(owner)
    assert outbox.flush(owner)
    assert owner.transport.value() == b"early"
    assert owner.transport.producer is None


def test_nothing_is_written_while_the_transport_is_full():
    owner = Owner(StringTransport())
    outbox = opened(owner)
    outbox.full = True
    outbox.push(b"waits")
    assert outbox.flush(owner)
    assert owner.transport.value() == b""
    assert outbox.taken == 0


def test_nothing_is_written_to_a_released_transport():
    owner = Owner(StringTransport())
    outbox = opened(owner)
    outbox.depart(owner.transport)
    outbox.push(b"late")
    assert outbox.flush(owner)
    assert owner.transport.value() == b""
    outbox.open(owner)
    assert outbox.phase is Phase.DEPARTED


def test_transport_that_stops_its_producer_at_once_is_reported():
    class Ended(StringTransport):
        @override
        def registerProducer(self, producer, streaming):
            producer.stopProducing()

    owner = Owner(Ended())
    outbox = opened(owner)
    outbox.push(b"lost")
    assert not outbox.flush(owner)


def test_bytes_queued_before_a_failing_producer_are_written():
    def fails():
        yield b"2"
        raise ValueError

    owner = Owner(StringTransport())
    outbox = opened(owner)
    outbox.push(b"1")
    outbox.add(fails())
    with pytest.raises(ProducerError):
        outbox.flush(owner)
    assert owner.transport.value() == b"12"
    assert not outbox.flushing


def test_a_request_to_close_outlives_what_is_dropped():
    owner = Owner(StringTransport())
    outbox = opened(owner)
    outbox.push(b"dropped")
    outbox.close_when_done()
    assert outbox.stop() == []
    assert outbox.closing
    outbox.push(b"late")
    assert outbox.flush(owner)
    assert outbox.finished
    assert owner.transport.value() == b""
