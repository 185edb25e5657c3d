"""
A pass of loop(): who is asked, who is called, and in which order.

Also covers `compat._driver`, `compat._waiting`, `compat._asking`,
`compat._wants`, `compat._dispatch`, `compat._entries`, `compat._backoff` and `compat._interest`.
"""

import select
import socket
import sys
import time

import pytest

from helpers.loops import LIMIT, Chat, Recorder, both_modes, check_that_it_rests, in_thread
from txasynchat.compat import _backoff as backoff
from txasynchat.compat import asyncore


@pytest.mark.usefixtures("each_way")
class TestPasses:
    def test_an_empty_map_returns_at_once(self):
        started = time.monotonic()
        asyncore.loop(timeout=LIMIT, map={})
        assert time.monotonic() - started < LIMIT / 2

    @both_modes
    def test_count_is_a_number_of_passes(self, channels, pair, use_poll):
        near, far = pair()
        passes = []

        class Asked(Recorder):
            def readable(self):
                passes.append(1)
                return True

        Asked(far, channels)
        asyncore.loop(timeout=0, use_poll=use_poll, map=channels, count=3)
        assert len(passes) == 3
        near.send(b"x")
        asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
        assert len(passes) == 4
        assert channels[far.fileno()].got == [b"x"]

    @both_modes
    def test_pass_without_interest_lasts_the_whole_timeout(self, channels, pair, use_poll):
        _, far = pair()

        class Uninterested(Recorder):
            def readable(self):
                return False

        Uninterested(far, channels)
        started = time.monotonic()
        asyncore.loop(timeout=0.05, use_poll=use_poll, map=channels, count=2)
        assert time.monotonic() - started >= 0.1

    @both_modes
    def test_overridden_predicates_are_asked_once_a_pass_in_map_order(
        self, channels, pair, use_poll
    ):
        asked = []

        class Asked(Recorder):
            def readable(self):
                asked.append((self.name, "readable"))
                return True

            def writable(self):
                asked.append((self.name, "writable"))
                return []

        sockets = [pair()[1] for _ in range(4)]
        for name, sock in enumerate(reversed(sockets)):  # not in the order of the numbers
            Asked(sock, channels).name = name
        for _ in range(3):
            asked.clear()
            asyncore.loop(timeout=0, use_poll=use_poll, map=channels, count=1)
            assert asked == [(n, w) for n in range(4) for w in ("readable", "writable")]

    def test_select_mode_reads_all_before_it_writes_any(self, channels, pair):
        calls = []

        class Both(asyncore.dispatcher):
            def handle_read(self):
                calls.append(("read", self.name))
                self.recv(10)

            def handle_write(self):
                calls.append(("write", self.name))

        for name in "ab":
            near, far = pair()
            Both(far, channels).name = name
            near.send(b"x")
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert calls == [("read", "a"), ("read", "b"), ("write", "a"), ("write", "b")]

    def test_poll_mode_closes_on_a_hang_up_with_data_unread(self, channels):
        a, b = socket.socketpair()
        a.send(b"12345678")
        a.close()
        closed = []

        class Reader(asyncore.dispatcher):
            def handle_read(self):
                self.got = self.recv(4)

            def handle_close(self):
                closed.append(self.got)
                self.close()

            def writable(self):
                return False

        Reader(b, channels)
        asyncore.loop(timeout=LIMIT, use_poll=True, map=channels)
        assert closed == [b"1234"]

    @both_modes
    def test_urgent_data_calls_handle_expt(self, channels, pair, use_poll):
        near, far = pair()
        seen = []

        class Urgent(Recorder):
            def handle_expt(self):
                seen.append(self.socket.recv(1, socket.MSG_OOB))

        Urgent(far, channels)
        near.send(b"!", socket.MSG_OOB)
        asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
        assert seen == [b"!"]

    @both_modes
    def test_predicate_that_changes_the_map_affects_no_other_answer(self, channels, pair, use_poll):
        near, far = pair()
        passes = []

        class Asked(Recorder):
            def readable(self):
                return len(passes) < 2

        class Closing(Recorder):
            def readable(self):
                passes.append(1)
                if len(passes) == 3:
                    victim.close()
                    near.send(b"nobody wants it")
                return True

        deaf_since = Asked(far, channels)
        victim = Asked(pair()[1], channels)
        Closing(pair()[1], channels)
        asyncore.loop(timeout=0, use_poll=use_poll, map=channels, count=6)
        assert len(passes) == 6
        assert deaf_since.got == []
        assert len(channels) == 2

    @both_modes
    def test_unread_urgent_data_does_not_spin(self, channels, pair, use_poll, each_way):
        if each_way == "beside the reactor" and not hasattr(select, "epoll"):
            pytest.xfail("the reactor's poll wakes nobody for urgent data: it is found later")
        near, far = pair()
        told = []

        class Indifferent(Recorder):
            def handle_expt(self):
                told.append(time.monotonic())

        channel = Indifferent(far, channels)
        near.send(b"!", socket.MSG_OOB)
        check_that_it_rests(
            lambda: len(told),
            lambda: asyncore.loop(timeout=0.05, use_poll=use_poll, map=channels, count=1),
        )
        # What comes behind it is read, and urgent data is told of at once again.
        near.send(b"on")
        while channel.got[-1:] != [b"on"]:
            asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
        del told[:]
        near.send(b"!", socket.MSG_OOB)
        while len(told) < backoff.PATIENCE:
            asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
        assert told[-1] - told[0] < backoff.PATIENCE * backoff.PAUSE / 2

    @both_modes
    def test_channel_that_is_not_readable_does_not_notice_the_end(self, channels, pair, use_poll):
        near, far = pair()

        class Deaf(Recorder):
            deaf = True

            def readable(self):
                return not self.deaf

        deaf = Deaf(far, channels)
        near.close()
        asyncore.loop(timeout=0.01, use_poll=use_poll, map=channels, count=3)
        assert deaf.got == []
        assert channels
        deaf.deaf = False
        asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels)
        assert channels == {}

    @pytest.mark.parametrize("error", [asyncore.ExitNow, KeyboardInterrupt, SystemExit])
    @both_modes
    def test_system_exit_and_interrupts_leave_the_loop(self, channels, pair, error, use_poll):
        near, far = pair()

        class Leaving(Recorder):
            def handle_read(self):
                super().handle_read()
                raise error("leaving")

        Leaving(far, channels)
        near.send(b"x")
        with pytest.raises(error, match="leaving"):
            asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels)
        assert list(channels) == [far.fileno()]
        near.send(b"y")
        with pytest.raises(error):
            asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels)

    @both_modes
    def test_an_error_in_a_predicate_leaves_the_loop(self, channels, pair, use_poll):
        _, far = pair()

        class Broken(Recorder):
            def writable(self):
                raise ZeroDivisionError

        Broken(far, channels)
        with pytest.raises(ZeroDivisionError):
            asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels)

    def test_exception_in_handle_error_leaves_the_loop(self, channels, pair):
        near, far = pair()

        class Strict(Recorder):
            def handle_read(self):
                raise ValueError("first")

            def handle_error(self):
                assert sys.exc_info()[0] is ValueError
                raise  # noqa: PLE0704 - it is called inside an except block

        Strict(far, channels)
        near.send(b"x")
        with pytest.raises(ValueError, match="first"):
            asyncore.loop(timeout=LIMIT, map=channels)

    def test_loop_may_run_inside_a_handler(self, channels, pair):
        near, far = pair()
        other_near, other_far = pair()
        other = {}
        order = []

        class Inner(Recorder):
            def handle_read(self):
                super().handle_read()
                order.append("inner")
                self.close()

        class Outer(Recorder):
            def handle_read(self):
                super().handle_read()
                order.append("outer")
                asyncore.loop(timeout=LIMIT, map=other)  # another map
                asyncore.loop(timeout=0, map=channels, count=1)  # this very map
                self.close()

        Outer(far, channels)
        Inner(other_far, other)
        near.send(b"x")
        other_near.send(b"y")
        asyncore.loop(timeout=LIMIT, map=channels)
        assert order == ["outer", "inner"]

    def test_map_is_a_plain_dict_that_may_be_edited(self, channels, pair):
        near, far = pair()
        third_near, third = pair()
        here, elsewhere = Recorder(far, channels), {}
        moved = Recorder(third, elsewhere)

        class Editor(Recorder):
            def handle_read(self):
                super().handle_read()
                channels[third.fileno()] = elsewhere.pop(third.fileno())
                del channels[far.fileno()]

        editor_near, editor_sock = pair()
        editor = Editor(editor_sock, channels)
        asyncore.loop(timeout=0, map=channels, count=1)
        editor_near.send(b"edit")
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        near.send(b"not heard")
        third_near.send(b"heard")
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert (here.got, moved.got, editor.got) == ([], [b"heard"], [b"edit"])
        here.close()
        # Replaced in place, with nothing else changed.
        other = Recorder.__new__(Recorder)
        asyncore.dispatcher.__init__(other, None, {})
        other.got, other.socket, other.connected = [], third, True
        channels[third.fileno()] = other
        third_near.send(b"again")
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert (moved.got, other.got) == ([b"heard"], [b"again"])
        channels.clear()
        asyncore.loop(timeout=LIMIT, map=channels)
        moved.close()
        editor.close()

    def test_exception_in_a_signal_handler_leaves_the_loop(self, channels, pair):
        import signal

        _, far = pair()
        Recorder(far, channels)

        def handler(number, frame):
            raise InterruptedError("by signal")

        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(InterruptedError, match="by signal"):
                asyncore.loop(timeout=LIMIT, map=channels)
            assert signal.getsignal(signal.SIGALRM) is handler
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def test_signal_handlers_are_not_replaced(self, channels, pair):
        import signal

        _, far = pair()
        Recorder(far, channels)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        before = [signal.getsignal(number) for number in numbers]
        asyncore.loop(timeout=0, map=channels, count=1)
        assert [signal.getsignal(number) for number in numbers] == before
        assert signal.set_wakeup_fd(-1) == -1

    def test_channel_is_asked_again_when_its_queue_is_written_from_outside(self, channels, pair):
        near, far = pair()
        chat = Chat(far, channels)
        asyncore.loop(timeout=0, map=channels, count=3)
        chat.producer_fifo.append(b"past push\n")  # no method called
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert near.recv(100) == b"past push\n"

        class Feeder(Recorder):
            def handle_read(self):
                super().handle_read()
                chat.producer_fifo.append(b"from a handler\n")

        feeder_near, feeder = pair()
        Feeder(feeder, channels)
        with in_thread(lambda: feeder_near.send(b"x")):
            started = time.monotonic()
            asyncore.loop(timeout=LIMIT, map=channels, count=2)
        assert near.recv(100) == b"from a handler\n"
        assert time.monotonic() - started < LIMIT / 2

    def test_predicates_set_on_an_instance_are_used(self, channels, pair):
        near, far = pair()
        chat = Chat(far, channels)
        chat.readable = lambda: False
        near.send(b"x\n")
        asyncore.loop(timeout=0, map=channels, count=2)
        assert chat.got == []
        del chat.readable
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert chat.got == [b"x"]

    def test_replaced_functions_of_the_module_are_used(self, channels, pair, monkeypatch):
        near, far = pair()
        Recorder(far, channels)
        near.send(b"x")
        called = []
        monkeypatch.setattr(asyncore, "read", lambda obj: called.append(obj) or obj.handle_read())
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert called == [channels[far.fileno()]]
        polled = []
        monkeypatch.setattr(asyncore, "poll", lambda timeout, _: polled.append(timeout))
        asyncore.loop(timeout=3.0, map=channels, count=2)
        assert polled == [3.0, 3.0]
