"""
The SMTP relay, in both styles: with smtplib and swaks in front, and a next hop that can be told what
to answer behind it.
"""

import contextlib
import itertools
import json
import random
import re
import shutil
import signal
import smtplib
import socket
import socketserver
import ssl
import struct
import subprocess
import threading

import pytest
import trustme

from helpers.peers import connect

SECONDS = 30
TEXT = b"From: me@example.org\r\nSubject: hello\r\n\r\nHello!\r\n"


class NextHop(socketserver.ThreadingTCPServer):
    """An SMTP server in threads. `answer` may be set: it is asked what to say to each command."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, address=("127.0.0.1", 0)):
        super().__init__(address, Hop)
        self.offers = ["8BITMIME"]
        self.answer = lambda _command, _sender: None
        self.commands = []
        self.mails = []
        self.changed = threading.Condition()

    def wait_for(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, SECONDS), (self.commands[-10:], self.mails)

    def mail(self, number):
        """Return a mail, without the Received header, once it is there."""
        self.wait_for(lambda: len(self.mails) > number)
        sender, recipients, text = self.mails[number]
        received = re.match(rb"Received: .*\r\n(?:\t.*\r\n)*", text)
        return sender, recipients, text[received.end() :] if received else text


class Hop(socketserver.StreamRequestHandler):
    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")

    def handle(self):
        with contextlib.suppress(ConnectionError):
            self.talk()

    def talk(self):
        server = self.server
        sender, recipients = None, []
        self.say(server.answer("", sender) or "220 hop")
        while (line := self.rfile.readline()).endswith(b"\r\n"):
            command = line.decode().rstrip("\r\n")
            with server.changed:
                server.commands.append(command)
                server.changed.notify_all()
            if answer := server.answer(command, sender):
                self.say(answer)
            elif command.startswith("EHLO"):
                for offer in server.offers:
                    self.say(f"250-{offer}")
                self.say("250 hop")
            elif command.startswith("MAIL"):
                sender, recipients = re.match(r"MAIL FROM:<(.*?)>", command)[1], []
                self.say("250 ok")
            elif command.startswith("RCPT"):
                recipients.append(re.match(r"RCPT TO:<(.*)>", command)[1])
                self.say("250 ok")
            elif command == "DATA":
                self.say("354 go")
                text = b""
                while (line := self.rfile.readline()) != b".\r\n":
                    if not line.endswith(b"\n"):
                        return  # it was cut off
                    assert line.endswith(b"\r\n") and line.count(b"\r") == 1
                    text += line.removeprefix(b".")
                if answer := server.answer(".", sender):
                    self.say(answer)
                    continue
                with server.changed:
                    server.mails.append((sender, recipients, text))
                    server.changed.notify_all()
                self.say("250 ok")
            else:
                self.say("221 bye")
                return


@pytest.fixture
def next_hop():
    with serving(NextHop()) as hop:
        yield hop


@contextlib.contextmanager
def serving(hop):
    thread = threading.Thread(target=hop.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hop
    finally:
        hop.shutdown()
        hop.server_close()
        thread.join()


@pytest.fixture
def relay(example, tmp_path, next_hop):
    """Start a half of the example, which ends in order behind the ``with``."""

    @contextlib.contextmanager
    def start_relay(*options, afresh=False):
        hop = f"127.0.0.1:{next_hop.server_address[1]}"
        given = "--spool=spool", f"--next-hop={hop}", "--retry=0.05", *options
        program = example("relay", *given, afresh=afresh)
        try:
            yield program
            if program.process.poll() is None:
                program.stop()
        finally:
            program.end()

    start_relay.spool = tmp_path / "spool"
    return start_relay


def spooled(relay):
    return sorted(relay.spool.glob("*.mail"))


@contextlib.contextmanager
def raw(program):
    """A connection that says exactly what it is told."""
    with connect(program.port) as peer, peer.makefile("rb") as answers:
        assert answers.readline().startswith(b"220 ")
        yield peer, answers


def send(program, *recipients, sender="me@example.org", text=TEXT, options=()):
    with smtplib.SMTP("127.0.0.1", program.port, timeout=SECONDS) as client:
        assert not client.sendmail(sender, recipients or ["you@example.org"], text, options)


# -- receiving


def test_mail_reaches_the_next_hop_as_it_was(relay, next_hop):
    """Lines that begin with dots, long ones and 8-bit ones arrive unchanged."""
    text = TEXT + b".\r\n..\r\n.a\r\n\r\n" + b"x" * 998 + b"\r\n" + "süß\r\n".encode() * 2000
    with relay() as program:
        with smtplib.SMTP("127.0.0.1", program.port, timeout=SECONDS) as client:
            client.ehlo()
            assert {"pipelining", "8bitmime", "size"} <= set(client.esmtp_features)
            recipients = ["you@example.org", "them@example.org"]
            assert not client.sendmail("me@example.org", recipients, text, ["BODY=8BITMIME"])
            assert next_hop.mail(0) == ("me@example.org", recipients, text)
            assert not client.sendmail("me@example.org", ["you@example.org"], TEXT)
        assert next_hop.mail(1) == ("me@example.org", ["you@example.org"], TEXT)
        assert re.match(
            rb"Received: from \S+ \(\[127\.0\.0\.1\]\)\r\n\tby \S+ with ESMTP id \S+;\r\n\t.+\r\n",
            next_hop.mails[0][2],
        )
    assert spooled(relay) == []


@pytest.mark.skipif(shutil.which("swaks") is None, reason="swaks is not installed")
def test_swaks_is_satisfied(relay, next_hop):
    with relay() as program:
        done = subprocess.run(
            f"swaks -s 127.0.0.1:{program.port} --pipeline --from me@a --to you@a --body -".split(),
            input=".dots\n..\n",
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert b"\r\n.dots\r\n..\r\n" in next_hop.mail(0)[2]


def test_pipelined_commands_are_answered_in_order(relay, next_hop):
    """A client may send everything at once, in pieces of any size."""
    one = b"MAIL FROM:<%d@example.org>\r\nRCPT TO:<you@example.org>\r\nDATA\r\n" + TEXT + b".\r\n"
    talk = b"EHLO me\r\n" + b"".join(one % number for number in range(20)) + b"QUIT\r\n"
    with relay() as program:
        for size in (len(talk), 7):
            next_hop.mails.clear()
            with raw(program) as (peer, answers):
                for begin in range(0, len(talk), size):
                    peer.sendall(talk[begin : begin + size])
                said = [line[:4] for line in answers if line[3:4] == b" "]
            assert said == [b"250 "] + [b"250 ", b"250 ", b"354 ", b"250 "] * 20 + [b"221 "]
            next_hop.wait_for(lambda: len(next_hop.mails) == 20)
            senders = {sender for sender, _, _ in next_hop.mails}
            assert senders == {f"{number}@example.org" for number in range(20)}


SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<you@example.org>\r\nDATA\r\nSurprise\r\n"
ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\r\n.\r\r\n",
    b"\r\n.\r\r\n",
]


@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_nothing_is_smuggled_behind_another_end_of_data(relay, next_hop, end):
    """What others take for the end of a mail neither ends it here nor is passed on."""
    with relay() as program, raw(program) as (peer, answers):
        peer.sendall(
            b"EHLO me\r\nMAIL FROM:<me@example.org>\r\nRCPT TO:<you@example.org>\r\nDATA\r\n"
            + TEXT.removesuffix(b"\r\n")
            + end
            + SMUGGLED
            + b".\r\nNOOP\r\n"
        )
        mail = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + TEXT + b".\r\nQUIT\r\n"
        if program.half != "native":
            peer.sendall(mail)
        said = [line[:3] for line in answers if line[3:4] == b" "]
        if program.half == "native":  # which closes the connection
            assert said == b"250 250 250 354 521".split()
            with raw(program) as (again, said):
                again.sendall(b"EHLO me\r\n" + mail)
                assert said.read().endswith(b"221 bye\r\n")
        else:
            assert said == b"250 250 250 354 550 250 250 250 354 250 221".split()
        assert next_hop.mail(0) == ("a@b", ["c@d"], TEXT)
        assert len(next_hop.mails) == 1


def test_commands_end_with_crlf_only(relay):
    with relay() as program:
        for command in (b"NOOP\nNOOP\r\n", b"NOOP\rNOOP\r\n"):
            with raw(program) as (peer, answers):
                peer.sendall(command)
                assert answers.readline()[:3] == (b"521" if program.half == "native" else b"500")
        with raw(program) as (peer, answers):
            peer.sendall(b"NO\xffOP\r\nNOOP\r\n")
            assert [answers.readline()[:3] for _ in range(2)] == [b"500", b"250"]


def test_limits_are_kept_and_the_connection_stays_usable(relay, next_hop):
    """Too large, too long or too many is refused with a reply of its own; the next mail passes."""
    envelope = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
    with relay("--size=5000") as program, raw(program) as (peer, answers):

        def say(commands):
            peer.sendall(commands)
            while (line := answers.readline())[3:4] == b"-":
                pass
            return line[:3]

        assert say(b"EHLO me\r\n") == b"250"
        assert say(b"MAIL FROM:<a@b> SIZE=5001\r\n") == b"552"
        assert say(b"MAIL FROM:<a@b> FOO=bar\r\n") == b"555"
        assert say(b"NOOP " + b"x" * 506 + b"\r\n") == b"500"
        assert say(b"NOOP " + b"x" * 505 + b"\r\n") == b"250"
        assert say(b"RCPT TO:<c@d>\r\n") == b"503"
        assert say(b"MAIL FROM:<a@b> SIZE=5000\r\n") == b"250"
        assert say(b"DATA\r\n") == b"503"
        assert [say(b"RCPT TO:<c@d>\r\n") for _ in range(101)] == [b"250"] * 100 + [b"452"]
        assert say(b"RSET\r\n") == b"250"
        for text, answer in [
            ((b"x" * 98 + b"\r\n") * 50 + b"x\r\n", b"552"),
            (b"x" * 1000 + b"\r\n", b"500"),
            (b"Received: x\r\n" * 51, b"554"),
            ((b"x" * 98 + b"\r\n") * 50, b"250"),
            (b"." + b"x" * 998 + b"\r\n", b"250"),
            (b"\r\n" + b"Received: x\r\n" * 51, b"250"),
        ]:
            peer.sendall(envelope)
            assert [answers.readline()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
            assert say(text + b".\r\n") == answer
        next_hop.wait_for(lambda: len(next_hop.mails) == 3)


def test_mail_that_is_cut_off_is_not_sent(relay, next_hop):
    with relay() as program, raw(program) as (peer, answers):
        peer.sendall(b"HELO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nhal")
        assert [answers.readline()[:3] for _ in range(4)] == [b"250", b"250", b"250", b"354"]
        peer.shutdown(socket.SHUT_WR)
        assert answers.read() == b""
    assert [path.name for path in relay.spool.iterdir()] == ["lock"]
    assert next_hop.commands == []


def test_starttls_protects_what_follows_it(relay, next_hop, tmp_path, request):
    """smtplib verifies the certificate; what was said in the clear before is forgotten."""
    authority = trustme.CA()
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if "standard library" in request.node.name:
        with (
            pytest.raises(pytest.fail.Exception, match="python -m txasynchat run"),
            relay(f"--certificate={pem}"),
        ):
            pass
        return
    with relay(f"--certificate={pem}") as program:
        with smtplib.SMTP("127.0.0.1", program.port, timeout=SECONDS) as client:
            client.starttls(context=context)
            client.ehlo()
            assert not client.has_extn("starttls")
            assert not client.sendmail("me@example.org", ["you@example.org"], TEXT)
        assert next_hop.mail(0)[2] == TEXT
        assert b" with ESMTPS id " in next_hop.mails[0][2]
        with raw(program) as (peer, answers):
            peer.sendall(b"EHLO me\r\nMAIL FROM:<evil@b>\r\nSTARTTLS\r\n")
            while answers.readline()[:3] != b"220":
                pass
            with context.wrap_socket(peer, server_hostname="127.0.0.1") as tls:
                tls.sendall(b"RCPT TO:<you@example.org>\r\n")
                assert tls.recv(100)[:3] == b"503"
        with raw(program) as (peer, answers), contextlib.suppress(ConnectionError):
            peer.sendall(b"EHLO me\r\nSTARTTLS\r\nNOOP\r\nNOOP\r\n")
            codes = [line[:4] for line in answers if line[3:4] == b" "]
            assert codes in ([b"250 "], [b"250 ", b"220 "])


WATCHED = """
import os, stat
fsync, rename, replace = os.fsync, os.rename, os.replace
def note(*what):
    with open("calls", "a") as calls:
        print(*what, file=calls)
def noted_fsync(descriptor):
    fsync(descriptor)
    note("fsync", "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
def noted_rename(old, new):
    rename(old, new)
    note("rename", os.path.splitext(old)[1], os.path.splitext(new)[1])
os.fsync, os.replace, os.rename = noted_fsync, noted_rename, noted_rename
"""


def test_250_means_that_file_and_folder_are_synchronized(relay, next_hop, tmp_path, monkeypatch):
    """A loss of power after the reply loses nothing."""
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    next_hop.answer = lambda _command, _sender: "421 not now"
    with relay("--retry=1000") as program:
        send(program)
        calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["fsync file", "rename .tmp .mail", "fsync folder"]


def test_client_that_leaves_before_the_reply_disturbs_nobody(relay, next_hop):
    """Its mail is there or not, and nothing remains of it."""
    talk = b"HELO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + TEXT + b".\r\n"
    with relay() as program:
        for _ in range(10):
            with raw(program) as (peer, _):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.sendall(talk)
        send(program)
        next_hop.wait_for(
            lambda: any(sender == "me@example.org" for sender, _, _ in next_hop.mails)
        )
    assert "Traceback" not in program.logged()
    assert not list(relay.spool.glob("*.tmp"))


FILES_ARE_SHORT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
"""


def test_mail_for_which_there_is_no_room_is_refused(relay, next_hop, tmp_path, monkeypatch):
    """The client keeps it, and what does find room is taken."""
    (tmp_path / "sitecustomize.py").write_text(FILES_ARE_SHORT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with relay() as program:
        for size in (49_900, 60_000, 200_000):
            with pytest.raises(smtplib.SMTPDataError, match="452"):
                send(program, text=TEXT + b"x" * 98 + b"\r\n" * (size // 2))
        send(program)
        assert next_hop.mail(0)[2] == TEXT
    assert [path.name for path in relay.spool.iterdir()] == ["lock"]


# -- forwarding


def test_mail_waits_until_the_next_hop_takes_it(relay, next_hop):
    """A next hop that is not ready is tried again, with those who have not got the mail."""
    answers = {"": "421 busy", "RCPT TO:<later@example.org>": "450 later"}
    next_hop.answer = lambda command, _sender: answers.get(command)
    with relay() as program:
        send(program, "now@example.org", "later@example.org")
        answers.pop("")
        assert next_hop.mail(0) == ("me@example.org", ["now@example.org"], TEXT)
        next_hop.wait_for(lambda: next_hop.commands.count("RCPT TO:<later@example.org>") > 2)
        assert next_hop.commands.count("RCPT TO:<now@example.org>") == 1
        [path] = spooled(relay)
        assert json.loads(path.read_bytes().split(b"\n")[0])["recipients"] == ["later@example.org"]
        answers.clear()
        assert next_hop.mail(1) == ("me@example.org", ["later@example.org"], TEXT)
    assert spooled(relay) == []


def test_next_hop_that_is_down_or_talks_nonsense_is_tried_again(relay, next_hop):
    hears = iter(["no SMTP at all", "220-" + "x" * 3000, "220-more\r\n" * 200, None])
    next_hop.answer = lambda command, _sender: None if command else next(hears, None)
    with relay() as program:
        send(program)
        assert next_hop.mail(0)[2] == TEXT
    assert next(hears, "all heard") == "all heard"


@pytest.mark.parametrize("refused", ["MAIL", "RCPT", "DATA", "."])
def test_refused_mail_bounces_to_its_sender(relay, next_hop, refused):
    """The bounce says who did not get it and why, and what mail it was."""
    bounces = {"MAIL FROM:<>", "RCPT TO:<me@example.org>"}

    def answer(command, sender):
        if command.startswith(refused) and sender != "" and command not in bounces:
            return "550 not\x1b[31m you"
        return None

    next_hop.answer = answer
    with relay() as program:
        send(program)
        sender, recipients, text = next_hop.mail(0)
        assert (sender, recipients) == ("", ["me@example.org"])
        assert b"\r\n<you@example.org>: 550 not[31m you\r\n" in text
        assert text.endswith(b"From: me@example.org\r\nSubject: hello\r\n")
    assert spooled(relay) == []


def test_only_those_who_were_refused_are_in_the_bounce(relay, next_hop):
    next_hop.answer = lambda command, _: "550 no" if "<no@" in command else None
    with relay() as program:
        send(program, "yes@example.org", "no@example.org")
        next_hop.wait_for(lambda: len(next_hop.mails) == 2)
        assert next_hop.mail(0) == ("me@example.org", ["yes@example.org"], TEXT)
        assert b"no@example.org" in next_hop.mail(1)[2]
        assert b"yes@example.org" not in next_hop.mail(1)[2]
    assert spooled(relay) == []


def test_bounce_that_is_refused_is_dropped(relay, next_hop):
    """Nothing bounces to the null sender, so no two servers bounce to each other for ever."""
    next_hop.answer = lambda command, _: "550 no" if command.startswith("RCPT") else None
    with relay() as program:
        send(program, sender="")
        send(program)
        next_hop.wait_for(lambda: next_hop.commands.count("QUIT") == 3)
    assert next_hop.commands.count("MAIL FROM:<>") == 2
    assert spooled(relay) == []


def test_mail_that_is_too_old_bounces(relay, next_hop):
    next_hop.answer = lambda command, _: "450 greylisted" if "<you@" in command else None
    with relay("--give-up=0.2") as program:
        send(program)
        sender, recipients, text = next_hop.mail(0)
        assert (sender, recipients) == ("", ["me@example.org"])
        assert b"<you@example.org>: given up" in text
        assert b"450 greylisted" in text
    assert spooled(relay) == []


def test_eight_bit_mail_bounces_where_the_next_hop_takes_seven(relay, next_hop):
    next_hop.offers = []
    with relay() as program:
        send(program, text=TEXT + "süß\r\n".encode(), options=["BODY=8BITMIME"])
        next_hop.wait_for(lambda: "QUIT" in next_hop.commands)
        next_hop.offers = ["8bitmime"]
        assert next_hop.mail(0)[:2] == ("", ["me@example.org"])


def test_next_program_forwards_what_is_in_the_folder(relay, next_hop):
    """A restart continues; what was not accepted is cleared away."""
    next_hop.answer = lambda _command, _sender: "421 not now"
    with relay() as program:
        send(program)
        send(program)
        next_hop.wait_for(lambda: next_hop.commands)
    (relay.spool / "1-1.tmp").write_bytes(b"half a mai")
    assert len(spooled(relay)) == 2
    next_hop.answer = lambda _command, _sender: None
    with relay():
        assert next_hop.mail(0)[2] == next_hop.mail(1)[2] == TEXT
    assert [path.name for path in relay.spool.iterdir()] == ["lock"]


def test_folder_belongs_to_one_program(relay):
    with relay(), pytest.raises(pytest.fail.Exception, match="another one uses spool"), relay():
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_program_ends_in_order(relay, next_hop, number):
    """A signal lets clients know, and finishes the mail that is on its way to the next hop."""
    asked, go_on = threading.Event(), threading.Event()

    def answer(command, _sender):
        if command == ".":
            asked.set()
            go_on.wait(SECONDS)

    next_hop.answer = answer
    with relay(afresh=number == signal.SIGINT) as program, raw(program) as (_, answers):
        send(program)
        assert asked.wait(SECONDS)
        program.process.send_signal(number)
        assert answers.readline()[:3] == b"421"
        assert answers.read() == b""
        go_on.set()
        assert program.process.wait(SECONDS) == 0
    assert len(next_hop.mails) == 1
    assert spooled(relay) == []
    assert "Traceback" not in program.logged()


# -- kill -9

KILLS = {"native": 50, "legacy": 20, "standard library": 20}
FILLER = b"".join(b"%064d\r\n" % number for number in range(400))


def numbered(number):
    return TEXT + b"%d\r\n" % number + FILLER[: 66 * (number % 400)]


@pytest.mark.slow
def test_kill_at_any_moment_loses_no_accepted_mail(relay, next_hop):
    """Killed again and again in the middle of its work, it has forwarded all it accepted, whole."""
    chance = random.Random(1)
    numbers = itertools.count()
    accepted = set()
    kills, done = 1, 0
    while done < kills:
        sent = list(itertools.islice(numbers, 20))
        talk = b"EHLO me\r\n" + b"".join(
            b"MAIL FROM:<%d@x>\r\nRCPT TO:<you@x>\r\nDATA\r\n%b.\r\n" % (number, numbered(number))
            for number in sent
        )
        talk = talk[: chance.randrange(len(talk))]
        replies = chance.randrange(talk.count(b"\r\n.\r\n") * 4 + 1)
        with relay() as program, raw(program) as (peer, answers):
            peer.sendall(talk)
            last_lines = (line for line in answers if line[3:4] == b" ")
            said = [line[:3] for line in itertools.islice(last_lines, replies)]
            kills = KILLS[program.half]
            done += 1
            program.process.kill()
            program.process.wait()
            with contextlib.suppress(ConnectionError):
                said += [line[:3] for line in last_lines]
        assert set(said) <= {b"250", b"354"}
        # EHLO, and then MAIL, RCPT, DATA and the dot of each.
        accepted |= {f"{number}@x" for number, _ in zip(sent, said[4::4], strict=False)}
    assert len(accepted) > 3 * kills
    with relay():
        next_hop.wait_for(lambda: accepted <= {sender for sender, _, _ in next_hop.mails})
    for number, (sender, recipients, text) in enumerate(next_hop.mails):
        assert recipients == ["you@x"]
        assert next_hop.mail(number)[2] == numbered(int(sender.partition("@")[0])), text
