"""
A server as a program: where its log goes, and what a failed start leaves behind.
"""

import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SECONDS = 30

ECHO = """
from txasynchat import AsyncChat, ChatFactory, Program, Server, serve


class Echo(AsyncChat):
    terminator = b"\\n"

    def message_received(self, message):
        self.push(message)
"""

# Serves until the reactor runs, and reports that.
SERVE = """
from twisted.internet import reactor

reactor.callWhenRunning(reactor.stop)
serve(ChatFactory(Echo), "tcp:0:interface=127.0.0.1")
"""

BEGINNINGS = {
    "nobody": "",
    "Twisted's, to standard output": """
import sys
from twisted.logger import globalLogBeginner, textFileLogObserver
globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
""",
    "Twisted's older one": """
import sys
from twisted.python import log
log.startLogging(sys.stdout, setStdout=False)
""",
    "the standard library's, begun": """
import logging, sys
from twisted.logger import STDLibLogObserver, globalLogBeginner
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
globalLogBeginner.beginLoggingTo([STDLibLogObserver()], redirectStandardIO=False)
""",
    "the standard library's, added": """
import logging, sys
from twisted.logger import STDLibLogObserver, globalLogPublisher
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
globalLogPublisher.addObserver(STDLibLogObserver())
""",
    "the standard library's, by the older name": """
import logging, sys
from twisted.python import log
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
log.PythonLoggingObserver().start()
""",
    "a file, added": """
import sys
from twisted.logger import globalLogPublisher, textFileLogObserver
globalLogPublisher.addObserver(textFileLogObserver(sys.stdout))
""",
}


@pytest.fixture
def run(tmp_path, fork_server):
    """Run a program, or one that runs it; return how it ended."""

    def run_program(source, *command):
        (tmp_path / "program.py").write_text(source)
        return fork_server.run([*command, "program.py"], tmp_path, SECONDS)

    return run_program


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_serve_starts_logging_only_if_the_program_has_not(run, beginning):
    """Each line is logged once, where the program wants it, without a warning."""
    done = run(ECHO + BEGINNINGS[beginning] + SERVE)
    assert done.returncode == 0, done.stderr
    log, other = done.stdout, done.stderr
    if beginning == "nobody":
        log, other = other, log
    assert log.count("txasynchat: Echo on 127.0.0.1:") == 1, log
    assert "more than once" not in log
    assert "twice" not in log
    assert other == ""


def test_observer_that_only_counts_does_not_replace_the_log(run):
    """A program that observes events for another purpose still logs to standard error."""
    watch = """
from twisted.logger import globalLogPublisher
globalLogPublisher.addObserver(lambda event: None)
"""
    done = run(ECHO + watch + SERVE)
    assert done.stderr.count("txasynchat: Echo on 127.0.0.1:") == 1


# -- the announcement

ANNOUNCE = """
serve(
    ChatFactory(Echo), "tcp:0:interface=127.0.0.1", "unix:echo.sock", announce=True, stop_timeout=20
)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_announced_server_says_where_it_listens_and_ends_in_order_on_a_signal(tmp_path, number):
    """Who starts a server on any free port reads the port, and may stop it from that line on."""
    (tmp_path / "program.py").write_text(ECHO + ANNOUNCE)
    with subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        limit = threading.Timer(SECONDS, program.kill)
        limit.start()
        try:
            assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+\n", program.stdout.readline())
            program.send_signal(number)
            rest, log = program.stdout.read(), program.stderr.read()
            program.wait()
        finally:
            limit.cancel()
            limit.join()
    assert rest == "listening on echo.sock\n"
    assert program.returncode == 0, log
    assert "Traceback" not in log
    assert "txasynchat: Echo on 127.0.0.1:" in log


# -- one of several services cannot start

FIRST = {
    "Program": 'Program(reactor, ChatFactory(Echo), ["unix:first.sock"])',
    "Server": 'Server(reactor, ChatFactory(Echo), ["unix:first.sock"])',
    "Twisted's": 'strports.service("unix:first.sock", ChatFactory(Echo))',
}
SECOND = """
from twisted.application import strports
from twisted.application.service import Application
from twisted.internet import reactor

first = {first}
second = {second}(reactor, ChatFactory(Echo), ["tcp:{port}:interface=127.0.0.1"])
"""
BY_TWISTD = """
application = Application("both")
first.setServiceParent(application)
second.setServiceParent(application)
"""
BY_HAND = """
import os
first.privilegedStartService()
first.startService()
assert os.path.exists("first.sock")
second.startService()
"""


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("second", ["Program", "Server"])
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("how", ["twistd", "by hand"])
def test_first_endpoint_is_cleaned_up_when_the_second_cannot_listen(
    run, tmp_path, how, first, second
):
    """The next start finds no stale socket file, and no lock on it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        source = ECHO + SECOND.format(
            first=FIRST[first], second=second, port=taken.getsockname()[1]
        )
        if how == "twistd":
            twistd = str(Path(sys.executable).with_name("twistd"))
            done = run(source + BY_TWISTD, twistd, "-ny")
        else:
            done = run(source + BY_HAND)
    assert done.returncode == 1
    assert "Address already in use" in (done.stderr or done.stdout)
    if second == "Program":
        assert done.stderr.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir() if "first.sock" in each.name] == []
    assert not (tmp_path / "twistd.pid").exists()


def test_forked_child_does_not_close_the_ports_of_its_parent(run, tmp_path):
    """A server that started at the second attempt, and forked, continues to listen."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        source = SECOND.format(first=FIRST["Server"], second="Server", port=taken.getsockname()[1])
        done = run(
            ECHO
            + source
            + """
import os, sys
first.startService()
try:
    second.startService()
except Exception as error:
    print(error)
child = os.fork()
if not child:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(os.path.exists("first.sock"), flush=True)
""",
        )
    assert "Address already in use" in done.stdout
    assert done.stdout.endswith("True\n"), done.stderr
    assert not (tmp_path / "first.sock").exists()
