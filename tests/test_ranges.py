"""
Invalid numbers are refused where they are given, on every surface, in one line.
"""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs

from txasynchat import AsyncChat, ChatFactory, Server, State, ranges
from txasynchat.compat import asynchat, start_tls
from txasynchat.endpoints import parse_client, parse_server
from txasynchat.program import CannotStart
from txasynchat.tls import ClientOptions, Credentials, ServerOptions
from txasynchat.twistd import Options

NAN, INFINITE = float("nan"), float("inf")
#: Neither a number of seconds nor of bytes.
NEVER = [-1, NAN, -INFINITE, "x", b"5", True, (1,)]
NO_SECONDS = [*NEVER, INFINITE, 1e300, 1_000_001]
NO_COUNT = [*NEVER, INFINITE, 0.5, 65_536.0]
COUNTS = {"max_message_length", "high_water", "low_water", "max_unsent", "ac_out_buffer_size"}


def wrong(name):
    if name == "clock":
        return [12.5, "x"]
    return (
        NO_COUNT if name in COUNTS | {"handshakes", "max_handshakes", "max_pending"} else NO_SECONDS
    )


HANDLER = [(name, value) for name in ranges.HANDLER for value in wrong(name)]
TLS = [(name, value) for name in (*ranges.TLS, "max_handshakes") for value in wrong(name)]


class Line(AsyncChat):
    terminator = b"\n"


@pytest.mark.parametrize(("name", "value"), HANDLER)
def test_invalid_number_in_a_class_body_is_refused(name, value):
    """The import of the module fails, not its first connection."""
    with pytest.raises((TypeError, ValueError), match=rf"^Handler\.{name} must be a ") as raised:
        type("Handler", (AsyncChat,), {name: value})
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(("name", "value"), HANDLER)
@pytest.mark.parametrize("where", ["__init__", "connectionMade"])
def test_invalid_number_on_an_object_closes_its_connection(name, value, where):
    """It is logged once, with name, value and range, and that connection closes."""

    def assign(chat):
        setattr(chat, name, value)

    kind = type("Handler", (Line,), {where: assign})
    if (where, name) == ("__init__", "max_message_length"):
        # It may be changed at any moment, and so is checked where it is assigned.
        with pytest.raises((TypeError, ValueError), match=rf"^Handler\.{name} must be a "):
            kind()
        return
    chat = kind()
    transport = StringTransport()
    with capturedLogs() as logs:
        chat.makeConnection(transport)
        chat.dataReceived(b"x\n")
    (event,) = logs
    assert str(event["log_failure"].value).startswith(f"Handler.{name} must be a ")
    assert chat.state is State.CLOSING
    assert transport.disconnecting


def test_valid_numbers_are_accepted():
    class Handler(Line):
        max_message_length = max_unsent = high_water = close_timeout = None
        low_water = 0
        clock = Clock()

        @property
        def ac_out_buffer_size(self):
            return 100

    @dataclass
    class Fields(Line):
        high_water: int = 5
        close_timeout: float = 1_000_000

    for chat in (Handler(), Fields()):
        with capturedLogs() as logs:
            chat.makeConnection(StringTransport())
        assert logs == []
        assert chat.state is State.OPEN


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    trustme = pytest.importorskip("trustme")
    path = tmp_path_factory.mktemp("files") / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.parametrize(("name", "value"), TLS)
def test_as_an_argument_of_tls_options(files, name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be a "):
        ServerOptions(Credentials(files), **{name: value})
    if name in {"handshake_timeout", "close_timeout", "flush_timeout"}:
        with pytest.raises((TypeError, ValueError), match=f"^{name} must be a "):
            ClientOptions("localhost", **{name: value})


@pytest.mark.parametrize(
    ("word", "text"),
    [
        *(
            (word, text)
            for word in (
                "reload",
                "handshake_timeout",
                "close_timeout",
                "handshakes",
                "max_handshakes",
                "max_pending",
            )
            for text in ("0", "-1", "nan", "inf", "1e300", "x")
        ),
        ("max_handshakes", "0.5"),
        ("handshake_timeout", ""),
    ],
)
def test_as_a_word(files, word, text):
    with pytest.raises(ValueError, match=rf"{word} must be a .*number .*, not '{text}'"):
        parse_server(MemoryReactorClock(), "tcp", "0", certificate=files, **{word: text})
    if word in {"handshake_timeout", "close_timeout"}:
        with pytest.raises(ValueError, match=f"{word} must be a number above 0"):
            parse_client(MemoryReactorClock(), "tcp", "localhost", "1", **{word: text})


@pytest.mark.parametrize("value", NO_SECONDS)
def test_invalid_number_of_a_legacy_channel_is_refused(value):
    ours, theirs = socket.socketpair()
    with theirs, ours:
        channel = asynchat.async_chat(ours, map={})
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with pytest.raises(
            (TypeError, ValueError), match=r"^handshake_timeout must be a number above 0"
        ):
            start_tls(channel, context, server_hostname="localhost", handshake_timeout=value)
        assert channel.socket is ours


@pytest.mark.parametrize("value", [*NEVER, INFINITE, 1e300])
def test_invalid_number_of_a_server_is_refused(value):
    with pytest.raises(
        (TypeError, ValueError), match="stop_timeout must be a number from 0 to 1,000,000"
    ):
        Server(MemoryReactorClock(), ChatFactory(Line), [], stop_timeout=value)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e300", "x", ""])
@pytest.mark.parametrize("option", ["--stop-timeout", "--max-message-length"])
def test_invalid_number_on_the_command_line_is_refused(option, text):
    with pytest.raises(
        CannotStart, match=rf"^txasynchat: {option} must be a .*number from 0 .*, not '{text}'$"
    ):
        Options().parseOptions([f"{option}={text}"])


def test_table_in_the_docs_agrees_with_the_checks(root: Path):
    """The table lists each number that a user may give, with its range."""
    page = (root / "docs/reference/ranges.md").read_text()
    tables = (ranges.HANDLER, ranges.TLS, ranges.LIMITS)
    rows = [*(row for table in tables for row in table.items()), ("stop_timeout", ranges.STOPPING)]
    for name, its in rows:
        if isinstance(its, ranges.Range):
            none = ", or `None`" if its.optional else ""
            assert f"| `{name}` | {its}{none} |" in page
