"""
A chat in memory: a handler that records, and a transport that can be full.
"""

import sys

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import implementer

from txasynchat import AsyncChat


class Chat(AsyncChat):
    """Records each line, and does with it what the test chooses."""

    terminator = b"\n"

    def __init__(self, on_message=None):
        self.on_message = on_message
        self.events = []

    def handle_connect(self):
        self.events.append("connect")

    def message_received(self, message):
        self.events.append(message)
        if self.on_message is not None:
            self.on_message(self, message)

    def handle_error(self):
        self.events.append(("error", sys.exc_info()[0]))

    def handle_close(self):
        self.events.append("close")

    def message_too_long(self, error):
        self.events.append(("too long", error.count))

    @property
    def messages(self):
        return [event for event in self.events if isinstance(event, bytes)]


class Memory(StringTransport):
    """A transport that records its writes, and can be full."""

    def __init__(self):
        super().__init__()
        self.writes = []
        self.aborted = False
        self.room = None

    @override
    def write(self, data):
        self.writes.append(data)
        super().write(data)
        if self.room is not None:
            self.room -= len(data)
            if self.room <= 0 and self.producer is not None:
                self.producer.pauseProducing()

    def make_room(self, room=None):
        self.room = room
        if self.producer is not None:
            self.producer.resumeProducing()

    @override
    def abortConnection(self):
        self.aborted = True
        super().abortConnection()

    @property
    def reads(self):
        return self.producerState == "producing"


@implementer(IPushProducer)
class Pushing:
    """A producer that records its calls."""

    def __init__(self, consumer):
        self.consumer = consumer
        self.calls = []

    @override
    def pauseProducing(self):
        self.calls.append("pause")

    @override
    def resumeProducing(self):
        self.calls.append("resume")

    @override
    def stopProducing(self):
        self.calls.append("stop")


def connected(chat, transport=None):
    transport = Memory() if transport is None else transport
    chat.makeConnection(transport)
    return transport


def lose(chat, reason=ConnectionDone):
    chat.connectionLost(Failure(reason()))
