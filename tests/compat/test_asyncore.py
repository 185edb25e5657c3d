"""
The classes and functions of the facade's asyncore, without loop(): see test_loop.py for that.
"""

import errno
import os
import select
import socket
import sys
import threading
from unittest import mock

import pytest

from txasynchat.compat import asyncore

LIMIT = 10.0


class Noting(asyncore.dispatcher):
    """Notes which handlers were called."""

    def __init__(self, sock=None, channels=None):
        self.calls = []
        super().__init__(sock, {} if channels is None else channels)

    def log_info(self, message, type="info"):  # noqa: A002 - the stdlib's name
        self.calls.append((type, message))

    def handle_read(self):
        self.calls.append(("read", self.recv(100)))

    def handle_write(self):
        self.calls.append("write")

    def handle_connect(self):
        self.calls.append(("connect", self.connected))

    def handle_expt(self):
        self.calls.append("expt")

    def handle_close(self):
        self.calls.append("close")
        self.close()


@pytest.fixture
def noting(pair):
    near, far = pair()
    channel = Noting(far)
    channel.near = near
    yield channel
    channel.close()


def test_a_connected_socket_makes_a_connected_channel(noting):
    assert noting.connected
    assert noting.addr == noting.near.getsockname()
    assert noting._map == {noting.socket.fileno(): noting}
    assert noting.socket.getblocking() is False
    assert repr(noting) == (
        f"<{__name__}.Noting connected 127.0.0.1:{noting.addr[1]} at {id(noting):#x}>"
    )


def test_a_socket_that_is_not_connected_is_allowed():
    with socket.socket() as sock:
        channel = Noting(sock)
        assert not channel.connected
        assert channel.addr is None
        channel.close()


def test_broken_socket_is_refused_and_removed_from_the_map():
    class Broken(socket.socket):
        def getpeername(self):
            raise OSError(errno.ENOBUFS, "broken")

    channels = {}
    with Broken() as sock, pytest.raises(OSError, match="broken"):
        asyncore.dispatcher(sock, channels)
    assert channels == {}


def test_stand_in_that_answers_any_attribute_is_a_socket(monkeypatch):
    channels = {}
    monkeypatch.setattr(asyncore, "socket_map", channels)
    stand_in = mock.Mock()
    channel = asyncore.dispatcher(stand_in)
    assert channels == {stand_in.fileno(): channel}
    assert channel.connected
    channel.close()
    assert channels == {}


def test_class_attributes_suffice_without_init():
    channel = asyncore.dispatcher.__new__(asyncore.dispatcher)
    assert (channel.connected, channel.accepting, channel.connecting, channel.closing) == (
        False,
    ) * 4
    assert channel.addr is None
    assert channel.ignore_log_types == {"warning"}
    assert not hasattr(channel, "socket")


def test_closing_keeps_the_socket_and_may_be_repeated(noting):
    sock = noting.socket
    noting.close()
    assert noting.socket is sock
    assert sock.fileno() == -1
    assert noting._fileno is None
    noting.close()
    noting.create_socket()
    assert noting._map == {noting.socket.fileno(): noting}


def test_recv_calls_handle_close_at_the_end(noting):
    noting.near.send(b"data")
    assert noting.recv(3) == b"dat"
    assert noting.recv(3) == b"a"
    with pytest.raises(BlockingIOError):
        noting.recv(3)
    noting.near.close()
    select.select([noting.socket], [], [], LIMIT)
    assert noting.recv(3) == b""
    assert noting.calls == ["close"]
    assert noting._map == {}


def test_send_on_a_lost_connection_calls_handle_close_and_returns_zero(noting):
    noting.socket.shutdown(socket.SHUT_WR)
    assert noting.send(b"x") == 0
    assert noting.calls == ["close"]


def test_send_takes_what_the_system_takes(noting):
    sent = 0
    while taken := noting.send(b"x" * 100_000):
        sent += taken
    assert sent > 0
    assert noting.calls == []


def test_accept_returns_a_connection_or_none(pair):
    server = Noting()
    server.create_socket()
    server.set_reuse_addr()
    server.bind(("127.0.0.1", 0))
    server.listen(5)
    assert server.accepting
    assert server.accept() is None
    assert "listening 127.0.0.1:0" in repr(server)
    with socket.create_connection(server.socket.getsockname()) as client:
        select.select([server.socket], [], [], LIMIT)
        conn, address = server.accept()
        with conn:
            assert address == client.getsockname()
    with socket.create_connection(server.socket.getsockname()) as client:
        asyncore.poll(LIMIT, server._map)
        assert server.calls == [("warning", "unhandled accepted event")]
        assert client.recv(1) == b""
    server.handle_write_event()  # a listener never writes
    assert server.calls == [("warning", "unhandled accepted event")]
    server.close()


def test_connecting_calls_handle_connect_before_connected_is_set():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = Noting()
        client.create_socket()
        client.connect(server.getsockname())
        assert client.addr == server.getsockname()
        while "write" not in client.calls:
            asyncore.poll(LIMIT, client._map)
        assert client.calls[:2] == [("connect", False), "write"]
        assert client.connected
        assert not client.connecting
        client.close()


def test_a_refused_connection_goes_to_handle_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    client = Noting()
    client.create_socket()
    client.connect(address)
    while client._map:
        asyncore.poll(LIMIT, client._map)
    kind, text = client.calls[0]
    assert kind == "error"
    assert "uncaptured python exception, closing channel" in text
    assert "ConnectionRefusedError" in text
    assert client.calls[-1] == "close"


def test_connect_on_a_blocking_socket_completes_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = Noting()
        client.create_socket()
        client.socket.settimeout(LIMIT)
        client.connect(server.getsockname())
        assert client.calls == [("connect", False)]
        assert client.connected
        client.close()


def test_pending_error_calls_handle_close_instead_of_handle_expt(noting):
    noting.handle_expt_event()
    assert noting.calls == ["expt"]
    noting.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    noting.near.close()  # a reset
    select.select([noting.socket], [], [], LIMIT)
    noting.handle_expt_event()
    assert noting.calls == ["expt", "close"]


def test_an_exception_is_reported_on_one_line_and_closes(pair, capsys):
    class Failing(asyncore.dispatcher):
        def handle_read(self):
            raise ValueError("made to fail")

        def __repr__(self):
            raise RuntimeError

    channels = {}
    channel = Failing(pair()[1], channels)
    asyncore.read(channel)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(
        f"error: uncaptured python exception, closing channel "
        f"<__repr__(self) failed for object at {id(channel):0x}> "
        f"(<class 'ValueError'>:made to fail ["
    )
    assert "|read|" in out
    assert "|handle_read_event|" in out
    assert "|handle_read|" in out
    assert out.endswith("])\n")
    assert channels == {}


@pytest.mark.parametrize("call", [asyncore.read, asyncore.write, asyncore._exception])
@pytest.mark.parametrize("error", [asyncore.ExitNow, KeyboardInterrupt, SystemExit])
def test_three_exceptions_propagate_through_every_dispatching_function(call, error):
    class Raising:
        def handle_read_event(self):
            raise error

        handle_write_event = handle_expt_event = handle_read_event

    with pytest.raises(error):
        call(Raising())
    with pytest.raises(error):
        asyncore.readwrite(Raising(), select.POLLIN)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (select.POLLIN, ["read"]),
        (select.POLLOUT, ["write"]),
        (select.POLLPRI, ["expt"]),
        (select.POLLHUP, ["close"]),
        (select.POLLERR, ["close"]),
        (select.POLLNVAL, ["close"]),
        (0x3F, ["read", "write", "expt", "close"]),
    ],
)
def test_readwrite_calls_what_the_flags_say(flags, expected):
    calls = []

    class Any:
        handle_read_event = lambda self: calls.append("read")  # noqa: E731
        handle_write_event = lambda self: calls.append("write")  # noqa: E731
        handle_expt_event = lambda self: calls.append("expt")  # noqa: E731
        handle_close = lambda self: calls.append("close")  # noqa: E731

    asyncore.readwrite(Any(), flags)
    assert calls == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ECONNRESET, ""), "close"),
        (OSError(errno.EIO, ""), "error"),
        (KeyError(), "error"),
    ],
)
def test_readwrite_treats_a_lost_connection_as_a_close(error, expected):
    calls = []

    class Any:
        def handle_read_event(self):
            raise error

        def handle_close(self):
            calls.append("close")

        def handle_error(self):
            calls.append("error")
            assert sys.exc_info()[1] is error

    asyncore.readwrite(Any(), select.POLLIN)
    assert calls == [expected]


@pytest.mark.parametrize("poll", [asyncore.poll, asyncore.poll2, asyncore.poll3])
def test_direct_poll_asks_every_channel_each_time(poll, pair):
    near, far = pair()
    asked = []

    class Asked(Noting):
        def readable(self):
            asked.append("r")
            return True

        def writable(self):
            asked.append("w")
            return False

    channel = Asked(far)
    poll(0.0, channel._map)
    near.send(b"x")
    poll(LIMIT, channel._map)
    assert asked == ["r", "w"] * 2
    assert channel.calls == [("read", b"x")]
    poll(0.0, {})
    channel.close()


def test_poll_uses_the_current_map_and_modules(monkeypatch):
    used = []

    class Nobody:
        accepting = False

        def readable(self):
            return False

        writable = readable

    class Clock:
        sleep = staticmethod(used.append)

    monkeypatch.setattr(asyncore, "socket_map", {1: Nobody()})
    monkeypatch.setattr(asyncore, "time", Clock)
    asyncore.poll(1.5)
    assert used == [1.5]
    asyncore.close_all  # noqa: B018 - it has no close(): see below
    with pytest.raises(AttributeError):
        asyncore.close_all()
    asyncore.close_all(ignore_all=True)
    assert asyncore.socket_map == {}


def test_dispatcher_registers_in_the_current_map(monkeypatch, pair):
    mine = {}
    monkeypatch.setattr(asyncore, "socket_map", mine)
    channel = asyncore.dispatcher(pair()[1])
    assert list(mine.values()) == [channel]
    channel.close()


def test_close_all_ignores_only_closed_descriptors():
    class Failing:
        def __init__(self, error):
            self.error = error

        def close(self):
            raise self.error

    channels = {1: Failing(OSError(errno.EBADF, ""))}
    asyncore.close_all(channels)
    assert channels == {}
    for error in (OSError(errno.EIO, "io"), ValueError("x")):
        channels = {1: Failing(error)}
        with pytest.raises(type(error)):
            asyncore.close_all(channels)
        asyncore.close_all(channels, ignore_all=True)
        assert channels == {}
    with pytest.raises(asyncore.ExitNow):
        asyncore.close_all({1: Failing(asyncore.ExitNow())}, ignore_all=True)


def test_compact_traceback_needs_an_exception():
    with pytest.raises(AssertionError, match="traceback does not exist"):
        asyncore.compact_traceback()
    try:
        raise KeyError("key")
    except KeyError as error:
        (file, function, line), kind, value, text = asyncore.compact_traceback()
        assert (kind, value) == (KeyError, error)
        assert text == f"[{file}|{function}|{line}]"
        assert os.path.basename(file) == "test_asyncore.py"


def test_log_goes_to_stderr_and_log_info_to_stdout(capsys):
    channel = asyncore.dispatcher()
    channel.log("hit")
    channel.log_info("for you")
    channel.log_info("hidden", "warning")
    channel.log_info("seen", "error")
    assert capsys.readouterr() == ("info: for you\nerror: seen\n", "log: hit\n")


def test_dispatcher_with_send_keeps_what_was_not_sent(pair):
    near, far = pair()
    channel = asyncore.dispatcher_with_send(far, {})
    assert not channel.writable()
    channel.send(b"x" * 5_000_000)
    assert channel.writable()
    got = 0
    with Reading(near) as chunks:
        while channel.out_buffer:
            asyncore.poll(LIMIT, channel._map)
        channel.out_buffer = b"assigned"
        asyncore.loop(timeout=LIMIT, map=channel._map, count=1)
        channel.close()
    got = b"".join(chunks)
    assert got == b"x" * 5_000_000 + b"assigned"


class Reading:
    """Reads a socket to its end in another thread."""

    def __init__(self, sock):
        self.sock = sock
        self.chunks = []
        self.thread = threading.Thread(target=self.read)

    def read(self):
        while data := self.sock.recv(65536):
            self.chunks.append(data)

    def __enter__(self):
        self.thread.start()
        return self.chunks

    def __exit__(self, *exc):
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()


def test_a_file_wrapper_is_a_duplicate():
    read, write = os.pipe()
    wrapper = asyncore.file_wrapper(read)
    assert wrapper.fileno() not in (read, write)
    os.close(read)
    os.write(write, b"data")
    assert wrapper.recv(10) == b"data"
    assert wrapper.read == wrapper.recv
    assert wrapper.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    with pytest.raises(NotImplementedError, match="Only asyncore specific behaviour"):
        wrapper.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    wrapper.close()
    wrapper.close()
    assert wrapper.fileno() == -1
    os.close(write)


@pytest.mark.counts_references
def test_unreferenced_file_wrapper_warns_and_closes():
    read, write = os.pipe()
    os.set_blocking(read, False)
    wrapper = asyncore.file_wrapper(write)
    with pytest.warns(ResourceWarning, match="unclosed file <asyncore.file_wrapper object"):
        del wrapper
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


def test_file_dispatcher_reads_a_pipe():
    read, write = os.pipe()
    channels = {}

    class Pipe(asyncore.file_dispatcher):
        got = b""

        def writable(self):
            return False

        def handle_read(self):
            self.got += self.recv(100)

        def handle_close(self):
            self.close()

    with open(read, "rb") as file:
        channel = Pipe(file, channels)
    assert channel.connected
    assert os.get_blocking(channel._fileno) is False
    os.write(write, b"through the pipe")
    os.close(write)
    asyncore.loop(timeout=LIMIT, map=channels)
    assert channel.got == b"through the pipe"


def test_udp_datagrams_are_sent_and_received():
    server = Noting()
    server.create_socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.writable = lambda: False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"datagram", server.socket.getsockname())
        asyncore.loop(timeout=LIMIT, map=server._map, count=1)
    assert server.calls == [("read", b"datagram")]
    assert not server.connected
    server.close()
