"""
`Inbox`: each reason to hold delivery holds it alone.
"""

import pytest
from twisted.internet.testing import StringTransport

from txasynchat.framing import Framer
from txasynchat.protocol.inbox import Inbox

REASONS = ("paused", "choked", "suspended", "shut")


def opened():
    inbox = Inbox(Framer(b"\n"))
    inbox.open()
    return inbox


def test_nothing_is_delivered_before_the_connection_is_open():
    inbox = Inbox(Framer(b"\n"))
    assert inbox.framer.paused
    inbox.open()
    assert not inbox.framer.paused


@pytest.mark.parametrize("reason", REASONS)
def test_the_end_of_one_reason_is_not_the_end_of_another(reason):
    inbox = opened()
    for each in REASONS:
        setattr(inbox, each, True)
    inbox.framer.pause()
    for each in REASONS:
        setattr(inbox, each, each == reason)
    assert not inbox.release()
    assert inbox.framer.paused
    setattr(inbox, reason, False)
    assert inbox.release()
    assert not inbox.framer.paused


@pytest.mark.parametrize("reason", ["paused", "choked"])
def test_the_transport_is_told_to_read_or_not_only_when_that_is_news(reason):
    inbox = opened()
    transport = StringTransport()
    setattr(inbox, reason, True)
    inbox.set_reading(transport)
    assert transport.producerState == "paused"
    inbox.set_reading(transport)
    setattr(inbox, reason, False)
    inbox.set_reading(transport)
    assert transport.producerState == "producing"


def test_what_comes_after_the_end_is_read():
    inbox = opened()
    transport = StringTransport()
    inbox.paused = True
    inbox.set_reading(transport)
    inbox.close()
    inbox.set_reading(transport)
    assert transport.producerState == "producing"


def test_what_arrived_while_handlers_ran_stands_behind_what_the_framer_has():
    inbox = opened()
    inbox.framer.feed(b"1")
    inbox.keep(b"2")
    inbox.keep(b"3")
    assert inbox.undelivered == b"123"
    inbox.feed_kept()
    assert inbox.kept is None
    inbox.suspend()
    assert inbox.take_undelivered() == b"123"
    assert inbox.undelivered == b""
    assert not inbox.framer.paused


@pytest.mark.parametrize("data", [b"", b"unfinished"])
def test_whether_an_end_threw_something_away_is_remembered(data):
    inbox = opened()
    inbox.framer.feed(data)
    inbox.discard()
    assert inbox.discarded is bool(data)
    assert inbox.framer.closed
