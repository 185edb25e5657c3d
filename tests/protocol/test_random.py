"""
`AsyncChat` in memory: random programs, and some that fail at random.
"""

import io
import random

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.protocols.basic import FileSender
from typing_extensions import override

from helpers.memory import Chat, Memory, connected, lose
from txasynchat import State, simple_producer


class Erratic(Chat):
    """Does something random in each handler, and records what it did."""

    terminator = b"\n"

    def __init__(self, chance):
        super().__init__()
        self.chance = chance
        self.accepted = []
        self.ended = False
        self.depth = 0
        self.high_water = chance.choice([None, 0, 10, 1_000])
        self.low_water = chance.choice([0, 5])
        self.ac_out_buffer_size = chance.choice([1, 7, 100, 65_536])
        self.clock = Clock()

    def do_something(self):
        action = self.chance.randrange(14)
        number = self.chance.randrange(100)
        data = b"<%d>" % number
        if action < 6:
            self.accept(data)
            self.push(data)
        elif action == 6:
            self.accept(data)
            self.push_with_producer(simple_producer(data, 2))
        elif action == 7:
            self.accept(data * 2)
            self.push_with_producer(self.produce(data))
        elif action == 8:
            self.accept(data)
            FileSender().beginFileTransfer(io.BytesIO(data), self).addErrback(lambda _: None)
        elif action == 9:
            self.pause()
        elif action == 10:
            self.resume()
        elif action == 11 and self.depth < 3:
            self.depth += 1
            self.do_something()
            self.do_something()
            self.depth -= 1
        elif action == 12 and number < 10:
            self.ended = True
            self.close_when_done()
        elif action == 13 and number < 10:
            self.ended = True
            self.close()

    def produce(self, data):
        yield data
        if self.chance.random() < 0.5 and self.depth < 3:
            self.depth += 1
            self.do_something()
            self.depth -= 1
        yield data

    def accept(self, data):
        if not self.ended:
            self.accepted.append(data)

    def handle_connect(self):
        super().handle_connect()
        self.do_something()

    def message_received(self, message):
        super().message_received(message)
        self.do_something()


class TestRandomPrograms:
    def run(self, seed):
        chance = random.Random(seed)
        chat = Erratic(chance)
        if chance.random() < 0.3:
            chat.do_something()
        transport = Memory()
        transport.room = chance.choice([None, 1, 20, 200])
        connected(chat, transport)
        lines = b"".join(b"%d\n" % number for number in range(chance.randrange(40)))
        fed = 0
        while fed < len(lines):
            action = chance.randrange(6)
            if action < 3:
                # What a paused transport holds back, as a socket does.
                if transport.reads:
                    size = chance.randrange(1, 20)
                    chat.dataReceived(lines[fed : fed + size])
                    fed += size
                elif chance.random() < 0.5:
                    chat.resume()
            elif action == 3:
                transport.make_room(chance.choice([None, 1, 20, 200]))
            elif action == 4:
                chat.do_something()
            else:
                chat.resume()
            if transport.disconnecting:
                break
            if not transport.reads:
                transport.make_room(20)
        for _ in range(2_000):
            if transport.disconnecting or not (chat.paused or transport.producer):
                break
            chat.resume()
            transport.make_room()
        return chat, transport, lines

    @pytest.mark.parametrize("block", range(10))
    @pytest.mark.slow
    def test_nothing_is_lost_stuck_or_out_of_order(self, block):
        for seed in range(block * 300, block * 300 + 300):
            with capturedLogs() as logs:
                chat, transport, lines = self.run(seed)
            assert logs == [], seed
            assert transport.value() == b"".join(chat.accepted), seed
            assert transport.disconnecting is chat.ended, seed
            assert not transport.aborted, seed
            assert transport.producer is None, seed
            if not chat.ended:
                assert chat.messages == lines.split(b"\n")[:-1], seed
                assert transport.reads
            lose(chat)
            assert chat.clock.getDelayedCalls() == [], seed


class Chaotic(Erratic):
    """Also raises and aborts."""

    def __init__(self, chance):
        super().__init__(chance)
        self.open_producers = 0
        self.closed_by_us = False

    def do_something(self):
        number = self.chance.randrange(60)
        if number == 0:
            raise ValueError("chaos")
        if number == 1:
            self.abort()
        elif number == 2:
            self.close()
        elif number == 3:
            self.discard_buffers()
        elif number == 4:
            lose(self, self.chance.choice([ConnectionDone, ConnectionLost]))
        elif number == 5:
            self.push_with_producer(self.failing())
        elif number == 6:
            self.push_with_producer(iter(["text"]))
        elif number == 7:
            FileSender().beginFileTransfer(FailingFile(), self).addErrback(lambda _: None)
        else:
            super().do_something()

    def close(self):
        self.closed_by_us |= self.state is not State.CLOSED
        super().close()

    def abort(self):
        self.closed_by_us |= self.state is not State.CLOSED
        super().abort()

    def produce(self, data):
        self.open_producers += 1
        try:
            yield data
            if self.chance.random() < 0.5 and self.depth < 3:
                self.depth += 1
                try:
                    self.do_something()
                finally:
                    self.depth -= 1
            yield data
        finally:
            self.open_producers -= 1

    def failing(self):
        yield b"good"
        raise OSError("chaos")

    def handle_close(self):
        super().handle_close()
        if self.chance.random() < 0.2:
            raise ValueError("chaos")

    def handle_error(self):
        super().handle_error()
        self.do_something()


class FailingFile(io.RawIOBase):
    @override
    def read(self, size=-1):
        raise OSError("chaos")


class TestChaos:
    @pytest.mark.parametrize("block", range(10))
    @pytest.mark.slow
    def test_whatever_happens_nothing_escapes_and_everything_ends(self, block):
        for seed in range(block * 300, block * 300 + 300):
            chance = random.Random(seed)
            chat = Chaotic(chance)
            transport = Memory()
            transport.room = chance.choice([None, 1, 20])
            with capturedLogs() as logs:
                connected(chat, transport)
                for _ in range(30):
                    action = chance.randrange(5)
                    if chat.state is State.CLOSED:
                        break
                    if action < 2 and not transport.disconnecting:
                        chat.dataReceived(b"%d\n" % action * chance.randrange(6))
                    elif action == 2:
                        transport.make_room(chance.choice([None, 1, 20]))
                    elif action == 3:
                        chat.readConnectionLost()
                    else:
                        chat.resume()
                lose(chat)
            handled = len(chat.events)
            chat.dataReceived(b"late\n")
            chat.resume()
            transport.make_room()
            assert len(chat.events) == handled, seed
            assert chat.events.count("close") == (not chat.closed_by_us), seed
            assert chat.state is State.CLOSED, seed
            assert chat.unsent == 0, seed
            assert chat.open_producers == 0, seed
            assert chat.clock.getDelayedCalls() == [], seed
            for event in logs:
                failure = event.get("log_failure")
                if failure is not None:
                    assert "chaos" in str(failure.value) or "not str" in str(failure.value), seed
                else:
                    assert "kind" in event or "error" in event, seed
