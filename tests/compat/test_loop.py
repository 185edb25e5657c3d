"""
What drives the channels: loop(), attach(), and what lies between them and the hub.
"""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager

import pytest
from OpenSSL import SSL
from twisted.internet import defer, endpoints, protocol, task
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import TestCase

from txasynchat.compat import _driver as driving
from txasynchat.compat import _loop, asynchat, asyncore, attach, current_reactor

LIMIT = 10.0


class Recorder(asyncore.dispatcher):
    """Reads and notes; writes nothing."""

    def __init__(self, sock=None, channels=None):
        super().__init__(sock, channels)
        self.got = []

    def writable(self):
        return False

    def handle_read(self):
        self.got.append(self.recv(1000))


class Chat(asynchat.async_chat):
    def __init__(self, sock=None, channels=None):
        super().__init__(sock, channels)
        self.got = []
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.got.append(self._get_data())


@pytest.fixture
def channels():
    """A map of one's own, closed at the end."""
    own = {}
    yield own
    asyncore.close_all(own, ignore_all=True)


@contextmanager
def in_thread(target, *args, **kwargs):
    thread = threading.Thread(target=target, args=args, kwargs=kwargs)
    thread.start()
    yield thread
    thread.join(LIMIT)
    assert not thread.is_alive()


def until(condition, what="what was waited for"):
    """For the few things that another thread does and nobody announces."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.001)


def waits(channels):
    """Whether a loop() sits in its wait."""
    driver = _loop.driver_of(channels)
    return driver is not None and driver._waiting


both_modes = pytest.mark.parametrize("use_poll", [False, True], ids=["select", "poll"])


# -- passes


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
    def test_a_pass_without_interest_lasts_the_whole_timeout(self, channels, pair, use_poll):
        _, far = pair()

        class Uninterested(Recorder):
            def readable(self):
                return False

        Uninterested(far, channels)
        started = time.monotonic()
        asyncore.loop(timeout=0.05, use_poll=use_poll, map=channels, count=2)
        assert time.monotonic() - started >= 0.1

    @both_modes
    def test_overridden_predicates_are_asked_once_a_pass_in_the_maps_order(
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
    def test_urgent_data_comes_as_expt(self, channels, pair, use_poll):
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
    def test_a_predicate_that_changes_the_map_spoils_no_other_answer(
        self, channels, pair, use_poll
    ):
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
    def test_urgent_data_that_nobody_takes_costs_no_processor(self, channels, pair, use_poll):
        near, far = pair()
        told = []

        class Indifferent(Recorder):
            def handle_expt(self):
                told.append(time.monotonic())

        channel = Indifferent(far, channels)
        near.send(b"!", socket.MSG_OOB)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            asyncore.loop(timeout=0.05, use_poll=use_poll, map=channels, count=1)
        assert driving.PATIENCE < len(told) < driving.PATIENCE + 10
        # What comes behind it is read, and urgent data is told of at once again.
        near.send(b"on")
        while channel.got[-1:] != [b"on"]:
            asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
        del told[:]
        near.send(b"!", socket.MSG_OOB)
        while len(told) < driving.PATIENCE:
            asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
        assert told[-1] - told[0] < driving.PATIENCE * driving.PENANCE / 2

    @both_modes
    def test_a_channel_that_is_not_readable_does_not_notice_the_end(self, channels, pair, use_poll):
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
    def test_what_must_leave_the_loop_does(self, channels, pair, error, use_poll):
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

    def test_what_handle_error_raises_leaves_the_loop(self, channels, pair):
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

    def test_a_loop_inside_a_handler(self, channels, pair):
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

    def test_the_map_is_a_plain_dict_that_anyone_may_edit(self, channels, pair):
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

    def test_a_signal_handler_runs_and_its_exception_leaves_the_loop(self, channels, pair):
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

    def test_signal_handlers_are_left_alone(self, channels, pair):
        import signal

        _, far = pair()
        Recorder(far, channels)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        before = [signal.getsignal(number) for number in numbers]
        asyncore.loop(timeout=0, map=channels, count=1)
        assert [signal.getsignal(number) for number in numbers] == before
        assert signal.set_wakeup_fd(-1) == -1

    def test_steady_channels_are_asked_when_their_queue_is_written_from_outside(
        self, channels, pair
    ):
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

    def test_predicates_put_on_an_instance_count(self, channels, pair):
        near, far = pair()
        chat = Chat(far, channels)
        chat.readable = lambda: False
        near.send(b"x\n")
        asyncore.loop(timeout=0, map=channels, count=2)
        assert chat.got == []
        del chat.readable
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert chat.got == [b"x"]

    def test_functions_of_the_module_that_were_replaced_are_used(self, channels, pair, monkeypatch):
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


# -- what the stdlib does badly


@pytest.mark.usefixtures("each_way")
class TestRepairs:
    def test_the_loop_is_woken_by_a_push_from_another_thread(self, channels, pair):
        near, far = pair()
        chat = Chat(far, channels)
        ready = threading.Event()

        def push():
            ready.wait(LIMIT)
            until(lambda: waits(channels), "the wait")
            chat.push(b"x" * 5_000_000)  # far more than the system takes at once
            chat.close_when_done()

        got = []

        def read():
            while data := near.recv(65536):
                got.append(len(data))

        with in_thread(push), in_thread(read):
            ready.set()
            asyncore.loop(timeout=None, map=channels)
        assert sum(got) == 5_000_000

    def test_the_loop_returns_when_another_thread_closes_the_last_channel(self, channels, pair):
        _, far = pair()
        chat = Chat(far, channels)

        def close():
            until(lambda: waits(channels), "the wait")
            chat.close()

        with in_thread(close):
            asyncore.loop(timeout=None, map=channels)

    def test_the_loop_notices_a_channel_added_by_another_thread(self, channels, pair):
        _, far = pair()
        idle = Chat(far, channels)
        near, sock = pair()
        near.send(b"quit\n")

        class Last(asyncore.dispatcher):
            def writable(self):
                return False

            def handle_read(self):
                self.close()
                idle.close()

        last = Last(sock, {})
        last._map = channels

        def add():
            until(lambda: waits(channels), "the wait")
            last.add_channel()

        with in_thread(add):
            asyncore.loop(timeout=None, map=channels)

    def test_a_channel_that_answers_to_its_end_does_not_burn_the_processor(self, channels, pair):
        """It reports, each time, that something of it changed."""
        near, far = pair()
        reads = []

        class Answering(Chat):
            def handle_read(self):
                self.recv(10)
                reads.append(time.monotonic())
                self.push(b"you have gone")

            def handle_close(self):
                pass

        Answering(far, channels)
        near.shutdown(socket.SHUT_WR)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            asyncore.loop(timeout=0.05, map=channels, count=1)
        assert driving.PATIENCE <= len(reads) <= driving.PATIENCE + 10

    def test_a_channel_that_forgets_to_close_does_not_burn_the_processor(self, channels, pair):
        near, far = pair()
        closes = []

        class Forgetful(Recorder):
            def handle_close(self):
                closes.append(1)

        Forgetful(far, channels)
        near.close()
        before = time.process_time()
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            asyncore.loop(timeout=0.5, map=channels, count=1)
        assert time.process_time() - before < 0.3
        # It is told again and again all the same, as the stdlib does without end.
        assert driving.PATIENCE <= len(closes) <= driving.PATIENCE + 10

    def test_a_closed_socket_left_in_the_map_does_not_burn_the_processor_in_poll_mode(
        self, channels, pair
    ):
        _, far = pair()
        closes = []

        class Forgetful(Recorder):
            def handle_close(self):
                closes.append(1)

        Forgetful(far, channels)
        far.close()
        before = time.process_time()
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            asyncore.loop(timeout=0.5, use_poll=True, map=channels, count=1)
        assert time.process_time() - before < 0.3
        assert driving.PATIENCE <= len(closes) <= driving.PATIENCE + 10
        channels.clear()

    def test_a_closed_socket_left_in_the_map_leaves_the_loop_in_select_mode(self, channels, pair):
        """As in the stdlib; epoll alone would forget the channel silently."""
        near, far = pair()

        class Closing(Recorder):
            def handle_read(self):
                self.socket.close()

        Closing(far, channels)
        near.send(b"x")
        with pytest.raises(OSError, match="Bad file descriptor"):
            asyncore.loop(timeout=LIMIT, map=channels)
        with pytest.raises(OSError, match="Bad file descriptor"):
            asyncore.loop(timeout=LIMIT, map=channels)
        channels.clear()

    def test_a_re_used_number_does_not_get_the_event_of_its_last_owner(self, channels, pair):
        near, far = pair()
        first_near, first_sock = pair()
        woken = []

        class Fresh(Recorder):
            def handle_read(self):
                woken.append(self)

        class First(Recorder):
            def handle_read(self):
                super().handle_read()
                number = victim._fileno
                victim.close()
                fresh = socket.socket()
                os.dup2(fresh.fileno(), number)
                fresh.close()
                Fresh(socket.socket(fileno=number), channels)

        first = First(first_sock, channels)
        victim = Recorder(far, channels)
        far.detach  # noqa: B018 - victim owns it now
        first_near.send(b"x")
        near.send(b"for the victim")
        until(lambda: len(driving_ready(channels)) == 2, "both events")
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert first.got == [b"x"]
        assert victim.got == []
        assert woken == []

    def test_a_map_that_another_thread_edits_all_the_time(self, channels, pair):
        near, far = pair()
        chat = Chat(far, channels)
        stop = threading.Event()

        def edit():
            while not stop.is_set():
                a, b = socket.socketpair()
                with a:
                    Recorder(b, channels).close()

        with in_thread(edit):
            for _ in range(300):
                near.send(b"x\n")
                before = len(chat.got)
                while len(chat.got) == before:
                    asyncore.loop(timeout=LIMIT, map=channels, count=1)
            stop.set()
        assert chat.got == [b"x"] * 300

    def test_a_channel_that_another_thread_closes_in_mid_pass_does_not_end_the_loop(
        self, channels, pair
    ):
        victim = Recorder(pair()[1], channels)  # earlier in the map: it has been asked already
        near, far = pair()

        class Slow(Recorder):
            def readable(self):
                if victim.socket.fileno() >= 0:
                    closing = threading.Thread(target=victim.close)
                    closing.start()
                    closing.join(LIMIT)
                return True

        slow = Slow(far, channels)
        near.send(b"x")
        # The stdlib hands the closed number to select(2), and its loop() ends with EBADF.
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        asyncore.loop(timeout=LIMIT, map=channels, count=1 if not slow.got else 0)
        assert slow.got == [b"x"]
        assert list(channels.values()) == [slow]

    def test_decrypted_bytes_inside_openssl_are_not_left_waiting(self, channels, tls_pair):
        client, server = tls_pair
        client.sendall(b"a" * 10)  # one record, read in pieces of four

        class Small(Recorder):
            def handle_read(self):
                try:
                    self.got.append(self.socket.recv(4))
                except (ssl_module().SSLWantReadError, SSL.WantReadError):
                    return

        small = Small(server, channels)
        while sum(map(len, small.got)) < 10:
            started = time.monotonic()
            asyncore.loop(timeout=LIMIT, map=channels, count=1)
            assert time.monotonic() - started < LIMIT / 2
        assert small.got == [b"aaaa", b"aaaa", b"aa"]

    def test_no_limit_of_1024_descriptors(self, channels, pair):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
        near, far = pair()
        os.dup2(far.fileno(), 2345)
        try:
            with socket.socket(fileno=2345) as high:
                recorder = Recorder(high, channels)
                for use_poll in (False, True):
                    near.send(b"x")
                    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
                near.send(b"x")
                asyncore.poll(LIMIT, channels)
                assert recorder.got == [b"x", b"x", b"x"]
                recorder.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def driving_ready(channels):
    import select

    return select.select(list(channels), [], [], 0)[0]


def ssl_module():
    import ssl

    return ssl


@pytest.fixture(params=["ssl", "pyOpenSSL"])
def tls_pair(request, tmp_path):
    import ssl

    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    near, far = socket.socketpair()
    near.settimeout(LIMIT)
    result = []

    def shake():
        if request.param == "ssl":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(chain, key)
            result.append(context.wrap_socket(far, server_side=True))
        else:
            context = SSL.Context(SSL.TLS_SERVER_METHOD)
            context.use_certificate_chain_file(str(chain))
            context.use_privatekey_file(str(key))
            connection = SSL.Connection(context, far)
            connection.set_accept_state()
            connection.do_handshake()
            result.append(connection)

    with in_thread(shake):
        client = trust.wrap_socket(near, server_hostname="localhost")
    (server,) = result
    yield client, server
    client.close()
    server.close()
    far.close()


# -- descriptors of other kinds


@pytest.mark.usefixtures("each_way")
@both_modes
def test_a_regular_file_is_always_readable(tmp_path, channels, use_poll):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 10)

    class Reader(asyncore.file_dispatcher):
        got = b""

        def writable(self):
            return False

        def handle_read(self):
            data = self.recv(30)
            if not data:
                self.close()
            self.got += data

        def handle_close(self):
            self.close()

    with path.open("rb") as file:
        reader = Reader(file, channels)
        asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels)
    assert reader.got == path.read_bytes()


@pytest.mark.usefixtures("each_way")
def test_keys_that_are_no_numbers(channels, pair):
    near, far = pair()
    recorder = Recorder(far, {})
    channels[far] = recorder
    near.send(b"x")
    asyncore.loop(timeout=LIMIT, map=channels, count=1)
    assert recorder.got == [b"x"]
    channels.clear()
    recorder.close()


@pytest.mark.usefixtures("each_way")
def test_any_object_with_the_handlers_is_a_channel(channels, pair):
    near, far = pair()

    class Plain:
        __slots__ = ("got",)
        accepting = False

        def readable(self):
            return True

        def writable(self):
            return None

        def handle_read_event(self):
            self.got = far.recv(10)
            channels.clear()

    plain = channels[far.fileno()] = Plain()
    near.send(b"x")
    asyncore.loop(timeout=LIMIT, map=channels)
    assert plain.got == b"x"


def test_a_fork_after_the_channels_were_made(channels, pair):
    near, far = pair()
    chat = Chat(far, channels)
    asyncore.loop(timeout=0, map=channels, count=1)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            near.send(b"to the child\n")
            while not chat.got:
                asyncore.loop(timeout=LIMIT, map=channels, count=1)
            chat.close()
            status = 0 if chat.got == [b"to the child"] and not channels else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    near.send(b"to the parent\n")
    while not chat.got:
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
    assert chat.got == [b"to the parent"]


def test_a_fork_inside_a_handler_goes_on_in_both(channels, pair):
    """The child serves one channel from there on, the parent the other."""
    near, far = pair()
    second_near, second_far = pair()

    class Forking(Chat):
        child = None

        def found_terminator(self):
            super().found_terminator()
            if self.got == [b"fork"]:
                self.child = os.fork()
                (self if self.child == 0 else second).close()

    chat = Forking(far, channels)
    second = Chat(second_far, channels)
    near.send(b"fork\n")
    try:
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        if chat.child == 0:
            while second.got != [b"end"]:
                asyncore.loop(timeout=LIMIT, map=channels, count=1)
    finally:
        if chat.child == 0:
            os._exit(0)
    near.send(b"go on\n")
    while chat.got != [b"fork", b"go on"]:
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
    second_near.send(b"end\n")
    os.waitpid(chat.child, 0)
    assert chat.got == [b"fork", b"go on"]


BESIDE_A_FORK = """
import os, socket, sys, threading
from txasynchat.compat import asyncore, current_reactor

class Heard(asyncore.dispatcher):
    def handle_read(self):
        print(self.recv(10), flush=True)
        heard.set()

    def writable(self):
        return False

def run():
    Heard(far, channels)
    reactors.append(current_reactor())
    reactors[0].callLater(0, heard.set)
    asyncore.loop(timeout=30, map=channels)

near, far = socket.socketpair()
channels, reactors, heard = {}, [], threading.Event()
thread = threading.Thread(target=run)
thread.start()
assert heard.wait(10)
if os.fork() == 0:
    sys.exit(0)
os.wait()
heard.clear()
near.send(b"go on")
assert heard.wait(10)
called = threading.Event()
reactors[0].callFromThread(called.set)
assert called.wait(10)
asyncore.close_all(channels)
thread.join(10)
near.close()
"""


def test_a_fork_leaves_the_reactor_of_another_thread_alone():
    """The child has not that thread, but its epoll, which is the parent's as well."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BESIDE_A_FORK],
        capture_output=True,
        timeout=60,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'go on'\n", "")


# -- several loops


def test_several_threads_with_a_map_each(pair):
    def echo(results, sockets):
        own = {}

        class Echo(Chat):
            def found_terminator(self):
                line = self._get_data()
                self.push(line + b"\n")
                results.append(line)
                if line == b"quit":
                    self.close_when_done()

        for sock in sockets:
            Echo(sock, own)
        asyncore.loop(timeout=LIMIT, map=own)

    clients, threads, results = [], [], [[] for _ in range(4)]
    for result in results:
        pairs = [pair() for _ in range(5)]
        clients += [near for near, _ in pairs]
        thread = threading.Thread(target=echo, args=(result, [far for _, far in pairs]))
        thread.start()
        threads.append(thread)
    for number in range(50):
        for client in clients:
            client.send(b"%d\n" % number)
        for client in clients:
            assert client.recv(100) == b"%d\n" % number
    for client in clients:
        client.send(b"quit\n")
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert [len(result) for result in results] == [5 * 51] * 4


def test_two_threads_with_one_map(channels, pair):
    """As the stdlib allows, more or less: the second looks at the whole map by itself."""
    near, far = pair()

    class Stopping(Chat):
        def found_terminator(self):
            self.close()

    Stopping(far, channels)
    with in_thread(asyncore.loop, 0.01, False, channels):
        until(lambda: _loop.driver_of(channels) is not None, "the first loop")
        with in_thread(asyncore.loop, 0.01, True, channels):
            near.send(b"stop\n")


@pytest.mark.usefixtures("each_way")
def test_starting_and_stopping_costs_less_than_a_millisecond(channels, pair):
    _, far = pair()
    Recorder(far, channels)
    best = LIMIT
    for _ in range(50):
        started = time.perf_counter()
        asyncore.loop(timeout=0, map=channels, count=1)
        asyncore.loop(timeout=0, map={}, count=1)
        best = min(best, time.perf_counter() - started)
    assert best < 0.001


def test_nothing_is_left_open_when_a_map_is_empty(pair):
    before = len(os.listdir("/dev/fd"))
    own = {}
    near, far = pair()
    Chat(far, own)
    near.close()
    asyncore.loop(timeout=LIMIT, map=own)
    assert _loop.driver_of(own) is None
    # And where the last channel is closed with no loop() running.
    near, far = pair()
    chat = Chat(far, own)
    asyncore.loop(timeout=0, map=own, count=1)
    assert _loop.driver_of(own) is not None
    chat.close()
    near.close()
    assert _loop.driver_of(own) is None
    asyncore.loop(timeout=0, map=own, count=1)
    assert len(os.listdir("/dev/fd")) <= before


@pytest.mark.counts_references
def test_a_thread_that_ends_gives_back_what_it_kept(pair):
    near, far = pair()
    own = {}
    chat = Chat(far, own)
    with in_thread(asyncore.loop, 0, False, own, 1):
        pass
    until(lambda: _loop.driver_of(own) is None, "the end of the driver")
    chat.close()
    near.close()


# -- Twisted inside loop()


def test_twisted_works_inside_loop_in_the_main_thread(channels, pair):
    from twisted.internet import reactor

    _, far = pair()
    chat = Chat(far, channels)
    assert current_reactor() is reactor
    events = []

    class Line(protocol.Protocol):
        def dataReceived(self, data):  # noqa: N802 - Twisted's name
            events.append(data)
            self.transport.write(b"answer")

    async def serve():
        factory = protocol.Factory.forProtocol(Line)
        port = await endpoints.serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(
            factory
        )
        await task.deferLater(reactor, 0.01)
        events.append("timer")
        got = await reactor_thread(reactor, client, port.getHost().port)
        events.append(got)
        await port.stopListening()
        chat.close()

    def client(number):
        with socket.create_connection(("127.0.0.1", number), timeout=LIMIT) as sock:
            sock.send(b"question")
            return sock.recv(100)

    served = defer.Deferred.fromCoroutine(serve())
    asyncore.loop(timeout=LIMIT, map=channels)
    assert events == ["timer", b"question", b"answer"]
    assert served.called
    assert not reactor.running


def reactor_thread(reactor, call, *args):
    from twisted.internet.threads import deferToThreadPool

    return deferToThreadPool(reactor, reactor.getThreadPool(), call, *args)


def test_twisted_works_inside_loop_in_another_thread(pair):
    _, far = pair()
    own = {}
    found = []

    def run():
        chat = Chat(far, own)
        reactor = current_reactor()
        assert current_reactor() is reactor
        found.append(reactor)
        reactor.callLater(0.01, chat.close)
        started = time.monotonic()
        asyncore.loop(timeout=LIMIT, map=own)
        found.append(time.monotonic() - started)

    from twisted.internet import reactor

    with in_thread(run):
        pass
    assert found[0] is not reactor
    assert 0.01 <= found[1] < LIMIT / 2


def test_a_timer_set_by_a_handler_is_not_slept_over(channels, pair):
    near, far = pair()

    class Delayed(Chat):
        def found_terminator(self):
            current_reactor().callLater(0.01, self.close)

    Delayed(far, channels)
    near.send(b"x\n")
    started = time.monotonic()
    asyncore.loop(timeout=LIMIT, map=channels)
    assert time.monotonic() - started < LIMIT / 2


def test_the_reactor_can_be_run_after_loop():
    script = """
import socket
from txasynchat.compat import asyncore
from twisted.internet import reactor, threads
a, b = socket.socketpair()
class One(asyncore.dispatcher):
    def handle_write(self): pass
    def writable(self): return False
one = One(b)
threads.deferToThread(lambda: 7).addCallback(lambda n: (print(n, flush=True), one.close()))
asyncore.loop(timeout=10)
reactor.callLater(0, lambda: threads.deferToThread(lambda: 8).addCallback(
    lambda n: (print(n, flush=True), reactor.stop())))
reactor.run()
a.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=30, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n8\n", "")


def test_a_plain_program_starts_without_twisted():
    script = """
import socket, sys
import txasynchat
txasynchat.install()
import asynchat, asyncore
here, there = socket.socketpair()
class Once(asynchat.async_chat):
    def collect_incoming_data(self, data):
        self.push(data)
        self.close_when_done()
channel = Once(here)
channel.set_terminator(None)
there.send(b"hello")
asyncore.loop()
assert there.recv(9) == b"hello"
print([name for name in sys.modules if name.partition(".")[0] in ("twisted", "zope")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=30, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


# -- where somebody else's loop runs


def test_loop_refuses_to_block_an_asyncio_event_loop(channels, pair):
    _, far = pair()
    Recorder(far, channels)

    async def main():
        asyncore.loop(timeout=0.1, map=channels, count=1)

    with pytest.raises(RuntimeError, match=r"asyncio event loop.*attach"):
        asyncio.run(main())


def test_attach_in_an_asyncio_event_loop(channels, pair):
    near, far = pair()

    async def main():
        heard = asyncio.Event()

        class Heard(Chat):
            def found_terminator(self):
                super().found_terminator()
                self.push(b"yes\n")
                heard.set()

        chat = Heard(far, channels)
        attachment = attach(channels)
        assert attachment.reactor is asyncio.get_running_loop()
        near.send(b"x\n")
        await asyncio.wait_for(heard.wait(), LIMIT)
        assert chat.got == [b"x"]
        attachment.detach()
        attachment.detach()

    asyncio.run(main())
    assert near.recv(100) == b"yes\n"


class TestAttach(TestCase):
    """In the running reactor."""

    timeout = 20

    def setUp(self):
        self.map = {}
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.near = socket.create_connection(server.getsockname(), timeout=LIMIT)
            self.far, _ = server.accept()
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)
        self.addCleanup(asyncore.close_all, self.map)

    def attach(self):
        attachment = attach(self.map)
        self.addCleanup(attachment.detach)
        return attachment

    def heard(self, kind=Chat, **attributes):
        """A channel, and a Deferred that fires with its first line."""
        fired = defer.Deferred()

        class Heard(kind):
            def found_terminator(self):
                super().found_terminator()
                if not fired.called:
                    fired.callback(self.got[-1])

        vars(Heard)  # a class of its own for each call
        return Heard(self.far, self.map), fired

    async def test_loop_refuses_to_block_the_reactor(self):
        from twisted.internet import reactor

        Chat(self.far, self.map)
        await task.deferLater(reactor, 0)  # it runs from here on
        with self.assertRaisesRegex(RuntimeError, "Twisted reactor.*attach"):
            asyncore.loop(timeout=0.1, map=self.map, count=1)

    async def test_channels_live_beside_twisted(self):
        from twisted.internet import reactor

        attachment = self.attach()
        self.assertIs(attachment.reactor, reactor)
        self.assertIs(current_reactor(), reactor)
        chat, line = self.heard()
        self.near.send(b"one\n")
        self.assertEqual(await line, b"one")
        chat.push(b"two\n")  # from no handler of its own
        self.assertEqual(self.near.recv(100), b"two\n")

    async def test_what_is_pushed_by_twisted_code_goes_out_soon(self):
        self.attach()
        chat, _ = self.heard()
        from twisted.internet import reactor

        size = 5_000_000
        chat.push(b"x" * size)
        chat.close_when_done()
        got = await reactor_thread(reactor, self.read_all)
        self.assertEqual(got, size)
        self.assertEqual(self.map, {})

    def read_all(self):
        total = 0
        while data := self.near.recv(65536):
            total += len(data)
        return total

    async def test_channels_added_later_and_by_plain_assignment_are_served(self):
        self.attach()
        fired = defer.Deferred()

        class Heard(Recorder):
            def handle_read(self):
                super().handle_read()
                fired.callback(self.got)

        channel = Heard(self.far, {})
        self.map[self.far.fileno()] = channel
        self.near.send(b"x")
        self.assertEqual(await fired, [b"x"])

    async def test_an_overridden_predicate_is_asked_though_nothing_happens(self):
        self.attach()
        fired = defer.Deferred()

        class Late(Recorder):
            wanted = False

            def readable(self):
                return self.wanted

            def handle_read(self):
                super().handle_read()
                fired.callback(self.got)

        channel = Late(self.far, self.map)
        self.near.send(b"x")
        from twisted.internet import reactor

        reactor.callLater(0.01, setattr, channel, "wanted", True)
        self.assertEqual(await fired, [b"x"])

    async def test_deferreds_work_in_handlers(self):
        from twisted.internet import reactor

        self.attach()

        class Slow(Chat):
            def found_terminator(self):
                super().found_terminator()
                task.deferLater(reactor, 0.01).addCallback(lambda _: self.push(b"later\n"))

        Slow(self.far, self.map)
        self.near.send(b"x\n")
        got = await reactor_thread(reactor, self.near.recv, 100)
        self.assertEqual(got, b"later\n")

    async def test_exit_now_detaches_and_is_logged(self):
        class Leaving(Chat):
            def found_terminator(self):
                raise asyncore.ExitNow("enough")

        attachment = self.attach()
        Leaving(self.far, self.map)
        self.near.send(b"x\n")
        from twisted.internet import reactor

        while attachment.exception is None:
            await task.deferLater(reactor, 0.005)
        self.assertIsInstance(attachment.exception, asyncore.ExitNow)
        (failure,) = self.flushLoggedErrors(asyncore.ExitNow)
        self.assertEqual(failure.getErrorMessage(), "enough")
        self.assertEqual(list(self.map), [self.far.fileno()])

    async def test_a_detached_map_is_left_alone_and_can_be_attached_again(self):
        from twisted.internet import reactor

        attachment = self.attach()
        chat, line = self.heard()
        attachment.detach()
        self.near.send(b"x\n")
        await task.deferLater(reactor, 0.02)
        self.assertEqual(chat.got, [])
        self.attach()
        self.assertEqual(await line, b"x")

    def test_a_map_is_attached_once(self):
        self.attach()
        with self.assertRaisesRegex(RuntimeError, "driven already"):
            attach(self.map)

    async def test_a_loop_in_another_thread_is_refused_for_an_attached_map(self):
        from twisted.internet import reactor

        self.attach()
        Chat(self.far, self.map)
        with self.assertRaisesRegex(RuntimeError, "attached"):
            await reactor_thread(reactor, asyncore.loop, 0, False, self.map, 1)

    async def test_a_loop_in_another_thread_is_not_refused(self):
        from twisted.internet import reactor

        Chat(self.far, self.map)
        await reactor_thread(reactor, asyncore.loop, 0, False, self.map, 1)

    async def test_a_push_from_another_thread_is_served(self):
        from twisted.internet import reactor

        self.attach()
        chat, _ = self.heard()

        def push():
            chat.push(b"x" * 3_000_000)
            chat.close_when_done()

        reading = reactor_thread(reactor, self.read_all)
        await reactor_thread(reactor, push)
        self.assertEqual(await reading, 3_000_000)

    async def test_a_regular_file_is_served_and_others_too(self):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"x" * 100)
        fired = defer.Deferred()

        class Reader(asyncore.file_dispatcher):
            got = b""

            def writable(self):
                return False

            def handle_read(self):
                data = self.recv(10)
                self.got += data
                if not data:
                    fired.callback(self.got)

            def handle_close(self):
                self.close()

        self.attach()
        with open(path, "rb") as file:
            Reader(file, self.map)
            self.assertEqual(await fired, b"x" * 100)


def test_attach_to_a_reactor_that_is_not_installed(channels, pair):
    near, far = pair()
    chat = Chat(far, channels)
    reactor = SelectReactor()
    attachment = attach(channels, reactor)
    try:
        near.send(b"x\n")
        deadline = time.monotonic() + LIMIT
        while not chat.got and time.monotonic() < deadline:
            reactor.iterate(0.01)
        assert chat.got == [b"x"]
    finally:
        attachment.detach()
        for reader in list(reactor._internalReaders):
            reactor.removeReader(reader)
            reader.connectionLost(None)
    assert reactor.getDelayedCalls() == []
    assert reactor.removeAll() == []


def test_importing_the_facade_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subprocess.run(
            [sys.executable, "-W", "error", "-c", "from txasynchat.compat import asynchat"],
            timeout=30,
            check=True,
        )
