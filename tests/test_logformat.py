"""
The log as JSON: every event is one line, and its values are fields of their own types.
"""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import Logger, capturedLogs, formatEvent, globalLogPublisher
from twisted.python import log as older_log
from twisted.python.failure import Failure

from txasynchat.logformat import json_observer
from txasynchat.program import CannotStart
from txasynchat.twistd import Options, makeService

TWISTD = str(Path(sys.executable).parent / "twistd")
LOOPBACK = "tcp:0:interface=127.0.0.1"
SECONDS = 20
FORGED = 'x"\n1999-01-01T00:00:00+0000 [-] forged\r\x1b[1A\u2028{"text": "forged"}'


@pytest.fixture
def written():
    """A logger whose events are written as JSON, and a function that returns the objects."""
    file = io.StringIO()

    def objects():
        text = file.getvalue()
        assert text.isascii()
        return [json.loads(line) for line in text.splitlines()]

    return Logger("place", observer=json_observer(file)), objects


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        (("192.0.2.1", 7), "192.0.2.1:7"),
        (("2001:db8::1", 7, 0, 0), "[2001:db8::1]:7"),
        ("/run/chat.sock", "/run/chat.sock"),
        (None, None),
    ],
)
def test_a_peer_has_one_form_however_it_is_logged(written, peer, shown):
    logger, objects = written
    logger.info("{peer}", peer=peer)
    assert objects()[0]["peer"] == shown


class Unprintable:
    def __str__(self):
        raise ZeroDivisionError


def test_values_of_an_event_are_fields_and_cannot_forge_a_line(written):
    logger, objects = written
    logger.error(
        "{peer}: {error}",
        peer=IPv4Address("TCP", "192.0.2.1", 7),
        error=FORGED,
        kind="idle",
        six=IPv6Address("TCP", "2001:db8::1", 7),
        file=UNIXAddress(b"/run/\xff"),
        nobody=UNIXAddress(None),
        numbers=(1, 2.5, True, None, float("nan"), 1 << 70, 10**5000),
        sent=b"a\n\xff",
        text="not that of the event",
        time="noon",
        traceback="none",
        nested={"a": [{1: {2: 3}}]},
        failure=Failure(ValueError("so")),
        odd=Unprintable(),
    )
    [event] = objects()
    moment = datetime.fromisoformat(event.pop("time"))
    assert abs(datetime.now(UTC) - moment) < timedelta(seconds=SECONDS)
    assert event.pop("text").endswith(FORGED)
    assert event == {
        "level": "error",
        "namespace": "place",
        "peer": "192.0.2.1:7",
        "error": FORGED,
        "kind": "idle",
        "six": "[2001:db8::1]:7",
        "file": "/run/\\xff",
        "nobody": "",
        "numbers": [1, 2.5, True, None, "nan", str(1 << 70), "(int, whose text raised ValueError)"],
        "sent": "a\n\\xff",
        "text_": "not that of the event",
        "time_": "noon",
        "traceback_": "none",
        "nested": {"a": [{"1": "{2: 3}"}]},
        "failure": "so",
        "odd": "(Unprintable, whose text raised ZeroDivisionError)",
    }


def test_half_a_surrogate_pair_is_written_so_that_others_can_read_it(written):
    """File names that are not UTF-8 have them, and strict readers refuse the whole line."""
    logger, objects = written
    try:
        raise ValueError("\udcff")
    except ValueError:
        logger.failure("{a}", a="x\udcff", b={"\ud800": ("\udcff",)}, c=ValueError("\udcff"))
    [event] = objects()
    assert (event["a"], event["b"], event["c"]) == ("x\\udcff", {"\\ud800": ["\\udcff"]}, "\\udcff")
    assert "\udcff" not in event["text"] + event["traceback"]


def test_a_traceback_is_one_field_of_its_event(written):
    logger, objects = written
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.failure("{what} failed", what="all")
    logger.failure("it failed", Failure(UnprintableError()))
    first, second = objects()
    assert (first["text"], first["level"], first["exception"]) == (
        "all failed",
        "critical",
        "ValueError",
    )
    assert first["traceback"].startswith("Traceback (most recent call last):\n")
    assert second["exception"] == "UnprintableError"
    assert "traceback" in second


class UnprintableError(Exception):
    __str__ = Unprintable.__str__


def test_events_of_the_older_log_are_written_without_its_own_fields():
    """Also when an older observer has written its fields into an event before."""
    file = io.StringIO()
    older = []
    older_log.addObserver(older.append)
    globalLogPublisher.addObserver(observer := json_observer(file))
    try:
        older_log.msg("said", system="chat", peer="192.0.2.1")
        Logger("place").info("{what}", what="new", why="because")
    finally:
        globalLogPublisher.removeObserver(observer)
        older_log.removeObserver(older.append)
    first, second = map(json.loads, file.getvalue().splitlines())
    del first["time"], second["time"]
    assert first == {"level": "info", "namespace": "chat", "text": "said", "peer": "192.0.2.1"}
    assert second["what"] == "new"
    assert set(second) <= {"level", "namespace", "text", "what", "why"}
    assert len(older) == 2


HANDLERS = """
from twisted.logger import Logger
from txasynchat import AsyncChat

class Quoting(AsyncChat):
    terminator = b"."
    log = Logger()

    def message_received(self, message):
        self.log.info("{peer} sent {said}", peer=self.addr, said=message.decode())
        raise ValueError(message.decode())
"""


def be_quoted(path):
    """Send a server what it quotes in its log, and wait until it has."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(str(path))
        client.sendall(f"{FORGED}.".encode())
        assert client.recv(100) == b""


@pytest.mark.parametrize(
    "form", ["json", "json to a file", pytest.param("text", marks=pytest.mark.slow)]
)
def test_what_a_peer_sends_forges_no_line_of_a_servers_log(tmp_path, form):
    """With --logfile the file and its rotation are twistd's, whatever the format."""
    (tmp_path / "handlers.py").write_text(HANDLERS)
    to_file = ["--logfile=log"] if "file" in form else []
    twistd = [sys.executable, TWISTD, "-n", *to_file, "asynchat", "--handler", "handlers:Quoting"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(SECONDS)
        manager.bind(str(tmp_path / "notify"))
        program = subprocess.Popen(
            [*twistd, "--listen", "unix:chat.sock", "--log-format", form.split()[0]],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            assert manager.recv(100).startswith(b"READY=1")
            be_quoted(tmp_path / "chat.sock")
            if to_file:
                program.send_signal(signal.SIGUSR1)  # which rotates the file
                # SIGTERM in the middle of that would hang: Twisted's lock is none for signal handlers.
                be_quoted(tmp_path / "chat.sock")
        finally:
            program.terminate()
            limit = threading.Timer(SECONDS, program.kill)
            limit.start()
            said, _ = program.communicate()
            limit.cancel()
            limit.join()
    if to_file:
        assert said == ""
        rotated = (tmp_path / "log.1").read_text()
        assert "forged" in rotated
        said = rotated + (tmp_path / "log").read_text()
    assert "Main loop terminated." in said
    assert not re.search("^1999", said, re.MULTILINE)
    if form == "text":
        assert re.search(r"^\S+ \[handlers.Quoting#info\]", said, re.MULTILINE)
        return
    events = [json.loads(line) for line in said.split("\n")[:-1]]
    quoted, *_ = [event for event in events if "said" in event]
    assert quoted["said"] == FORGED
    assert (quoted["namespace"], "peer" in quoted) == ("handlers.Quoting", True)
    raised, *_ = [event for event in events if event.get("exception") == "ValueError"]
    assert raised["handler"] == "Quoting"
    assert "1999-01-01" in raised["traceback"]


def options(parent, *arguments):
    options = Options()
    options.parent = parent
    options.parseOptions(["--listen", LOOPBACK, *arguments])
    return options


@pytest.mark.parametrize("name", ["text", "json"])
@pytest.mark.parametrize("option", ["logger", "syslog"])
def test_two_options_that_say_how_the_log_is_written_are_refused(name, option):
    parent = {"nodaemon": True, "logfile": None, option: True}
    with pytest.raises(
        CannotStart, match=f"--log-format {name} is for .* twistd's --{option} writes"
    ):
        makeService(options(parent, "--log-format", name))
    makeService(options(parent))


def test_unknown_format_is_refused():
    with pytest.raises(CannotStart, match="--log-format must be text or json, not 'xml'"):
        options({}, "--log-format", "xml")


@pytest.mark.parametrize("ours", ["json", "text"])
def test_format_comes_before_the_one_of_twist_and_says_so(ours):
    theirs = {"json": "text", "text": "json"}[ours]
    parent = {"fileLogObserverFactory": None, "logFormat": theirs}
    with capturedLogs() as events:
        makeService(options(parent, "--log-format", ours))
    [told] = map(formatEvent, events)
    assert told == (
        f"txasynchat: the log is {ours}, by --log-format of asynchat; twist's own was {theirs}"
    )
    file = io.StringIO()
    Logger(observer=parent["fileLogObserverFactory"](file)).info("said")
    assert file.getvalue().startswith("{") is (ours == "json")
    parent["logFormat"] = ours
    with capturedLogs() as events:
        makeService(options(parent, "--log-format", ours))
    assert events == []
