"""
Random programs for an asyncore: channels, what their peers do, what their handlers do.

A program is a number. From it follow the channels (chat, plain dispatcher, buffered
dispatcher, listener, connector, pipe, datagram), a script of what the peers do between two
passes of ``loop(0, count=1)``, and what each handler does each time it is called. Everything
happens in one thread and the peers' bytes are waited for, so that a program run twice has
the same history. The history, the order of calls with their arguments, is what two
implementations are compared by.

Numbers of descriptors are seldom re-used within a pass: what a channel gives back by `close`
is held until the pass ends, and the peers' numbers lie out of the way. Where it happens all
the same, the stdlib gives the new owner the old one's event; the history says where.

This module imports no asyncore: the modules to drive are given to it.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import os
import random
import re
import select
import socket
import struct
import termios
from collections import Counter

#: What a handler does when it is called, and how often of a thousand times.
ACTS = {
    "push": 60,
    "push producer": 25,
    "push much": 6,
    "close_when_done": 20,
    "close": 20,
    "set_terminator": 40,
    "assign terminator": 6,
    "clear ac_in_buffer": 8,
    "append ac_in_buffer": 6,
    "discard_buffers": 4,
    "append to fifo": 10,
    "append to another's fifo": 14,
    "replace fifo": 3,
    "raise": 16,
    "raise OSError": 14,
    "leave the loop": 9,
    "close another": 15,
    "push on another": 20,
    "take another off the map": 5,
    "put another back": 6,
    "clear the map": 1,
    "nested pass": 14,
    "nested poll": 5,
    "shut down writing": 8,
    "close the socket only": 4,
    "new channel": 14,
    "change predicates": 25,
    "own predicate": 6,
    "assign out_buffer": 10,
    "add to another's out_buffer": 10,
    "del_channel": 4,
    "close_all": 1,
    "recv more": 8,
    "mark disconnected": 2,
    "reconnect": 4,
}
_ACT_NAMES = list(ACTS)
_ACT_WEIGHTS = list(ACTS.values())

_LINES = (b"a\n", b"bb\r\n", b"\n", b"abc", b"a\r\nb\r\nc", b"x" * 30 + b"\n", b"\r", b"aaab")
_TERMINATORS = (b"\n", b"\r\n", b"a", 1, 4, 9, None, b"", 0)
_POLLRDHUP: int = getattr(select, "POLLRDHUP", 0x2000)  # PyPy has no name for Linux's value
_TRACEBACK = re.compile(r"channel (<\S+)[^(]*\((.*?):(.*?) \[.*", re.DOTALL)


class Chunks:
    """A producer of some chunks; it may fail on the way."""

    def __init__(self, chunks: list[bytes], *, fails: bool) -> None:
        self.chunks = chunks
        self.fails = fails

    def more(self) -> bytes:
        if self.chunks:
            return self.chunks.pop(0)
        if self.fails:
            raise ValueError("producer failed")
        return b""


#: Descriptors of peers and of channels have numbers of their own, from these on, so that nothing
#: else (an implementation's private ones) gets the number of one that a program gave back.
PEERS, CHANNELS = 400, 100


def _moved(sock: socket.socket, lowest: int) -> socket.socket:
    """The same socket with a number from there on."""
    number = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, lowest)
    with sock:
        return socket.socket(sock.family, sock.type, fileno=number)


def _pending(sock: socket.socket) -> int:
    """Bytes that a read would find."""
    buffer = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
    return struct.unpack("i", buffer)[0]


class World:
    """One run of one program on one implementation."""

    def __init__(self, seed: int, modules, *, use_poll: bool) -> None:
        self.seed = seed
        self.modules = modules
        self.asyncore = modules.asyncore
        self.use_poll = use_poll
        self.rng = random.Random(f"world {seed}")
        self.history: list[tuple] = []
        self.calls: Counter = Counter()
        self.channels: list = []
        self.peers: dict[str, socket.socket | int] = {}
        self.depth = 0
        self.acts_left = 70
        self.held: list[int] = []
        self.passes: list[tuple[int, int]] = []  # number and depth of each that is running
        self.pass_count = 0
        self.stale_at: int | None = None
        self.default_map = self.rng.random() < 0.3
        self.map = modules.asyncore.socket_map if self.default_map else {}
        self.null = os.open(os.devnull, os.O_RDONLY)
        self.extra: list[socket.socket] = []
        self.spare = [self._prepare(*socket.socketpair()) for _ in range(3)]
        # One listener that accepts nothing, to connect to, and one address that refuses.
        self.target = socket.create_server(("127.0.0.1", 0))
        with socket.create_server(("127.0.0.1", 0)) as gone:
            self.refusing = gone.getsockname()

    # -- channels ---------------------------------------------------------------------------

    def _prepare(
        self, ours: socket.socket, peer: socket.socket
    ) -> tuple[socket.socket, socket.socket]:
        ours, peer = _moved(ours, CHANNELS), _moved(peer, PEERS)
        peer.setblocking(False)
        if ours.family == socket.AF_UNIX and self.rng.random() < 0.5:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        return ours, peer

    def tcp_pair(self) -> tuple[socket.socket, socket.socket]:
        """Two connected TCP sockets, both ends settled."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            peer = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._prepare(ours, peer)

    def make(self, kind: str, rng: random.Random):
        """A channel of that kind, its peer known by its name."""
        name = f"c{len(self.channels)}"
        cls = channel_classes(self.modules)[kind, rng.choice(STYLES)]
        fd_map = None if self.default_map else self.map
        channel = cls.__new__(cls)
        channel.world, channel.name, channel.born = self, name, self.pass_count
        channel.answers = (True, True)
        self.channels.append(channel)
        if kind == "pipe":
            read_end, write_end = os.pipe()
            cls.__init__(channel, read_end, fd_map)
            os.close(read_end)
            os.set_blocking(write_end, False)
            self.peers[name] = write_end
        elif kind == "listener":
            cls.__init__(channel, None, fd_map)
            channel.create_socket()
            channel.set_reuse_addr()
            channel.bind(("127.0.0.1", 0))
            channel.listen(64)
        elif kind == "connector":
            cls.__init__(channel, None, fd_map)
            channel.set_terminator(b"\n")
            self.connect(channel, rng)
        else:
            if kind == "datagram":
                ours, peer = self._prepare(*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
            elif self.passes:
                ours, peer = self.spare.pop()
            elif rng.random() < 0.4:
                ours, peer = self.tcp_pair()
            else:
                ours, peer = self._prepare(*socket.socketpair())
            self.peers[name] = peer
            cls.__init__(channel, ours, fd_map)
            if kind == "chat":
                channel.set_terminator(rng.choice(_TERMINATORS))
        return channel

    def connect(self, channel, rng: random.Random) -> None:
        """Begin to connect; loopback decides at once, but the channel learns it in a pass."""
        channel.create_socket()
        channel.connect(self.refusing if rng.random() < 0.25 else self.target.getsockname())

    def hold(self, number: int | None) -> None:
        """Keep the number of a descriptor that a handler just closed from being reused in this pass."""
        if number is not None and self.passes:
            with contextlib.suppress(OSError):
                os.fstat(number)
                return  # still open: nothing was closed, or the number is already reused
            os.dup2(self.null, number)
            self.held.append(number)

    # -- history ----------------------------------------------------------------------------

    def note(self, channel, *what) -> None:
        self.history.append((getattr(channel, "name", channel), *what))

    def draw(self, channel, event: str) -> random.Random:
        """Draw the same decisions for the same call, whatever other channels did before it."""
        self.calls[channel.name, event] += 1
        return random.Random(
            f"{self.seed} {channel.name} {event} {self.calls[channel.name, event]}"
        )

    def event(self, channel, event: str, *what) -> None:
        """Record a handler's call, and do what the program does there."""
        if self.passes and self.stale_at is None:
            number, depth = self.passes[-1]
            if channel.born >= number and self.depth == depth and event != "accepted":
                # No channel can have been asked for this descriptor in this pass: it was not open.
                self.stale_at = len(self.history)
        self.note(channel, event, *what)
        rng = self.draw(channel, event)
        if self.depth < 4 and self.acts_left:
            self.depth += 1
            try:
                for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2))):
                    self.act(channel, rng, event)
            finally:
                self.depth -= 1

    # -- acts -------------------------------------------------------------------------------

    def other(self, rng: random.Random):
        return rng.choice(self.channels)

    def act(self, channel, rng: random.Random, event: str) -> None:
        """Perform one act of a handler, or of the program between passes (`event` is then empty)."""
        if not self.acts_left:
            return
        self.acts_left -= 1
        act = rng.choices(_ACT_NAMES, _ACT_WEIGHTS)[0]
        is_chat = hasattr(channel, "producer_fifo")
        if act == "push" and is_chat:
            channel.push(rng.choice(_LINES))
        elif act == "push":
            if hasattr(channel, "send") and channel.socket is not None and channel.connected:
                channel.send(b"sent\n")
        elif act == "push producer" and is_chat:
            chunks = [rng.choice(_LINES) for _ in range(rng.randint(0, 3))]
            channel.push_with_producer(Chunks(chunks, fails=rng.random() < 0.1))
        elif act == "push much" and is_chat:
            channel.push(b"m" * rng.choice((5_000, 70_000)))
        elif act == "close_when_done" and is_chat:
            channel.close_when_done()
        elif act == "close":
            channel.close()
        elif act == "set_terminator" and is_chat and event != "collect":
            channel.set_terminator(rng.choice(_TERMINATORS))
        elif act == "assign terminator" and is_chat and event != "collect":
            channel.terminator = rng.choice(_TERMINATORS)
        elif act == "clear ac_in_buffer" and is_chat:
            channel.ac_in_buffer = b""
        elif act == "append ac_in_buffer" and is_chat:
            channel.ac_in_buffer += b"in\n"
        elif act == "discard_buffers" and is_chat:
            channel.discard_buffers()
        elif act == "append to fifo" and is_chat:
            channel.producer_fifo.append(rng.choice((*_LINES, None, b"")))
        elif act == "append to another's fifo":
            other = self.other(rng)
            if hasattr(other, "producer_fifo"):
                other.producer_fifo.append(rng.choice((*_LINES, None)))
        elif act == "replace fifo" and is_chat:
            channel.producer_fifo = collections.deque(channel.producer_fifo)
        elif act == "raise":
            raise ValueError("made to fail")
        elif act == "raise OSError":
            code = rng.choice((errno.ECONNRESET, errno.EBADF, errno.EPERM, errno.EAGAIN))
            raise OSError(code, "made to fail")
        elif act == "leave the loop" and event:
            raise rng.choice((self.asyncore.ExitNow, KeyboardInterrupt, SystemExit))("leaving")
        elif act == "close another":
            self.other(rng).close()
        elif act == "push on another":
            other = self.other(rng)
            if hasattr(other, "producer_fifo"):
                other.push(b"from another\n")
        elif act == "take another off the map":
            self.map.pop(self.other(rng)._fileno, None)
        elif act == "put another back":
            other = self.other(rng)
            if other._fileno is not None:
                self.map[other._fileno] = other
        elif act == "clear the map":
            self.map.clear()
        elif act in {"nested pass", "nested poll"} and event not in {"", "collect"}:
            if len(self.passes) < 3:
                self.note(channel, act)
                self.one_pass("pass" if act == "nested pass" else "poll")
        elif act == "shut down writing":
            with contextlib.suppress(OSError, AttributeError):
                channel.socket.shutdown(socket.SHUT_WR)
        elif act == "close the socket only" and channel.socket is not None:
            # A low number would soon be reused, and the program would test that instead.
            if channel.socket.fileno() >= CHANNELS:
                channel.socket.close()
        elif act == "new channel" and len(self.channels) < 9 and self.spare:
            self.make(rng.choice(("chat", "plain", "buffered")), rng)
        elif act == "change predicates":
            channel.answers = (rng.random() < 0.7, rng.random() < 0.7)
        elif act == "own predicate":
            self.put_predicate(channel, rng.random() < 0.7, reads=rng.random() < 0.5)
        elif act == "add to another's out_buffer":
            other = self.other(rng)
            if hasattr(other, "out_buffer"):
                other.out_buffer += b"added\n"
        elif act == "assign out_buffer" and hasattr(channel, "out_buffer"):
            channel.out_buffer = b"assigned"
        elif act == "del_channel":
            channel.del_channel()
        elif act == "close_all":
            self.asyncore.close_all(self.map, ignore_all=True)
        elif act == "recv more" and event == "read":
            self.note(channel, "received", channel.recv(3))
        elif act == "mark disconnected":
            channel.connected = False
        elif act == "reconnect" and not event and is_chat:
            channel.close()
            self.connect(channel, rng)

    @staticmethod
    def put_predicate(channel, answer: bool, *, reads: bool) -> None:
        """A predicate on the instance, in place of the one of its class."""
        if reads:
            channel.readable = lambda: answer
        else:
            channel.writable = lambda: answer

    # -- the script -------------------------------------------------------------------------

    def one_pass(self, how: str) -> None:
        """Run one pass of the loop, or of poll called directly; exceptions propagate."""
        self.pass_count += 1
        self.passes.append((self.pass_count, self.depth))
        try:
            if how == "poll":
                self.asyncore.poll(0, self.map)
            elif how == "poll2":
                self.asyncore.poll2(0, self.map)
            elif how == "two":
                self.asyncore.loop(0, self.use_poll, self.map, 2)
            elif self.default_map:
                self.asyncore.loop(timeout=0, use_poll=self.use_poll, count=1)
            else:
                self.asyncore.loop(0, self.use_poll, self.map, 1)
        finally:
            self.passes.pop()
            if not self.passes:
                while self.held:
                    os.close(self.held.pop())

    def outer_pass(self, how: str) -> None:
        self.note("script", how)
        try:
            self.one_pass(how)
        except BaseException as error:  # noqa: BLE001 - whatever leaves the loop is recorded
            self._note_error("left by", error)

    def _note_error(self, where: str, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt) and not error.args:
            raise error  # from the keyboard, not from a program
        # The text of an OSError of the system differs from that of a handler's: the type is enough.
        self.note("script", where, type(error).__name__)

    def peer_step(self, rng: random.Random) -> None:
        """Make something happen at the far end of a channel, and wait for it."""
        channel = rng.choice(self.channels)
        if channel.accepting:
            with contextlib.suppress(OSError):
                address = channel.socket.getsockname()
                peer = _moved(socket.create_connection(address, timeout=1), PEERS)
                peer.setblocking(False)
                self.extra.append(peer)
                self._await(channel.socket.fileno(), select.POLLIN)
                if rng.random() < 0.5:
                    peer.send(b"hello\nagain\n")
            return
        peer = self.peers.get(channel.name)
        if peer is None:
            return
        with contextlib.suppress(OSError):
            if isinstance(peer, int):
                if rng.random() < 0.8:
                    os.write(peer, rng.choice(_LINES))
                else:
                    del self.peers[channel.name]
                    os.close(peer)
                return
            self._socket_step(channel, peer, rng)

    def _socket_step(self, channel, peer: socket.socket, rng: random.Random) -> None:
        ours = channel.socket
        number = ours.fileno()
        what = rng.random()
        if what < 0.62:
            before = _pending(ours) if number >= 0 else 0
            sent = peer.send(rng.choice(_LINES) * rng.choice((1, 1, 1, 2, 5)))
            if number >= 0 and ours.family == socket.AF_INET:
                # Bytes after an urgent mark are not counted: hence the bound.
                for _ in range(50):
                    if _pending(ours) >= before + sent:
                        break
                    select.select([], [], [], 0.001)
        elif peer.type == socket.SOCK_DGRAM:
            self.note(channel, "peer got", len(peer.recv(100)))
        elif what < 0.70:
            peer.shutdown(socket.SHUT_WR)
            self._await(number, _POLLRDHUP)
        elif what < 0.78:
            del self.peers[channel.name]
            peer.close()
            self._await(number, _POLLRDHUP | select.POLLHUP)
        elif what < 0.84:
            del self.peers[channel.name]
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            self._await(number, select.POLLHUP)
        elif what < 0.88 and peer.family == socket.AF_INET:
            peer.send(b"!", socket.MSG_OOB)
            self._await(number, select.POLLPRI)
        else:
            got = peer.recv(rng.choice((1, 100, 65536, 10**6)))
            if peer.family == socket.AF_UNIX:
                self.note(channel, "peer got", len(got))

    @staticmethod
    def _await(number: int, mask: int) -> None:
        if number >= 0:
            poll = select.poll()
            poll.register(number, mask)
            poll.poll(200)

    def run(self) -> list[tuple]:
        """Run the program; return its history, including the state at the end."""
        rng = self.rng
        try:
            for _ in range(rng.randint(1, 4)):
                self.make(rng.choices(KINDS, KIND_WEIGHTS)[0], rng)
            for _ in range(rng.randint(4, 14)):
                for _ in range(rng.choice((0, 1, 1, 2, 3))):
                    self.peer_step(rng)
                if rng.random() < 0.2:
                    channel = rng.choice(self.channels)
                    try:
                        self.act(channel, rng, "")
                    except BaseException as error:  # noqa: BLE001 - as in outer_pass
                        self._note_error("act", error)
                self.outer_pass(rng.choices(("pass", "two", "poll", "poll2"), (80, 8, 6, 6))[0])
            self._note_state()
        finally:
            self._tidy()
        return self.history

    def _note_state(self) -> None:
        for channel in self.channels:
            number = channel._fileno
            state = [channel.connected, channel.accepting, channel.connecting]
            state += [number is not None, self.map.get(number) is channel]
            if hasattr(channel, "producer_fifo"):
                state += [channel.ac_in_buffer, channel.get_terminator()]
                state.append(
                    [
                        bytes(x) if isinstance(x, (bytes, memoryview)) else type(x).__name__
                        for x in channel.producer_fifo
                    ]
                )
            self.note(channel, "ends as", *state)
        for name, peer in self.peers.items():
            if isinstance(peer, socket.socket):
                with contextlib.suppress(OSError):
                    self.note(name, "peer read at last", peer.recv(10**6))

    def _tidy(self) -> None:
        self.history = list(self.history)
        self.acts_left = 0
        for channel in self.channels:
            with contextlib.suppress(Exception):
                channel.world = _Silent()
                channel.close()
        for peer in self.peers.values():
            if isinstance(peer, int):
                os.close(peer)
            else:
                peer.close()
        for sock in [*self.extra, self.target, *(s for pair in self.spare for s in pair)]:
            sock.close()
        self.map.clear()
        os.close(self.null)


class _Silent:
    """The world of a channel whose program is over."""

    def event(self, *what) -> None:
        pass

    note = event

    def hold(self, number) -> None:
        pass


KINDS = ("chat", "plain", "buffered", "listener", "connector", "pipe", "datagram")
KIND_WEIGHTS = (10, 4, 4, 3, 4, 2, 1)

#: How a class is written: with its own predicates or the base class's, and which hooks.
STYLES = ("bare", "full", "predicates", "full predicates", "forgets to close", "own error")

_classes: dict[int, dict] = {}


def channel_classes(modules) -> dict[tuple[str, str], type]:
    """Every kind in every style, on the given modules; built once for each."""
    key = id(modules.asyncore)
    if key not in _classes:
        _classes[key] = {
            (kind, style): _channel_class(modules, kind, style)
            for kind in KINDS
            for style in STYLES
        }
    return _classes[key]


def _channel_class(modules, kind: str, style: str) -> type:
    asyncore, asynchat = modules.asyncore, modules.asynchat
    base = {
        "chat": asynchat.async_chat,
        "connector": asynchat.async_chat,
        "buffered": asyncore.dispatcher_with_send,
        "pipe": asyncore.file_dispatcher,
    }.get(kind, asyncore.dispatcher)

    class Channel(base):
        """What every style has: hooks that record."""

        def close(self):
            number = self._fileno
            base.close(self)
            self.world.hold(number)

        def log_info(self, message, type="info"):  # noqa: A002 - the stdlib's signature
            told = _TRACEBACK.search(message)
            self.world.note(self, "log", type, told.group(2, 3) if told else message)

        def handle_close(self):
            self.world.event(self, "close")
            if style != "forgets to close":
                self.close()

        def handle_connect(self):
            self.world.event(self, "connect", self.connected)

        def handle_expt(self):
            self.world.event(self, "expt")

        if style == "own error":

            def handle_error(self):
                self.world.event(self, "error", asyncore.compact_traceback()[1].__name__)

        if "predicates" in style:

            def readable(self):
                self.world.note(self, "readable")
                if self.world.draw(self, "readable").random() < 0.004:
                    raise ValueError("predicate made to fail")
                return self.answers[0] and base.readable(self)

            def writable(self):
                self.world.note(self, "writable")
                if self.world.draw(self, "writable").random() < 0.004:
                    raise ValueError("predicate made to fail")
                return self.answers[1] and base.writable(self)

    if hasattr(base, "found_terminator"):
        return _with_chat_hooks(Channel, style)
    if kind == "listener":
        return _with_accept_hooks(Channel, modules, style)
    return _with_plain_hooks(Channel, kind, style)


def _with_chat_hooks(base: type, style: str) -> type:
    class Chat(base):
        def collect_incoming_data(self, data):
            self.world.event(self, "collect", bytes(data))

        def found_terminator(self):
            self.world.event(self, "found", self.terminator, bytes(self.ac_in_buffer))

        if "full" in style:

            def handle_read(self):
                self.world.event(self, "read")
                base.handle_read(self)

            def handle_write(self):
                self.world.event(self, "write")
                base.handle_write(self)

    return Chat


def _with_accept_hooks(base: type, modules, style: str) -> type:
    def take(listener, sock):
        world = listener.world
        if len(world.channels) >= 9:
            sock.close()
            return
        cls = channel_classes(modules)["chat", style]
        channel = cls.__new__(cls)
        channel.world, channel.name = world, f"c{len(world.channels)}"
        channel.born = world.pass_count
        channel.answers = (True, True)
        world.channels.append(channel)
        cls.__init__(channel, sock, None if world.default_map else world.map)
        channel.set_terminator(b"\n")

    class Listener(base):
        if "full" in style:

            def handle_accept(self):
                pair = self.accept()
                if pair is not None:
                    take(self, pair[0])
                self.world.event(self, "accept", pair is not None)

        else:

            def handle_accepted(self, sock, addr):
                take(self, sock)
                self.world.event(self, "accepted")

    return Listener


def _with_plain_hooks(base: type, kind: str, style: str) -> type:
    class Plain(base):
        def handle_read(self):
            size = self.world.draw(self, "size").choice((2, 8, 4096))
            self.world.event(self, "read", self.recv(size) if self.socket else None)

        if kind != "buffered" or "full" in style:

            def handle_write(self):
                self.world.event(self, "write")
                if kind == "buffered":
                    base.handle_write(self)

    return Plain


def history(seed: int, modules, *, use_poll: bool) -> tuple[list[tuple], int | None]:
    """
    Run one program on one implementation.

    Returns:
        What its handlers were told, in order, and the place in it of the first event that was
        meant for a former owner of the descriptor (None: there was none).
    """
    world = World(seed, modules, use_poll=use_poll)
    return world.run(), world.stale_at
