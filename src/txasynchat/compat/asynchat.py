"""
The interface of the standard library's ``asynchat`` module of Python 3.11.

Input is cut into messages by the framer that `txasynchat.AsyncChat` uses (`framing`), in the stdlib's
order of calls. Output keeps the stdlib's rules exactly: `push` sends before it returns, one chunk a
call, and a producer is what cannot be sliced.

`ac_in_buffer` and `terminator` are still attributes, to be read and assigned at any moment. Behind them
is the framer, which a channel gets with its first bytes.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Any

from txasynchat.compat import _interest, _loop, asyncore
from txasynchat.compat._attributes import own
from txasynchat.compat._framer import LegacyFramer
from txasynchat.compat._queues import BYTES, Fifo, append, join_first, put, put_first, settle
from txasynchat.compat._sending import sender_of
from txasynchat.producers import simple_producer

__all__ = ["async_chat", "asyncore", "deque", "find_prefix_at_end", "simple_producer"]

_UNSET = object()
_ELSEWHERE: Any = object()

# Guards the making of a queue.
_making = Lock()


class _InBuffer:
    """``async_chat.ac_in_buffer``: what was received and not yet delivered."""

    def __get__(self, channel: Any, owner: type | None = None) -> Any:
        if channel is None:
            raise AttributeError(f"type object {owner!r} has no attribute 'ac_in_buffer'")
        framer = channel._async_chat__framer
        return b"" if framer is None else framer.buffer

    def __set__(self, channel: Any, data: Any) -> None:
        framer = channel._async_chat__framer
        if framer is not None:
            framer.buffer = data
        elif data:
            channel._async_chat__start().feed(data)


class _CurrentTerminator:
    """
    ``async_chat.terminator``: what ends the current message; a number counts down.

    A class may set it as a class attribute; see `async_chat.__init_subclass__`.
    """

    def __get__(self, channel: Any, owner: type | None = None) -> Any:
        if channel is None:
            value = owner._async_chat__terminator  # type: ignore[union-attr] # a class then
        else:
            framer = channel._async_chat__framer
            value = channel._async_chat__terminator if framer is None else framer.terminator
        if value is _UNSET:
            kind = owner or type(channel)
            raise AttributeError(f"{kind.__name__!r} object has no attribute 'terminator'")
        return value

    def __set__(self, channel: Any, terminator: Any) -> None:
        framer = channel._async_chat__framer
        if framer is None:
            channel._async_chat__terminator = terminator
        else:
            framer.terminator = terminator


def _framer_of(channel: Any) -> LegacyFramer | None:
    """Return what cuts the input of *channel*; None if that is no chat, or has received nothing yet."""
    return getattr(channel, "_async_chat__framer", None)


def _reports(channel: Any) -> bool:
    """Return whether a change of a channel's `producer_fifo` is reported, because it is ours."""
    if type(channel).producer_fifo is not _producer_fifo:
        return False
    fifo = own(channel, "producer_fifo")
    return type(fifo) is Fifo and fifo.is_of(channel)


class async_chat(asyncore.dispatcher):  # noqa: N801 - the stdlib's name
    """
    A channel that speaks in messages; derive from it.

    The subclass must define `collect_incoming_data` and `found_terminator`. The arguments are those of
    `asyncore.dispatcher`.
    """

    __module__ = "asynchat"

    #: The most bytes that are received, and sent, at once; read on each use.
    ac_in_buffer_size = 65536
    ac_out_buffer_size = 65536
    #: Whether text is encoded, by `encoding`.
    use_encoding: Any = 0
    encoding = "latin-1"
    #: Not in the stdlib: what is pushed while one chunk of input is handled goes out at its end, in one
    #: piece. Inside handlers, `push` then does not send before it returns.
    ac_join_writes = False

    ac_in_buffer = _InBuffer()
    terminator = _CurrentTerminator()
    incoming: list[bytes]

    __framer: LegacyFramer | None = None
    __terminator: Any = _UNSET
    # get_terminator() has to be called, because it may differ from the attribute.
    __asked = False
    # Missing if a program did not call __init__. (An attribute without a default in the class is found
    # fastest.) The framer again, from the first bytes on, if a channel overrides nothing that matters.
    __quick: LegacyFramer | None
    # The queue, None until it is used; _ELSEWHERE if the class has its own producer_fifo.
    __fifo: Any

    def __init__(self, sock: Any = None, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
        # All attributes at once: CPython reserves room in instances for those that a class's first ones
        # have. A later attribute costs each channel a dict, and each access time.
        self.__framer = self.__quick = None
        self.__terminator = self.__terminator
        self.ac_in_buffer = b""
        self.incoming = []
        if type(self).producer_fifo is _producer_fifo:
            self.__fifo = None
        else:
            self.__fifo = _ELSEWHERE
            self.producer_fifo = deque()
        asyncore.dispatcher.__init__(self, sock, map)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep `terminator` the framer's, even if a subclass or mix-in sets it as a class attribute."""
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__:
            own = base.__dict__.get("terminator")
            if own is _terminator:
                break
            if own is not None and not hasattr(own, "__set__"):
                cls.__terminator = own
                cls.terminator = _terminator
                break
        cls.__asked = cls.get_terminator is not _get_terminator or (
            cls.__dict__.get("terminator", _terminator) is not _terminator
        )

    def __start(self) -> LegacyFramer:
        framer = LegacyFramer()
        if self.__terminator is _UNSET:
            self.__asked = True  # get_terminator() raises the right exception
        framer.terminator = self.__terminator
        self.__framer = framer
        self.__quick = None
        self.__choose_way()
        return framer

    def __choose_way(self) -> None:
        """Find out whether `push` may send by itself, and input go to the framer directly."""
        if (
            getattr(self.initiate_send, "__func__", None) is _initiate_send
            and getattr(self.send, "__func__", None) is _send
            and _reports(self)
        ):
            sender_of(self).fifo = self.__fifo  # another thread may push from here on
            if not (self.__asked or self.ac_join_writes):
                self.__quick = self.__framer
            return
        sender: Any = getattr(self, "_txasynchat_sender", None)
        if sender is not None:
            sender.fifo = None

    # -- input

    def collect_incoming_data(self, data: bytes) -> None:
        """Called with received bytes of the current message, never empty; to be overridden."""
        raise NotImplementedError("must be implemented in subclass")

    def _collect_incoming_data(self, data: bytes) -> None:
        self.incoming.append(data)

    def _get_data(self) -> bytes:
        data = b"".join(self.incoming)
        del self.incoming[:]
        return data

    def found_terminator(self) -> None:
        """Called at the end of a message; to be overridden."""
        raise NotImplementedError("must be implemented in subclass")

    def set_terminator(self, term: Any) -> None:
        """
        Choose where the current message ends; applies to bytes not yet delivered.

        Args:
            term: bytes; a number of bytes; or anything false to collect without end.

        Raises:
            ValueError: a negative number.
        """
        if isinstance(term, str) and self.use_encoding:
            term = bytes(term, self.encoding)
        elif isinstance(term, int) and term < 0:
            raise ValueError("the number of received bytes must be positive")
        self.terminator = term

    def get_terminator(self) -> Any:
        """Called on each round while received bytes are cut into messages."""
        return self.terminator

    def handle_read(self) -> None:
        """Receive once, and deliver what can be delivered."""
        try:
            data = self.recv(self.ac_in_buffer_size)
        except BlockingIOError:
            return
        except OSError:
            if not _loop.waits_for_tls(self, "read"):
                self.handle_error()
            return
        if type(data) is not bytes:
            if isinstance(data, str) and self.use_encoding:
                data = bytes(data, self.encoding)
            data = b"" + data  # a TypeError for what the buffer could not take
        try:
            framer = self.__quick
        except AttributeError:
            framer = None
        if framer is not None:
            framer.receive(self, data)
        else:
            self.__receive(data)

    def __receive(self, data: bytes) -> None:
        framer = self.__framer
        if framer is None:
            framer = self.__start()
        if not self.ac_join_writes:
            self.__deliver(framer, data)
            return
        sender = sender_of(self)
        if sender.is_joining:  # input is handled while input is handled
            self.__deliver(framer, data)
            return
        sender.is_joining = True
        try:
            self.__deliver(framer, data)
        finally:
            sender.is_joining = False
            if self.producer_fifo:
                try:
                    if not sender.flush(self):
                        self.initiate_send()
                finally:
                    if self.producer_fifo:
                        _loop.touch(self)

    def __deliver(self, framer: LegacyFramer, data: bytes) -> None:
        if self.__asked:
            framer.feed(data)
            framer.deliver(self, self.get_terminator)
        else:
            framer.receive(self, data)

    # -- output

    @property
    def producer_fifo(self) -> Any:
        """What was pushed and not sent yet, a deque; for other channels too, from any thread."""
        try:
            fifo = self.__fifo
        except AttributeError:
            fifo = _ELSEWHERE
        if fifo is _ELSEWHERE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'producer_fifo'")
        if fifo is None:
            with _making:
                fifo = self.__fifo
                if fifo is None:
                    fifo = Fifo()
                    fifo.adopt(self)
                    self.__fifo = fifo
        return fifo

    @producer_fifo.setter
    def producer_fifo(self, fifo: Any) -> None:
        if type(fifo) is Fifo:
            fifo.adopt(self)
        self.__fifo = fifo
        if self.__framer is not None:
            self.__choose_way()
        _loop.touch(self)

    def handle_write(self) -> None:
        """Continue sending."""
        self.initiate_send()

    def handle_close(self) -> None:
        """Close; may be overridden."""
        self.close()

    def push(self, data: Any) -> None:
        """
        Send *data*, as much as possible before this returns; from any thread.

        Raises:
            TypeError: *data* is not bytes, bytearray or memoryview.
        """
        try:
            sender: Any = self._txasynchat_sender
        except AttributeError:  # __init__ was not called
            sender = None
        if sender is not None:
            # Inlined: a call of a method takes a tenth of the time for one of 64 pipelined messages.
            if sender.is_joining:
                fifo = sender.fifo
                if fifo is not None and type(data) is bytes and data:
                    append(fifo, data)
                    if not sender.is_joining:  # this is another thread, and too late
                        self.initiate_send()
                        _loop.touch(self)
                    return
            elif sender.push(self, data):
                return
        self.__push(data)

    def __push(self, data: Any) -> None:
        if not isinstance(data, BYTES):
            raise TypeError("data argument must be byte-ish (%r)", type(data))
        fifo = self.producer_fifo
        waited = len(fifo)
        size = self.ac_out_buffer_size
        length = len(data)
        if length > size:
            put(fifo, [data[start : start + size] for start in range(0, length, size)])
        else:
            put(fifo, (data,))
        if sender_of(self).is_joining:
            return
        try:
            self.initiate_send()
        finally:
            if waited or fifo:
                _loop.touch(self)

    def push_with_producer(self, producer: Any) -> None:
        """Send what ``producer.more()`` returns, until that is empty."""
        put(self.producer_fifo, (producer,))
        if sender_of(self).is_joining:
            return
        try:
            self.initiate_send()
        finally:
            _loop.touch(self)

    @_interest.steady()
    def readable(self) -> Any:
        """Asked on every pass: always 1."""
        return 1

    @_interest.steady(_reports)
    def writable(self) -> Any:
        """Asked on every pass: true while something is queued, or while not connected."""
        try:
            fifo = self.__fifo
        except AttributeError:
            fifo = _ELSEWHERE
        if fifo is _ELSEWHERE:
            fifo = self.producer_fifo
        return fifo or (not self.connected)

    def close_when_done(self) -> None:
        """Close when everything pushed so far has been sent."""
        put(self.producer_fifo, (None,))
        _loop.touch(self)

    def initiate_send(self) -> None:
        """
        Send one chunk from the head of the queue, if there is one.

        Safe from several threads: while one sends, another only notes that there is more, and the first
        continues with that.
        """
        sender_of(self).send(self.__send_chunk)

    def __send_chunk(self) -> None:
        join = self.ac_join_writes
        while self.connected:
            fifo = self.producer_fifo
            if not fifo:
                return
            if join and len(fifo) > 1:
                join_first(fifo, self.ac_out_buffer_size)
                join = False
            try:
                first = fifo[0]
            except IndexError:  # another thread has emptied it
                return
            if not first:
                # As in the stdlib, what is false and not None still counts as data below.
                settle(fifo, first)
                if first is None:
                    self.handle_close()
                    return
            size = self.ac_out_buffer_size
            try:
                data = first if type(first) is bytes and len(first) <= size else first[:size]
            except TypeError:
                data = first.more()
                if data:
                    put_first(fifo, [data])
                else:
                    settle(fifo, first)
                continue
            if isinstance(data, str) and self.use_encoding:
                data = bytes(data, self.encoding)
            try:
                num_sent = self.send(data)
            except OSError:
                self.handle_error()
                return
            if num_sent:
                is_whole = num_sent == len(data) and size >= len(first)
                if is_whole and fifo and fifo[0] is first:
                    del fifo[0]
                else:
                    settle(fifo, first, None if is_whole else num_sent)
            return

    def discard_buffers(self) -> None:
        """Forget all that was received and not delivered, or pushed and not sent."""
        self.ac_in_buffer = b""
        del self.incoming[:]
        self.producer_fifo.clear()
        sock: Any = getattr(self, "socket", None)
        if isinstance(sock, _interest.LayeredSocket):
            sock.begin()  # what was to go out in plain text first is forgotten
        _loop.touch(self)


_terminator = async_chat.__dict__["terminator"]
_get_terminator = async_chat.get_terminator
_initiate_send = async_chat.initiate_send
_producer_fifo = async_chat.producer_fifo
_send = async_chat.send


def find_prefix_at_end(haystack: Any, needle: Any) -> int:
    """
    Return how many of the last items of *haystack* are the beginning of *needle*, but not all of it.
    """
    length = len(needle) - 1
    while length and not haystack.endswith(needle[:length]):
        length -= 1
    return length
