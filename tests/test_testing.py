"""
The test kit for applications.
"""

import doctest
import io

import pytest
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.internet.protocol import Protocol
from twisted.logger import capturedLogs
from twisted.protocols.basic import FileSender, LineReceiver
from typing_extensions import override
from zope.interface.verify import verifyObject

from txasynchat import AsyncChat, Overflow, State, testing
from txasynchat.testing import MemoryEnd, MemoryLink, check_cuts, record, run


class Echo(AsyncChat):
    terminator = b"\r\n"
    max_message_length = 20
    overflow = Overflow.SKIP

    def message_received(self, message):
        if message == b"quit":
            self.push(b"bye\r\n")
            self.close_when_done()
        elif message == b"fail":
            raise ValueError("asked to")
        else:
            self.push(message + b"\r\n")


class Headers(AsyncChat):
    """Header and body alternate, as old programs do it by set_terminator."""

    terminator = b"\r\n\r\n"

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        data = self._get_data()
        if isinstance(self.get_terminator(), bytes):
            self.set_terminator(int(data))
        else:
            self.push(data.upper())
            self.set_terminator(b"\r\n\r\n")


class TestRecord:
    def test_record_has_the_calls_with_their_arguments_in_order(self):
        chat = Headers()
        calls = record(chat)
        outcome = run(chat, [b"3\r", b"\n\r\na", b"bc5\r\n\r\nd"])
        assert calls == [
            ("handle_connect",),
            ("collect_incoming_data", b"3"),
            ("found_terminator",),
            ("collect_incoming_data", b"abc"),
            ("found_terminator",),
            ("collect_incoming_data", b"5"),
            ("found_terminator",),
            ("collect_incoming_data", b"d"),
        ]
        assert outcome.calls == tuple(calls)
        assert outcome.sent == b"ABC"
        assert outcome.state is State.OPEN

    def test_record_has_the_end_and_errors(self):
        with capturedLogs() as logs:
            outcome = run(Echo(), [b"fail\r\nnot this\r\n"])
        assert len(logs) == 1
        assert [call[0] for call in outcome.calls] == [
            "handle_connect",
            "message_received",
            "handle_error",
        ]
        assert outcome.state is State.CLOSING


class TestCuts:
    @pytest.mark.parametrize(
        ("handler", "data", "sent"),
        [
            (Echo, b"one\r\n\r\n" + b"x" * 30 + b"\r\ntwo\r\nrest", b"one\r\n\r\ntwo\r\n"),
            (Echo, b"one\r\nquit\r\ntwo\r\n", b"one\r\nbye\r\n"),
            (Headers, b"5\r\n\r\nhello3\r\n\r\nbye", b"HELLOBYE"),
            (Echo, b"", b""),
        ],
    )
    def test_check_passes_for_a_handler_that_ignores_packet_bounds(self, handler, data, sent):
        assert check_cuts(handler, data).sent == sent

    def test_check_fails_for_a_handler_that_depends_on_packet_bounds(self):
        class Careless(AsyncChat):
            def collect_incoming_data(self, data):
                if b"ab" in data:
                    self.push(b"found")

            def found_terminator(self):
                pass

        with pytest.raises(AssertionError, match=r"split as \[b'x', b'a', b'b'\]"):
            check_cuts(Careless, b"xab")


class TestLink:
    def test_linked_transport_implements_twisteds_interfaces(self):
        end = MemoryEnd(Protocol())
        for interface in (ITransport, IConsumer, IPushProducer):
            assert verifyObject(interface, end)

    @pytest.mark.parametrize("size", [None, 1, 3])
    def test_two_handlers_talk_until_one_quits(self, size):
        class Asking(Echo):
            def handle_connect(self):
                self.push(b"hello\r\n")

            def message_received(self, message):
                self.push(b"quit\r\n")

        client, server = Asking(), Echo()
        calls = record(client)
        link = MemoryLink(client, server, size)
        assert link.client.value() == b"hello\r\n"
        link.flush()
        assert calls == [
            ("handle_connect",),
            ("message_received", b"hello"),
            ("message_received", b"bye"),
            ("handle_close",),
        ]
        assert client.state is server.state is State.CLOSED

    def test_any_protocol_may_be_at_the_other_end(self):
        class Lines(LineReceiver):
            @override
            def connectionMade(self):
                self.lines = []
                self.sendLine(b"hello")

            @override
            def lineReceived(self, line):
                self.lines.append(line)

        client = Lines()
        MemoryLink(client, Echo()).flush()
        assert client.lines == [b"hello"]

    def test_paused_reader_pauses_the_producer(self):
        asked = []

        def rows():
            for number in range(100):
                asked.append(number)
                yield bytes(10_000)

        class Sending(Echo):
            def handle_connect(self):
                self.push_with_producer(rows())
                self.close_when_done()

        class Reading(Protocol):
            received = 0

            @override
            def connectionMade(self):
                self.transport.pauseProducing()

            @override
            def dataReceived(self, data):
                self.received += len(data)

        client = Reading()
        link = MemoryLink(client, Sending())
        link.flush()
        assert len(asked) < 30
        client.transport.resumeProducing()
        link.flush()
        assert client.received == 1_000_000
        assert link.client.lost
        assert link.server.lost

    def test_link_supports_half_close_and_pull_producers(self):
        class Client(Protocol):
            received = b""

            @override
            def dataReceived(self, data):
                self.received += data

        client = Client()
        link = MemoryLink(client, Echo())
        FileSender().beginFileTransfer(io.BytesIO(b"one\r\ntwo\r\n"), client.transport)
        link.flush()
        client.transport.loseWriteConnection()
        client.transport.write(b"late\r\n")
        link.flush()
        assert client.received == b"one\r\ntwo\r\n"
        assert link.client.lost

    def test_half_close_ends_a_protocol_that_does_not_support_it(self):
        link = MemoryLink(Protocol(), Echo())
        link.server.loseWriteConnection()
        link.flush()
        assert link.server.lost
        assert link.client.lost

    def test_abort_takes_effect_at_once(self):
        client, server = Echo(), Echo()
        calls = record(server)
        link = MemoryLink(client, server)
        client.push(b"lost\r\n")
        client.abort()
        assert client.state is server.state is State.CLOSED
        link.flush()
        assert calls == [("handle_connect",), ("handle_close",)]


def test_example_in_the_module_docstring_works():
    assert doctest.testmod(testing) == (0, 4)
