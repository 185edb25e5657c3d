"""
`Inbox`: each reason to hold delivery holds it alone.
"""

import pytest
from twisted.internet.testing import StringTransport

from txasynchat.protocol.inbox import Inbox

REASONS = ("held", "choked", "suspended", "shut")


def opened():
    inbox = Inbox(b"\n")
    inbox.open()
    return inbox


def test_nothing_is_delivered_before_the_connection_is_open():
    inbox = Inbox(b"\n")
    assert inbox.paused
    inbox.open()
    assert not inbox.paused


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_holds_delivery_until_it_ends_itself(reason):
    inbox = opened()
    for each in REASONS:
        setattr(inbox, each, True)
    inbox.pause()
    for each in REASONS:
        setattr(inbox, each, each == reason)
    assert not inbox.release()
    assert inbox.paused
    setattr(inbox, reason, False)
    assert inbox.release()
    assert not inbox.paused


@pytest.mark.parametrize("reason", ["held", "choked"])
def test_transport_is_paused_and_resumed_only_on_a_change(reason):
    inbox = opened()
    transport = StringTransport()
    setattr(inbox, reason, True)
    inbox.set_reading(transport)
    assert transport.producerState == "paused"
    inbox.set_reading(transport)
    setattr(inbox, reason, False)
    inbox.set_reading(transport)
    assert transport.producerState == "producing"


def test_transport_reads_again_after_the_end():
    inbox = opened()
    transport = StringTransport()
    inbox.held = True
    inbox.set_reading(transport)
    inbox.close()
    inbox.set_reading(transport)
    assert transport.producerState == "producing"


def test_bytes_received_while_handlers_ran_follow_those_in_the_framer():
    inbox = opened()
    inbox.feed(b"1")
    inbox.keep(b"2")
    inbox.keep(b"3")
    assert inbox.undelivered == b"123"
    inbox.feed_kept()
    assert inbox.kept is None
    inbox.suspend()
    assert inbox.take_undelivered() == b"123"
    assert inbox.undelivered == b""
    assert not inbox.paused


@pytest.mark.parametrize("data", [b"", b"unfinished"])
def test_inbox_remembers_whether_an_end_discarded_bytes(data):
    inbox = opened()
    inbox.feed(data)
    inbox.discard()
    assert inbox.discarded is bool(data)
    assert inbox.closed
