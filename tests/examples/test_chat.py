"""
``examples/chat.py`` and ``chat_legacy.py``, and their client ``chat_client.py`` in a pseudo-terminal.
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import time

import pytest
import trustme

from helpers.peers import SECONDS, connect, curl, read_all


class Person:
    """Somebody in the chat, on a connection of their own."""

    def __init__(self, peer):
        self.peer = peer
        self.heard = peer.makefile("rb")

    def says(self, *lines, end="\n"):
        self.peer.sendall("".join(line + end for line in lines).encode())

    def hears(self, *lines, end="\n"):
        """These are the next lines."""
        for line in lines:
            assert self.heard.readline().decode() == line + end

    def close(self):
        self.heard.close()
        self.peer.close()


@pytest.fixture
def enter():
    """Enter the chat under a name: ``enter(program, "Ann")``."""
    with contextlib.ExitStack() as people:

        def enter_as(program, name, *there, wrap=lambda peer: peer):
            person = Person(wrap(connect(program.port)))
            people.callback(person.close)
            welcome = person.heard.readline().decode()
            guest = re.match(r"\* you are (guest\d+); /nick NAME", welcome)[1]
            person.hears(f"* in lobby: {', '.join([*there, guest])}")
            person.says(f"/nick {name}")
            person.hears(f"* you are {name}")
            return person

        yield enter_as


def test_everybody_in_a_room_hears_what_is_said_there(example, enter):
    """And nobody elsewhere does; coming and going is told."""
    program = example("chat")
    ann = enter(program, "Ann")
    bob = enter(program, "Bob", "Ann")
    eve = enter(program, "Eve", "Ann", "Bob")
    ann.hears("* guest1 joined lobby", "* guest1 is Bob now")
    ann.hears("* guest1 joined lobby", "* guest1 is Eve now")
    bob.hears("* guest1 joined lobby", "* guest1 is Eve now")
    eve.says("/join garden")
    eve.hears("* in garden: Eve")
    ann.hears("* Eve left lobby")
    bob.hears("* Eve left lobby")
    ann.says("hello", "how are you?", end="\r\n")
    bob.hears("<Ann> hello", "<Ann> how are you?")
    bob.says("/join garden")
    bob.hears("* in garden: Bob, Eve")
    eve.hears("* Bob joined garden")
    ann.hears("* Bob left lobby", end="\r\n")
    bob.says("pssst")
    eve.hears("<Bob> pssst")
    eve.says("/msg ann are you there?", "/msg Joe hello", "/quit", "never said")
    ann.hears("*Eve* are you there?", end="\r\n")
    eve.hears("* nobody is called Joe", "* bye")
    assert read_all(eve.peer) == b""
    bob.hears("* Eve left")
    eve.close()
    assert program.stop() == ""


def test_names_are_unique_and_plain(example, enter):
    program = example("chat")
    ann, bob = enter(program, "Ann"), enter(program, "Bob", "Ann")
    bob.says(
        "/nick ANN", "/nick two words", "/nick ", "/nick \x1b[2J", "/nick BOB", "/nick Zoë", "/what"
    )
    bob.hears("* ANN is taken")
    bob.hears(*["* a name has 1 to 20 letters and digits"] * 2)
    bob.heard.readline()
    bob.hears("* you are BOB", "* you are Zoë", "* /nick NAME, /join ROOM, /msg NAME TEXT, /quit")
    ann.hears(
        "* guest1 joined lobby", "* guest1 is Bob now", "* Bob is BOB now", "* BOB is Zoë now"
    )
    bob.says("\x1b[2Jre\x07d\u202e", "x" * 1001, "y" * 1000)
    bob.hears("* nobody saw that: a line has at most 1000 bytes")
    ann.hears("<Zoë> [2Jred", f"<Zoë> {'y' * 1000}")
    program.stop()


def test_member_who_never_reads_is_cut_off_and_others_lose_nothing(example, enter):
    """The others are told why."""
    program = example("chat")
    ann, bob = enter(program, "Ann"), enter(program, "Bob", "Ann")
    enter(program, "Sloth", "Ann", "Bob")
    ann.hears("* guest1 joined lobby", "* guest1 is Bob now")
    for person in (ann, bob):
        person.hears("* guest1 joined lobby", "* guest1 is Sloth now")
    notice = "* Sloth left, who read too slowly"
    noticed, number = False, 0
    while not noticed:
        assert number < 50_000
        batch = [f"{line} {'x' * 900}" for line in range(number, number + 100)]
        number += 100
        ann.says(*batch)
        for line in batch:
            heard = bob.heard.readline().decode()
            if heard == notice + "\n":
                noticed = True
                heard = bob.heard.readline().decode()
            assert heard == f"<Ann> {line}\n"
    ann.hears(notice)
    program.stop()


def test_many_who_never_read_are_cut_off_at_once(example, enter):
    """However many they are, it is no problem for anybody else."""
    program = example("chat")
    ann, bob = enter(program, "Ann"), enter(program, "Bob", "Ann")
    ann.hears("* guest1 joined lobby", "* guest1 is Bob now")
    with contextlib.ExitStack() as sockets:
        for _ in range(60):
            peer = sockets.enter_context(socket.socket())
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            peer.connect(("127.0.0.1", program.port))
        gone = 0
        number = 0
        while gone < 60:
            ann.says(*[f"{line} {'x' * 900}" for line in range(number, number + 50)])
            line = number
            number += 50
            while line < number:
                heard = bob.heard.readline().decode()
                if heard.startswith("<Ann>"):
                    assert heard == f"<Ann> {line} {'x' * 900}\n"
                    line += 1
                elif "read too slowly" in heard:
                    gone += 1
    assert "Traceback" not in program.logged()
    program.stop()


def authority_for(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_members_may_come_over_tls(example, enter, tmp_path, request):
    context = authority_for(tmp_path)

    def wrap(peer):
        return context.wrap_socket(peer, server_hostname="127.0.0.1")

    if "standard library" in request.node.name:
        with pytest.raises(pytest.fail.Exception, match="python -m txasynchat run"):
            example("chat", "--certificate=server.pem")
        return
    program = example("chat", "--certificate=server.pem")
    ann = enter(program, "Ann", wrap=wrap)
    bob = enter(program, "Bob", "Ann", wrap=wrap)
    ann.hears("* guest1 joined lobby", "* guest1 is Bob now")
    bob.says("safe at last")
    ann.hears("<Bob> safe at last")
    program.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_everybody_is_told_that_the_server_closes(example, enter, number):
    program = example("chat", afresh=number == signal.SIGINT)
    ann, bob = enter(program, "Ann"), enter(program, "Bob", "Ann")
    ann.hears("* guest1 joined lobby", "* guest1 is Bob now")
    program.stop(number)
    for person in (ann, bob):
        assert b"* the server closes\n" in person.heard.readlines()
    assert "Traceback" not in program.logged()


def test_curl_takes_part(example, enter):
    program = example("chat")
    ann = enter(program, "Ann")
    with curl(program.port, b"hello\n") as output:
        ann.hears("* guest1 joined lobby", "<guest1> hello")
        assert output.readline().startswith(b"* you are guest1;")
        program.stop()


# -- the client


class Screen:
    """As much of a terminal as the client needs: it shows what was written to it, line by line."""

    def __init__(self):
        self.lines = [""]
        self.column = 0
        self.unread = ""

    def show(self, text):
        text = self.unread + text
        for token in re.finditer(r"\x1b\[(\d*)([KC])|[\r\n]|[^\x1b\r\n]+|\x1b.*", text):
            line = self.lines[-1]
            if token[2] == "K":
                self.lines[-1] = line[: self.column]
            elif token[2] == "C":
                self.column += int(token[1])
            elif token[0] == "\r":
                self.column = 0
            elif token[0] == "\n":
                self.lines.append("")
            elif token[0].startswith("\x1b"):
                self.unread = token[0]
                return
            else:
                self.lines[-1] = (
                    line[: self.column] + token[0] + line[self.column + len(token[0]) :]
                )
                self.column += len(token[0])
        self.unread = ""


class Client:
    """The client, in a pseudo-terminal of 40 columns."""

    def __init__(self, root, *arguments):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 40, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.screen = Screen()
        self.process = subprocess.Popen(
            [sys.executable, str(root / "examples/chat_client.py"), *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
            start_new_session=True,
        )

    def types(self, text):
        os.write(self.master, text.encode())

    def shows(self, *lines, cursor=None):
        """Wait until these are its last lines, and the cursor stands in that column."""
        deadline = time.monotonic() + SECONDS
        screen = self.screen
        while screen.lines[-len(lines) :] != list(lines) or cursor not in {None, screen.column}:
            remaining = max(deadline - time.monotonic(), 0)
            if not select.select([self.master], [], [], remaining)[0]:
                pytest.fail(f"{screen.lines}, the cursor in column {screen.column}")
            screen.show(os.read(self.master, 65_536).decode())

    def ends(self):
        """Wait for its end; the terminal must be as it was. Return its exit status."""
        status = self.process.wait(SECONDS)
        assert termios.tcgetattr(self.slave) == self.before
        assert os.get_blocking(self.slave)
        return status

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


@pytest.fixture
def client(root):
    with contextlib.ExitStack() as clients:

        def start(*arguments):
            client = Client(root, *arguments)
            clients.callback(client.close)
            return client

        yield start


def test_line_is_edited_while_messages_arrive(example, enter, client):
    """What is typed stays where it is, below what others say, and the cursor in its place."""
    program = example("chat")
    ann = enter(program, "Ann")
    me = client(f"tcp:127.0.0.1:{program.port}")
    me.shows("* in lobby: Ann, guest1", "> ")
    ann.hears("* guest1 joined lobby")
    me.types("helo")
    me.shows("> helo", cursor=6)
    ann.says("anybody here?")
    me.shows("<Ann> anybody here?", "> helo", cursor=6)
    me.types("\x1b[D")
    me.shows("> helo", cursor=5)
    ann.says("wait", "I have to go")
    me.shows("<Ann> wait", "<Ann> I have to go", "> helo", cursor=5)
    me.types("l\x1b[H\x1b[3~H\x1b[F, Annn\x7f\r")
    me.shows("> Hello, Ann", "> ", cursor=2)
    ann.hears("<guest1> Hello, Ann")
    me.types("süß 漢字\r")
    ann.hears("<guest1> süß 漢字")
    me.types("\x1b[A\x1b[A!\r")
    ann.hears("<guest1> Hello, Ann!")
    me.types("one two\x17three\x15four\n")
    ann.hears("<guest1> four")
    me.types("\x1b[A\x1b[B\x04\x04")
    ann.hears("* guest1 left")
    assert me.ends() == 0
    program.stop()


def test_line_that_is_wider_than_the_terminal_scrolls(example, enter, client):
    program = example("chat")
    ann = enter(program, "Ann")
    me = client(f"tcp:127.0.0.1:{program.port}")
    ann.hears("* guest1 joined lobby")
    text = "".join(f"{number} " for number in range(40))
    me.types(text)
    me.shows("> " + text[-37:], cursor=39)
    me.types("\x01")
    me.shows("> " + text[:37], cursor=2)
    me.types("\r")
    ann.hears(f"<guest1> {text}")


@pytest.mark.slow
def test_client_leaves_the_terminal_as_it_was(example, enter, client, tmp_path):
    """Whatever ends it: the user, the server, or a signal."""
    program = example("chat")
    address = f"tcp:127.0.0.1:{program.port}"
    for leave in (lambda me: me.types("/quit\r"), lambda me: me.process.send_signal(signal.SIGINT)):
        me = client(address)
        me.shows("* in lobby: guest1", "> ")
        leave(me)
        assert me.ends() == 0
    me = client(address)
    me.shows("* in lobby: guest1", "> ")
    program.stop()
    me.shows("* the server closes", "")
    assert me.ends() == 0
    me = client(address)
    assert me.ends() == 1


def test_client_verifies_the_server(start_half, client, tmp_path):
    authority_for(tmp_path)
    program = start_half("native", "chat", "--certificate=server.pem")
    address = f"secure:tcp:127.0.0.1:{program.port}"
    stranger = client(address)
    assert stranger.ends() == 1
    me = client(f"{address}:ca={tmp_path / 'ca.pem'}")
    me.shows("* in lobby: guest1", "> ")
    me.types("/quit\r")
    me.shows("* bye", "")
    assert me.ends() == 0
