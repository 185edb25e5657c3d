"""
A terminal client for ``chat.py`` and ``chat_legacy.py``: what others say never disturbs the line that
is being edited.

    python chat_client.py tcp:127.0.0.1:8007
    python chat_client.py secure:tcp:chat.example.org:8007

The arrows, Home, End, Delete, Ctrl-U and Ctrl-W edit the line; up and down recall earlier ones; Ctrl-D
on an empty line leaves.
"""

import codecs
import os
import re
import shutil
import sys
import termios
import tty
import unicodedata
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from typing_extensions import override

from txasynchat import AsyncChat, ChatError

PROMPT = "> "
KEYS = re.compile(r"\x1b(?:\[[0-9;]*[@-~]|O.|)|.", re.DOTALL)
CLEAR_LINE = "\r\x1b[K"


class Line:
    """The line that is being edited, and those before it."""

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0
        self.history: list[str] = []
        self.recalled = 0  # how many lines back

    def press(self, key: str) -> None:
        before, after = self.text[: self.cursor], self.text[self.cursor :]
        match key:
            case "\x7f" | "\b":
                self.set(before[:-1], after)
            case "\x1b[3~":  # Delete
                self.set(before, after[1:])
            case "\x15":  # Ctrl-U
                self.set("", after)
            case "\x17":  # Ctrl-W
                self.set(re.sub(r"\S*\s*$", "", before), after)
            case "\x1b[D" | "\x1bOD":
                self.cursor = max(self.cursor - 1, 0)
            case "\x1b[C" | "\x1bOC":
                self.cursor = min(self.cursor + 1, len(self.text))
            case "\x01" | "\x1b[H" | "\x1bOH" | "\x1b[1~":  # Ctrl-A, Home
                self.cursor = 0
            case "\x05" | "\x1b[F" | "\x1bOF" | "\x1b[4~":  # Ctrl-E, End
                self.cursor = len(self.text)
            case "\x1b[A" | "\x1bOA":
                self.recall(self.recalled + 1)
            case "\x1b[B" | "\x1bOB":
                self.recall(self.recalled - 1)
            case _ if key.isprintable():
                self.set(before + key, after)

    def set(self, before: str, after: str = "") -> None:
        self.text = before + after
        self.cursor = len(before)

    def recall(self, back: int) -> None:
        if 0 <= back <= len(self.history):
            self.recalled = back
            self.set(self.history[-back] if back else "")

    def take(self) -> str:
        text = self.text
        if text:
            self.history.append(text)
        self.recalled = 0
        self.set("")
        return text

    def draw(self, width: int) -> str:
        """Return what shows the part around the cursor, in less than *width* columns."""
        start, end = self.cursor, self.cursor
        room = width - len(PROMPT) - 1
        while start > 0 and columns(self.text[start - 1 : end]) <= room:
            start -= 1
        while end < len(self.text) and columns(self.text[start : end + 1]) <= room:
            end += 1
        cursor = len(PROMPT) + columns(self.text[start : self.cursor])
        return f"{CLEAR_LINE}{PROMPT}{self.text[start:end]}\r\x1b[{cursor}C"


def columns(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    widths = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.combining(c) else widths.get(unicodedata.east_asian_width(c), 1)
        for c in text
    )


class Terminal(AsyncChat):
    """The keys come in pieces as they are pressed: a terminator of None ends no message."""

    terminator = None
    server: "Server"

    def __init__(self) -> None:
        self.line = Line()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.ended: Deferred[None] = Deferred()

    @override
    def handle_connect(self) -> None:
        self.redraw()

    @override
    def collect_incoming_data(self, data: bytes) -> None:
        for key in KEYS.findall(self.decoder.decode(data)):
            if key in {"\r", "\n"}:
                text = self.line.take()
                self.show(PROMPT + text)
                self.server.push(text.encode() + b"\n")
            elif key == "\x04" and not self.line.text:
                self.server.close()
            else:
                self.line.press(key)
        self.redraw()

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        self.server.close()
        self.ended.callback(None)

    def show(self, text: str) -> None:
        self.push(f"{CLEAR_LINE}{text}\r\n".encode())
        self.redraw()

    def redraw(self) -> None:
        self.push(self.line.draw(shutil.get_terminal_size().columns).encode())


class Server(AsyncChat):
    terminator = (b"\n", b"\r\n")

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.ended: Deferred[ChatError | None] = Deferred()

    @override
    def message_received(self, message: bytes) -> None:
        line = message.decode(errors="replace")
        self.terminal.show("".join(c for c in line if c.isprintable()))

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        self.ended.callback(reason)


async def talk(reactor: Any, address: str) -> None:
    terminal = Terminal()
    server = terminal.server = Server(terminal)
    try:
        await connectProtocol(clientFromString(reactor, address), server)  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
        raise SystemExit(f"cannot connect to {address}: {error}") from None
    reactor.addSystemEventTrigger("before", "shutdown", server.close)
    StandardIO(terminal)  # type: ignore[no-untyped-call]
    reason = await server.ended
    terminal.push(CLEAR_LINE.encode())
    terminal.close()
    await terminal.ended
    if reason is not None:
        raise SystemExit(f"the connection ended: {reason}")


def main() -> None:
    if len(sys.argv) != 2 or not sys.stdin.isatty():
        raise SystemExit(f"usage, in a terminal: {sys.argv[0]} ENDPOINT, as tcp:127.0.0.1:8007")
    before = termios.tcgetattr(0)
    tty.setcbreak(0)  # keys come one by one, and are not echoed; Ctrl-C is still a signal
    try:
        react(lambda reactor: Deferred.fromCoroutine(talk(reactor, sys.argv[1])))
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.set_blocking(0, True)  # the shell's own, too


if __name__ == "__main__":
    main()
