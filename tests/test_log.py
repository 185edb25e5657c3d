"""
What a peer sends can neither forge log lines nor fill the log.
"""

import io
import sys

import pytest
from twisted.internet.testing import StringTransport
from twisted.logger import (
    FileLogObserver,
    Logger,
    formatEventAsClassicLogText,
    globalLogPublisher,
)

from txasynchat import AsyncChat
from txasynchat.log import Throttle, escape, failure


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, naïve", "plain text, naïve"),
        ("a\nb\r\n", r"a\nb\r\n"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("\u2028\u202e\ud800", r"\u2028\u202e\ud800"),
    ],
)
def test_unprintable_characters_are_made_visible(text, shown):
    assert escape(text) == shown


def logged_failure(raise_error):
    """Log the exception of *raise_error*, and return the text that a log file would hold."""
    text = io.StringIO()
    log = Logger(observer=FileLogObserver(text, formatEventAsClassicLogText))
    try:
        raise_error()
    except Exception:  # noqa: BLE001 - whatever is raised
        failure(log, "{peer}: {handler} raised", peer="a peer", handler="Handler")
    return text.getvalue()


FORGED = "no such command: x\n1999-01-01T00:00:00 [-] forged\x1b[1A"


def raise_plain():
    raise ValueError(FORGED)


def raise_from():
    try:
        raise_plain()
    except ValueError as error:
        raise KeyError(FORGED) from error


def raise_in_context():
    try:
        raise_plain()
    except ValueError:
        raise OSError(5, FORGED)  # noqa: B904 - the context is what is wanted


def raise_with_note():
    error = ValueError("bad")
    error.add_note(FORGED)
    raise error


def raise_group():
    raise ExceptionGroup(FORGED, [ValueError(FORGED), KeyError("k")])


def raise_syntax_error():
    compile(f"x = {FORGED!r} y", FORGED, "exec")


@pytest.mark.parametrize(
    "raise_error",
    [raise_plain, raise_from, raise_in_context, raise_with_note, raise_group, raise_syntax_error],
)
def test_an_exception_that_quotes_a_peer_forges_no_line(raise_error):
    text = logged_failure(raise_error)
    assert "a peer: Handler raised" in text
    assert "Traceback (most recent call last)" in text
    assert raise_error.__name__ in text  # the frames are shown
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.lstrip(" |").startswith("1999-")]
    assert r"\n1999-01-01T00:00:00 [-] forged\x1b[1A" in text.replace("\\\\", "\\")


def test_failure_keeps_its_traceback_in_the_log():
    events = []
    try:
        raise_plain()
    except ValueError:
        failure(Logger(observer=events.append), "raised")
    [event] = events
    assert event["log_failure"].check(ValueError)
    assert event["log_failure"].value is not None
    assert event["log_level"].name == "critical"


def test_event_kind_is_logged_once_per_interval_with_the_number_suppressed():
    now = 0.0
    throttle = Throttle(1.0, lambda: now)
    assert [throttle.suppressed("a") for _ in range(4)] == [0, None, None, None]
    assert throttle.suppressed("b") == 0
    now = 1.0
    assert [throttle.suppressed("a") for _ in range(2)] == [3, None]
    now = 2.5
    assert throttle.suppressed("a") == 1
    assert throttle.suppressed("b") == 0


def test_event_kinds_from_a_peer_take_bounded_memory():
    throttle = Throttle(1.0, lambda: 0.0)
    for number in range(5000):
        throttle.suppressed(number)
    assert len(throttle._logged) <= 1024
    assert sys.getsizeof(throttle._logged) < 100_000


def test_exception_of_a_handler_that_quotes_the_peer_forges_no_line():
    class Handler(AsyncChat):
        terminator = b"\r\n"

        def message_received(self, message):
            raise ValueError(f"no such command: {message.decode()}")

    text = io.StringIO()
    observer = FileLogObserver(text, formatEventAsClassicLogText)
    chat = Handler()
    chat.makeConnection(StringTransport())
    globalLogPublisher.addObserver(observer)
    try:
        chat.dataReceived(b"x\n1999-01-01T00:00:00 [-] forged\x1b[1A\r\n")
    finally:
        globalLogPublisher.removeObserver(observer)
    assert (
        r"ValueError: no such command: x\n1999-01-01T00:00:00 [-] forged\x1b[1A" in text.getvalue()
    )
    assert not [line for line in text.getvalue().splitlines() if line.startswith("1999-")]
