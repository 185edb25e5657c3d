"""
`AsyncChat` in memory: handlers that raise, and how a connection ends.

Also covers `protocol.ends` and `protocol.reports`.
"""

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import LogLevel, capturedLogs

from helpers.memory import Chat, Pushing, connected, lose
from txasynchat import State


class TestHandlersThatRaise:
    @pytest.mark.parametrize(
        "where",
        ["connectionMade", "handle_connect", "collect_incoming_data", "found_terminator"],
    )
    def test_exception_is_logged_once_and_pushed_bytes_are_sent(self, where):
        def fail(chat, *_arguments):
            chat.push(b"before")
            raise ValueError("in the handler")

        failing = type("Failing", (Chat,), {where: fail})
        chat, other = failing(), Chat()
        other_transport = connected(other)
        with capturedLogs() as logs:
            transport = connected(chat)
            chat.dataReceived(b"x\ny\nz\n")
        (event,) = logs
        assert event["log_level"] is LogLevel.critical
        assert event["log_failure"].type is ValueError
        assert "in the handler" in event["log_failure"].getTraceback()
        assert "fail" in event["log_failure"].getTraceback()
        assert event["peer"] == transport.getPeer()
        assert transport.value() == b"before"
        assert transport.disconnecting
        assert chat.events.count(("error", ValueError)) == 1
        assert chat.state is State.CLOSING
        assert not other_transport.disconnecting
        lose(chat)
        assert chat.events[-1] == "close"

    def test_a_failing_handle_error_is_logged_as_well(self):
        class Failing(Chat):
            def handle_error(self):
                raise KeyError("twice")

        chat = Failing(lambda *_: 1 / 0)
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"x\n")
        assert [event["log_failure"].type for event in logs] == [ZeroDivisionError, KeyError]
        assert transport.disconnecting

    def test_a_failing_handle_close_is_logged(self):
        class Failing(Chat):
            def handle_close(self):
                raise KeyError("late")

        chat = Failing()
        connected(chat)
        with capturedLogs() as logs:
            lose(chat)
        assert [event["log_failure"].type for event in logs] == [KeyError]
        assert chat.state is State.CLOSED

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done", "discard_buffers"])
    def test_handle_error_may_end_the_connection_differently(self, ending):
        class Ending(Chat):
            def handle_error(self):
                getattr(self, ending)()

        chat = Ending(lambda *_: 1 / 0)
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"x\ny\n")
        assert len(logs) == 1
        assert chat.messages == [b"x"]
        assert transport.disconnecting
        assert transport.aborted is (ending == "abort")

    def test_system_exit_propagates_and_delivery_continues(self):
        def leave(chat, message):
            raise SystemExit(3)

        chat = Chat(leave)
        connected(chat)
        with pytest.raises(SystemExit):
            chat.dataReceived(b"x\n")
        chat.on_message = None
        chat.dataReceived(b"y\n")
        assert chat.messages[-1] == b"y"


class TestClosing:
    def test_nothing_is_delivered_after_close(self):
        chat = Chat(lambda chat, message: chat.close() if message == b"2" else None)
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n3\n")
        chat.dataReceived(b"4\n")
        assert chat.messages == [b"1", b"2"]
        assert transport.disconnecting

    def test_nothing_is_delivered_after_close_from_collect_incoming_data(self):
        class Pieces(Chat):
            def collect_incoming_data(self, data):
                self.events.append(data)
                self.close()

            def found_terminator(self):
                self.events.append("end")

        chat = Pieces()
        connected(chat)
        chat.dataReceived(b"1\n2\n")
        assert chat.events == ["connect", b"1"]

    def test_messages_are_delivered_after_close_when_done_as_in_asynchat(self):
        chat = Chat(lambda chat, message: (chat.push(message), chat.close_when_done()))
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n3\n")
        assert chat.messages == [b"1", b"2", b"3"]
        assert transport.value() == b"1"
        assert chat.dropped == 2
        lose(chat)
        assert chat.events[-1] == "close"

    @pytest.mark.parametrize(
        ("ending", "told"), [("close", False), ("abort", False), ("close_when_done", True)]
    )
    def test_handle_close_is_called_unless_the_handler_closed(self, ending, told):
        chat = Chat()
        transport = connected(chat)
        getattr(chat, ending)()
        getattr(chat, ending)()
        assert transport.disconnecting
        lose(chat)
        lose(chat)
        assert chat.events == ["connect", "close"] if told else ["connect"]
        assert chat.state is State.CLOSED

    @pytest.mark.parametrize(
        ("ending", "expected"),
        [
            ("close", [("end", None)]),
            ("abort", [("end", None)]),
            ("close_when_done", ["close", ("end", None)]),
            ("readConnectionLost", ["close", ("end", None)]),
            ("nothing", ["close", ("end", None)]),
        ],
    )
    def test_handle_end_is_called_once_and_last(self, ending, expected):
        """A table that members leave in `handle_end` keeps no departed member."""

        class Member(Chat):
            def nothing(self):
                pass

            def handle_end(self, reason):
                self.events.append(("end", reason))

        chat = Member()
        connected(chat)
        getattr(chat, ending)()
        lose(chat)
        lose(chat)
        assert chat.events == ["connect", *expected]

    @pytest.mark.parametrize("where", ["connectionMade", "handle_connect", "handle_close"])
    def test_handle_end_is_called_after_another_hook_raised(self, where):
        """A failure in `handle_connect` or `handle_close` leaves no member in the table."""

        def fail(chat, *_):
            raise ValueError(where)

        ends = []
        hooks = {where: fail, "handle_end": lambda chat, reason: ends.append((chat.state, reason))}
        chat = type("Failing", (Chat,), hooks)()
        with capturedLogs() as logs:
            connected(chat)
            lose(chat)
        assert len(logs) == 1
        assert ends == [(State.CLOSED, None)]

    def test_a_failing_handle_end_is_logged_once(self):
        """The traceback is in the log, and the connection is over all the same."""

        class Failing(Chat):
            def handle_end(self, reason):
                raise KeyError("late")

        chat = Failing()
        connected(chat)
        chat.abort()
        with capturedLogs() as logs:
            lose(chat)
            lose(chat)
        assert [event["log_failure"].type for event in logs] == [KeyError]

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done"])
    @pytest.mark.parametrize(
        "where", ["connectionMade", "handle_connect", "message_received", "handle_close"]
    )
    def test_close_works_from_every_handler(self, ending, where):
        def end(chat, *_arguments):
            chat.push(b"x")
            getattr(chat, ending)()

        chat = type("Ending", (Chat,), {where: end})()
        with capturedLogs() as logs:
            transport = connected(chat)
            chat.dataReceived(b"m\nn\n")
            if where == "handle_close":
                lose(chat)
            else:
                assert transport.disconnecting
                assert transport.value() == (b"" if ending == "abort" else b"x")
                assert transport.aborted is (ending == "abort")
                lose(chat)
        assert logs == []
        assert chat.state is State.CLOSED

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done"])
    def test_close_works_before_the_connection(self, ending):
        chat = Chat()
        chat.push(b"x")
        getattr(chat, ending)()
        transport = connected(chat)
        assert transport.disconnecting
        assert transport.aborted is (ending == "abort")
        assert transport.value() == (b"" if ending == "abort" else b"x")
        assert "connect" not in chat.events

    def test_every_call_after_the_connection_is_lost_is_harmless(self):
        closed = []

        def produce():
            try:
                yield b"x"
            finally:
                closed.append(True)

        begun = produce()
        next(begun)
        chat = Chat()
        transport = connected(chat)
        lose(chat)
        before = list(transport.writes)
        chat.push(b"late")
        chat.push_with_producer(begun)
        chat.push_with_producer(b"late")
        chat.write(b"late")
        chat.dataReceived(b"late\n")
        for call in (
            chat.close,
            chat.abort,
            chat.close_when_done,
            chat.close_when_idle,
            chat.discard_buffers,
            chat.pause,
            chat.resume,
            chat.unregisterProducer,
            chat.pauseProducing,
            chat.resumeProducing,
            chat.stopProducing,
            chat.readConnectionLost,
            chat.writeConnectionLost,
        ):
            call()
        chat.set_terminator(b"x")
        assert chat.get_terminator() == b"x"
        assert chat.dropped == 12
        assert closed == [True]
        assert transport.writes == before
        assert not transport.disconnecting
        assert chat.events == ["connect", "close"]
        assert chat.unsent == 0
        assert not chat.connected

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done"])
    def test_closing_while_paused_does_not_resume_reading(self, ending):
        """A transport that is closing is not asked to read."""
        chat = Chat(lambda chat, message: (chat.pause(), chat.push(b"x"), getattr(chat, ending)()))
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n")
        chat.resume()
        assert transport.disconnecting
        assert chat.messages[0] == b"1"

    def test_connected_is_true_until_the_connection_is_lost(self):
        chat = Chat()
        assert not chat.connected
        connected(chat)
        assert chat.connected
        chat.close()
        assert chat.connected
        lose(chat)
        assert not chat.connected

    def test_discard_buffers_drops_input_and_output(self):
        chat = Chat(lambda chat, message: chat.discard_buffers() if message == b"2" else None)
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(b"unsent")
        chat.dataReceived(b"1\n2\n3\n4")
        assert chat.unsent == 0
        transport.make_room()
        chat.dataReceived(b"5\n")
        chat.push(b"new")
        assert chat.messages == [b"1", b"2", b"5"]
        assert transport.value() == b"fullnew"

    def test_discard_buffers_while_closing_completes_the_close(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(b"unsent")
        chat.close_when_done()
        assert not transport.disconnecting
        chat.discard_buffers()
        transport.make_room()
        assert transport.disconnecting
        assert transport.value() == b"full"

    def test_transport_may_be_lost_inside_the_close_call(self):
        chat = Chat(lambda chat, message: (chat.push(b"x"), chat.abort()))
        transport = StringTransportWithDisconnection()
        transport.protocol = chat
        transport.abortConnection = transport.loseConnection
        connected(chat, transport)
        with capturedLogs() as logs:
            chat.dataReceived(b"1\n2\n")
        assert logs == []
        assert chat.events == ["connect", b"1"]
        assert chat.state is State.CLOSED

    def test_connection_lost_while_a_handler_runs_stops_delivery(self):
        def lost(chat, message):
            lose(chat, ConnectionLost)
            chat.push(b"late")

        chat = Chat(lost)
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"1\n2\n")
        assert logs == []
        assert chat.events == ["connect", b"1", "close"]
        assert transport.value() == b""

    def test_after_the_peers_end_the_answers_are_sent_before_the_close(self):
        chat = Chat(lambda chat, message: chat.push(message))
        transport = connected(chat)
        chat.dataReceived(b"1\n2\nunfinished")
        chat.readConnectionLost()
        assert transport.value() == b"12"
        assert transport.disconnecting

    def test_after_the_peers_end_a_paused_handler_may_resume(self):
        chat = Chat(lambda chat, message: chat.pause())
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n")
        chat.readConnectionLost()
        assert not transport.disconnecting
        chat.push(b"answer 1")
        chat.resume()
        assert not transport.disconnecting
        chat.push(b"answer 2")
        chat.resume()
        assert transport.disconnecting
        assert transport.value() == b"answer 1answer 2"

    def test_close_when_idle_closes_after_an_unanswered_message(self):
        chat = Chat()
        transport = connected(chat)
        chat.dataReceived(b"the last mess")
        chat.close_when_idle()
        assert not transport.disconnecting
        chat.dataReceived(b"age\n")
        assert chat.messages == [b"the last message"]
        assert transport.disconnecting

    def test_a_handler_knows_whether_it_is_idle(self):
        """It can say goodbye at once, or has to wait until what it owes the peer is sent."""
        hook = Deferred()
        seen = []

        class Waiting(Chat):
            def message_received(self, message):
                seen.append((self.idle, self.pending))
                return hook

        chat = Waiting()
        assert not chat.idle
        transport = connected(chat)
        assert chat.idle
        chat.dataReceived(b"half")
        assert not chat.idle
        assert not chat.pending
        chat.dataReceived(b" a message\n")
        assert not chat.idle
        assert chat.pending
        hook.callback(None)
        assert chat.idle
        assert not chat.pending
        chat.pause()
        assert not chat.idle
        chat.resume()
        assert chat.idle
        transport.room = 0
        chat.push(b"full")
        chat.push(b"waits")
        assert not chat.idle
        transport.make_room()
        assert chat.idle
        chat.close()
        assert not chat.idle
        assert seen == [(False, False)]

    def test_after_the_peers_end_a_producer_continues(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push_with_producer(iter([b"x" * 100_000] * 3))
        chat.readConnectionLost()
        assert not transport.disconnecting
        transport.make_room()
        assert transport.disconnecting
        assert len(transport.value()) == 300_000


class TestCloseTimeout:
    def closing(self, **settings):
        chat = Chat()
        chat.clock = Clock()
        for name, value in settings.items():
            setattr(chat, name, value)
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(b"x" * 300_000)
        return chat, transport

    @pytest.mark.parametrize("ending", ["close", "close_when_done"])
    def test_peer_that_reads_nothing_is_aborted(self, ending):
        chat, transport = self.closing(close_timeout=5)
        getattr(chat, ending)()
        assert not transport.disconnecting
        with capturedLogs() as logs:
            chat.clock.advance(4.9)
            assert not transport.aborted
            chat.clock.advance(0.2)
        assert transport.aborted
        (event,) = logs
        assert event["kind"] == "CloseTimedOut"
        assert event["error"] == "no progress for 5 s while closing, 300000 bytes dropped"
        assert chat.clock.getDelayedCalls() == []

    def test_peer_that_reads_slowly_is_not_aborted(self):
        chat, transport = self.closing(close_timeout=5)
        chat.close_when_done()
        for _ in range(4):
            chat.clock.advance(4.9)
            transport.make_room(1)
        assert not transport.aborted
        assert not transport.disconnecting
        transport.make_room()
        assert transport.disconnecting
        assert len(transport.value()) == 300_004
        lose(chat)
        assert chat.clock.getDelayedCalls() == []

    def test_transport_that_does_not_close_is_aborted(self):
        chat = Chat()
        chat.clock = Clock()
        transport = connected(chat)
        chat.close()
        assert transport.disconnecting
        chat.clock.advance(10)
        assert transport.aborted

    def test_close_timeout_of_none_waits_for_ever(self):
        chat, transport = self.closing(close_timeout=None)
        chat.close()
        assert chat.clock.getDelayedCalls() == []
        assert not transport.aborted

    def test_unfinished_producer_does_not_keep_a_closing_connection(self):
        chat = Chat()
        chat.clock = Clock()
        transport = connected(chat)
        chat.push_with_producer(Pushing(chat))
        chat.close()
        chat.clock.advance(10)
        assert transport.aborted
