r"""
Hygiene of lines: what becomes of a CR, LF or NUL inside one, and of a peer that speaks HTTP or TLS.

Programs differ in what they take for the end of a line. One that passes on a line with a bare LF inside
may pass on two, the second of which nobody checked (SMTP smuggling). And a browser can be made to send
a request to any port, whose lines are commands there (ALPACA).

A handler that asks for neither has a plain `Inbox`, so this costs it nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from txasynchat.errors import MalformedMessage, OtherProtocol
from txasynchat.protocol.inbox import Inbox
from txasynchat.terminators import LineEnds

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.errors import MessageTooLong
    from txasynchat.framing.receivers import LimitReceiver
    from txasynchat.terminators import Terminator

__all__ = ["ANSWERS", "Converting", "LineInbox", "check_line", "check_line_ends", "delimiters"]

_EXACT = LineEnds.EXACT
_NORMALISE = LineEnds.NORMALISE

_EITHER: Final = (b"\n", b"\r\n")
#: The terminators of lines.
_OF_LINES: Final = (b"\r\n", b"\n", _EITHER, (b"\r\n", b"\n"))
_STRAYS: Final = re.compile(rb"[\0\r\n]")
_TO_SPACES: Final = bytes.maketrans(b"\0\r", b"  ")

_TARGETS = b"/", b"*", b"http:", b"https:"
_METHODS = b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"
#: What connections of other protocols begin with.
_BEGINNINGS: Final = {
    "HTTP": (
        *(method + b" " + target for method in _METHODS for target in _TARGETS),
        *(b"CONNECT ", b"PRI * HTTP/2"),
    ),
    "TLS": tuple(b"\x16\x03" + bytes([minor]) for minor in range(5)),
}
_LONGEST: Final = max(len(one) for some in _BEGINNINGS.values() for one in some)
#: What tells such a peer, in its own words, that it is wrong here; nothing of what it sent.
ANSWERS: Final = {
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x0a",  # a fatal alert: unexpected_message
}


class LineInbox(Inbox):
    """
    An `Inbox` whose messages are converted, or whose beginning is looked at.

    Attributes:
        line_ends: see `LineEnds`; to be set by `begin`.
    """

    __slots__ = ("_begin", "_chosen", "_other", "line_ends")

    line_ends: LineEnds

    @override
    def _prepare(self) -> None:
        super()._prepare()
        self.line_ends = _EXACT
        # What was set, where the terminator in force is _EITHER instead.
        self._chosen: Any = None
        # The first bytes, until it is decided whether they are another protocol's; and which.
        self._begin: bytes | None = None
        self._other: str | None = None

    def begin(self, line_ends: LineEnds, *, look: bool) -> None:
        """
        Set what belongs to the class, before a byte comes.

        Args:
            line_ends: see `LineEnds`.
            look: raise `OtherProtocol` for connections that begin as HTTP or TLS.
        """
        self.line_ends = line_ends
        self._begin = b"" if look else None
        self.terminator = self._widened(self.terminator)

    # -- the terminator

    @property
    @override
    def chosen(self) -> Any:
        return self._chosen if self.terminator is _EITHER else self.terminator

    @override
    def set_terminator(self, terminator: Terminator) -> bool:
        announced = super().set_terminator(terminator)
        self.terminator = self._widened(self.terminator)
        return announced

    def _widened(self, terminator: Any) -> Any:
        if self.line_ends is _NORMALISE and terminator in _OF_LINES:
            if terminator is not _EITHER:
                self._chosen = terminator
            return _EITHER
        return terminator

    # -- bytes

    @override
    def feed(self, data: bytes) -> None:
        if self._begin is not None and not self.closed:
            self._look(data)
        super().feed(data)

    @override
    def receive(self, receiver: Any, data: bytes) -> None:
        if self._begin is not None:
            self.feed(data)
            self.deliver(receiver)
        else:
            super().receive(self._through(receiver), data)

    @override
    def deliver(self, receiver: Any, get_terminator: Callable[[], Any] | None = None) -> None:
        self._refuse()
        if get_terminator is not None and self.line_ends is _NORMALISE:
            asked = get_terminator

            def get_terminator() -> Any:
                return self._widened(asked())

        super().deliver(self._through(receiver), get_terminator)

    @override
    def pull(self, receiver: LimitReceiver) -> bytes | None:
        self._refuse()
        message = super().pull(receiver)
        return message if message is None else self.convert_piece(message)

    def _look(self, data: bytes) -> None:
        begin = self._begin = ((self._begin or b"") + data)[:_LONGEST]
        undecided = False
        for name, beginnings in _BEGINNINGS.items():
            if begin.startswith(beginnings):
                self._other = name
            undecided |= any(one.startswith(begin) for one in beginnings)
        if self._other is not None or not undecided:
            self._begin = None

    def _refuse(self) -> None:
        if self._other is not None:
            other, self._other = self._other, None
            self.close()
            raise OtherProtocol(other)

    # -- messages

    def _through(self, receiver: Any) -> Any:
        return receiver if self.line_ends is _EXACT else Converting(receiver, self)

    def convert(self, message: bytes) -> Any:
        """
        Return a message, or a piece of one, as the handler gets it.

        Raises:
            MalformedMessage: it is refused.
        """
        if self._seen in _OF_LINES:
            if self.line_ends is _NORMALISE:
                return message.translate(_TO_SPACES)
            if self.line_ends is not _EXACT and _STRAYS.search(message):
                raise MalformedMessage("a CR, LF or NUL inside a line")
        return message

    def convert_piece(self, piece: bytes) -> bytes:
        """`convert` for what stays bytes: a piece, or a message that a stream reads."""
        converted: bytes = LineInbox.convert(self, piece)
        return converted


class Converting:
    """Takes the receiver's place for one delivery; kept longer, it would be part of a cycle."""

    __slots__ = ("_inbox", "_receiver")

    def __init__(self, receiver: Any, inbox: LineInbox) -> None:
        self._receiver = receiver
        self._inbox = inbox

    def message_received(self, message: bytes) -> object:
        """Convert a whole message."""
        result: object = self._receiver.message_received(self._inbox.convert(message))
        return result

    def collect_incoming_data(self, piece: bytes) -> object:
        """Convert a piece."""
        result: object = self._receiver.collect_incoming_data(self._inbox.convert_piece(piece))
        return result

    def found_terminator(self) -> object:
        """Pass it on."""
        result: object = self._receiver.found_terminator()
        return result

    def overflowed(self, error: MessageTooLong) -> object:
        """Pass it on."""
        result: object = self._receiver.overflowed(error)
        return result

    def hook_returned(self, result: object) -> None:
        """Pass it on."""
        self._receiver.hook_returned(result)


def delimiters(terminator: Any) -> tuple[bytes, ...]:
    """Return the delimiters that *terminator* consists of; none, where it is something else."""
    if isinstance(terminator, bytes):
        return (terminator,) if terminator else ()
    return terminator if isinstance(terminator, tuple) else ()


def check_line(line: bytes, ends: tuple[bytes, ...]) -> None:
    """
    Check that *line* is one line to whoever reads it.

    Args:
        line: without its end.
        ends: the delimiters that may end it.

    Raises:
        ValueError: it contains one of them; or a CR or LF, where those are line ends.
    """
    refused = (*ends, b"\r", b"\n") if any(end in _EITHER for end in ends) else ends
    for one in refused:
        if one in line:
            raise ValueError(f"a line must not contain {one!r}: {line!r:.80}")


def check_line_ends(owner: str, value: Any) -> None:
    """Raise a TypeError if the ``line_ends`` of the class named *owner* is not a `LineEnds`."""
    if not isinstance(value, LineEnds):
        raise TypeError(f"{owner}.line_ends must be a LineEnds, not {value!r:.80}")
