"""
An SMTP relay: it keeps the mail that it accepts on disk, and forwards it until the next hop has it.

    python relay.py --port 8025 --spool spool --next-hop 127.0.0.1:2525
    swaks --server 127.0.0.1:8025 --from me@example.org --to you@example.org

"250" means that the file and its folder are synchronized with the disk. That takes place in a thread,
and other connections go on meanwhile. Whatever ends the program, the next one forwards what is in the
folder: the next hop may get a mail twice, but none is lost.

``--certificate FILE``, with the key in the same file, offers STARTTLS. ``--listen`` takes any endpoint.
Whoever can connect may send to anybody: keep it to yourself. ``relay_legacy.py`` is the same for
asyncore and asynchat, and hurries nobody.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any, BinaryIO

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from typing_extensions import override

from txasynchat import (
    AsyncChat,
    ChatError,
    ChatFactory,
    Credentials,
    Limits,
    LineEnds,
    MessageTooLong,
    Overflow,
    ServerOptions,
    TLSInfo,
    serve,
)

COMMAND, TEXT_LINE = 510, 999  # bytes before CRLF (RFC 5321, 4.5.3.1), a doubled dot included
COMMAND_PAUSE, TEXT_PAUSE = 300, 180  # seconds between two of them (4.5.3.2)
RECIPIENTS = 100
HOPS = 50  # a mail that has more Received lines goes round in circles
AT_ONCE = 10  # connections to the next hop
ATTEMPT = 600.0  # seconds for one of them
LONGEST_PAUSE = 3600.0  # seconds between two attempts
STOP = 15.0  # seconds that attempts have when the program ends

NAME = socket.gethostname()
PATH = re.compile(r"(\w+): ?<([!-;=?-~]*)>((?: [!-~]+)*) *")
log = Logger()


# -- mail on disk


@dataclass
class Mail:
    name: str
    sender: str  # empty for a bounce, which is never bounced itself
    recipients: list[str]
    eightbit: bool
    since: float


class Spool:
    """A folder with a file for each mail: a line of JSON, the envelope, and then the message."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.numbers = itertools.count()
        self.lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"relay: another one uses {folder}") from None
        for unfinished in folder.glob("*.tmp"):  # nobody was told that these were accepted
            unfinished.unlink()

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.mail"))

    def new_mail(self, sender: str, recipients: list[str], *, eightbit: bool) -> Mail:
        now = time.time()
        return Mail(f"{now:.6f}-{next(self.numbers)}", sender, recipients, eightbit, now)

    def begin(self, mail: Mail) -> BinaryIO:
        file = (self.folder / f"{mail.name}.tmp").open("wb")
        file.write(json.dumps(asdict(mail)).encode() + b"\n")
        return file

    def commit(self, file: BinaryIO) -> None:
        """After this the mail is there, whatever happens; before it, none of it is."""
        with file:
            file.flush()
            os.fsync(file.fileno())
        path = Path(file.name)
        path.replace(path.with_suffix(".mail"))
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self, file: BinaryIO) -> None:
        Path(file.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the disk is full, and something was left to write
            file.close()

    def read(self, name: str) -> tuple[Mail, BinaryIO]:
        file = (self.folder / f"{name}.mail").open("rb")
        return Mail(**json.loads(file.readline())), file

    def remove(self, mail: Mail) -> None:
        (self.folder / f"{mail.name}.mail").unlink()


# -- receiving


class Receiver(AsyncChat):
    terminator = b"\r\n"
    refuse_other_protocols = True
    max_message_length = COMMAND
    limits = Limits(idle=COMMAND_PAUSE, message=COMMAND_PAUSE)
    overflow = Overflow.SKIP  # behind a line that is too long the mail goes on
    #: Others take a bare LF or CR for the end of a line, and what follows a dot there for commands:
    #: passed on, one mail could smuggle in another.
    line_ends = LineEnds.REJECT

    def __init__(self, relay: "Relay", size: int, options: ServerOptions | None) -> None:
        self.relay = relay
        self.size = size
        self.options = options
        self.hello = self.protocol = ""
        self.file: BinaryIO | None = None  # the mail that is being received
        self.reset()

    def reset(self) -> None:
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.eightbit = False

    def reply(self, text: str) -> None:
        self.push_line(text.encode())

    @override
    def handle_connect(self) -> None:
        self.reply(f"220 {NAME} ESMTP")

    @override
    def handle_secure(self, info: TLSInfo) -> None:
        self.hello = ""  # anybody may have said what came in the clear
        self.reset()

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        if self.file is not None:
            self.relay.spool.discard(self.file)

    @override
    def handle_shutdown(self) -> None:
        if self.pending:  # a mail is on its way to the disk
            self.close_when_idle()
        else:
            self.reply("421 going down")
            self.close()

    @override
    def message_too_long(self, error: MessageTooLong) -> None:
        if self.file is not None:
            self.refuse("500 line too long")
        else:
            self.reply("500 line too long")

    @override
    def handle_timeout(self, kind: str) -> None:
        self.reply("421 too slow")

    @override
    def handle_error(self) -> None:
        self.reply("521 that is no line" if self.close_reason else "421 something is wrong here")

    @override
    async def message_received(self, message: bytes) -> None:
        if self.file is None:
            self.command(message)
        elif message == b".":
            await self.end_of_mail(self.file)
        else:
            self.text_line(self.file, message)

    # -- commands

    def command(self, line: bytes) -> None:
        verb, _, argument = line.decode("ascii", "replace").partition(" ")
        do = getattr(self, f"do_{verb.lower()}", None)
        if do is None or not line.isascii():
            self.reply("500 no such command")
        else:
            do(argument)

    def do_helo(self, name: str) -> None:
        self.greet(name, "SMTP")

    def do_ehlo(self, name: str) -> None:
        offers = ["PIPELINING", "8BITMIME", f"SIZE {self.size}"]
        if self.options is not None and self.tls is None:
            offers.append("STARTTLS")
        self.greet(name, "ESMTP" if self.tls is None else "ESMTPS", *offers)

    def greet(self, name: str, protocol: str, *offers: str) -> None:
        if not re.fullmatch(r"[!-~]+", name):
            self.reply("501 who are you?")
            return
        self.hello, self.protocol = name, protocol
        self.reset()
        *lines, last = [NAME, *offers]
        for line in lines:
            self.reply(f"250-{line}")
        self.reply(f"250 {last}")

    def do_starttls(self, argument: str) -> None:
        if argument or self.options is None or self.tls is not None:
            self.reply("503 not here")
        else:
            self.reply("220 go ahead")
            self.start_tls(self.options)  # closes if commands came behind it in the clear

    def do_mail(self, argument: str) -> None:
        found = PATH.fullmatch(argument)
        if not self.hello or self.sender is not None:
            self.reply("503 EHLO first, and one MAIL at a time")
        elif found is None or found[1].upper() != "FROM":
            self.reply("501 MAIL FROM:<address>")
        else:
            for parameter in found[3].upper().split():
                size = re.fullmatch(r"SIZE=(\d{1,20})", parameter)
                if size is not None and int(size[1]) > self.size:
                    self.reply(f"552 at most {self.size} bytes")
                    return
                if size is None and parameter not in {"BODY=7BIT", "BODY=8BITMIME"}:
                    self.reply("555 unknown parameter")
                    return
            self.sender = found[2]
            self.eightbit = "BODY=8BITMIME" in found[3].upper()
            self.reply("250 ok")

    def do_rcpt(self, argument: str) -> None:
        found = PATH.fullmatch(argument)
        if self.sender is None:
            self.reply("503 MAIL first")
        elif found is None or found[1].upper() != "TO" or not found[2]:
            self.reply("501 RCPT TO:<address>")
        elif found[3]:
            self.reply("555 unknown parameter")
        elif len(self.recipients) == RECIPIENTS:
            self.reply(f"452 at most {RECIPIENTS} recipients")
        else:
            self.recipients.append(found[2])
            self.reply("250 ok")

    def do_data(self, argument: str) -> None:
        if argument or self.sender is None or not self.recipients:
            self.reply("503 MAIL and RCPT first")
            return
        mail = self.relay.spool.new_mail(self.sender, self.recipients, eightbit=self.eightbit)
        self.file = self.relay.spool.begin(mail)
        peer = self.addr[0] if isinstance(self.addr, tuple) else "local"
        self.file.write(
            f"Received: from {self.hello} ([{peer}])\r\n"
            f"\tby {NAME} with {self.protocol} id {mail.name};\r\n"
            f"\t{formatdate()}\r\n".encode()
        )
        self.refusal = ""
        self.length = self.hops = 0
        self.in_header = True
        self.set_limits(max_message_length=TEXT_LINE, idle=TEXT_PAUSE, message=TEXT_PAUSE)
        self.reply("354 end with a dot on a line of its own")

    def do_rset(self, _argument: str) -> None:
        self.reset()
        self.reply("250 ok")

    def do_noop(self, _argument: str) -> None:
        self.reply("250 ok")

    def do_vrfy(self, _argument: str) -> None:
        self.reply("252 send it, and see")

    def do_quit(self, _argument: str) -> None:
        self.reply("221 bye")
        self.close()

    # -- the mail itself

    def text_line(self, file: BinaryIO, line: bytes) -> None:
        line = line.removeprefix(b".")
        self.length += len(line) + 2
        if self.length > self.size:
            self.refuse(f"552 at most {self.size} bytes")
        self.in_header = self.in_header and line != b""
        self.hops += self.in_header and line[:9].lower() == b"received:"
        if self.hops > HOPS:
            self.refuse("554 too many hops")
        if not self.refusal:
            try:
                file.write(line + b"\r\n")
            except OSError:
                log.failure("cannot store a mail")
                self.refuse("452 cannot store it")

    def refuse(self, why: str) -> None:
        """Refuse the mail when it has ended, because the client does not listen before."""
        self.refusal = self.refusal or why

    async def end_of_mail(self, file: BinaryIO) -> None:
        self.file = None
        self.set_limits()
        self.reset()
        if self.refusal:
            self.relay.spool.discard(file)
            self.reply(self.refusal)
            return
        try:
            await deferToThread(self.relay.store, file)  # nothing is delivered meanwhile
            self.reply("250 ok")
        except OSError:
            log.failure("cannot store a mail")
            self.reply("452 cannot store it")


# -- forwarding


class Sender(AsyncChat):
    """One mail to the next hop. What becomes of its recipients is in `accepted` and `refused`."""

    terminator = b"\r\n"
    max_message_length = 2000

    def __init__(self, mail: Mail, file: BinaryIO) -> None:
        self.mail = mail
        self.file = file
        self.accepted: set[str] = set()
        self.refused: dict[str, str] = {}
        self.lines: list[str] = []  # of the reply that is coming in
        self.offers: set[str] = set()
        self.said = "no answer"
        self.ended: Deferred[None] = Deferred(lambda _: self.abort())
        self.dialogue = self.talk()
        next(self.dialogue)

    def talk(self) -> Generator[bytes, int, None]:
        """Yield each command, and get the code of its reply. What is left open is tried again."""
        if (yield b"") >= 400 or (yield f"EHLO {NAME}\r\n".encode()) >= 400:
            return  # its trouble is with us, not with this mail
        body = ""
        if self.mail.eightbit:
            body = " BODY=8BITMIME"
            if "8BITMIME" not in self.offers:
                self.refuse(self.mail.recipients, "554 the next hop takes 7 bits only")
                return
        code = yield f"MAIL FROM:<{self.mail.sender}>{body}\r\n".encode()
        if code >= 500:
            self.refuse(self.mail.recipients, self.said)
        if code >= 400:
            return
        taken = []
        for recipient in self.mail.recipients:
            code = yield f"RCPT TO:<{recipient}>\r\n".encode()
            if code < 400:
                taken.append(recipient)
            elif code >= 500:
                self.refuse([recipient], self.said)
        if taken:
            code = yield b"DATA\r\n"
            if code < 400:
                self.push_with_producer(self.text())
                code = yield b".\r\n"
            if code < 400:
                self.accepted.update(taken)
            elif code >= 500:
                self.refuse(taken, self.said)

    def refuse(self, recipients: list[str], why: str) -> None:
        self.refused |= dict.fromkeys(recipients, why)

    def text(self) -> Iterator[bytes]:
        for line in self.file:
            yield b"." + line if line.startswith(b".") else line

    @override
    def message_received(self, message: bytes) -> None:
        line = message.decode("ascii", "replace")
        self.lines.append(line[4:])
        if not re.match(r"[2-5]\d\d(?!\d)", line, re.ASCII) or len(self.lines) > 100:
            self.abort()  # that is not SMTP
        elif line[3:4] != "-":
            self.said = "".join(character for character in line if character.isprintable())
            self.offers = {offer.upper() for offer in self.lines}
            self.lines = []
            try:
                self.push(self.dialogue.send(int(line[:3])))
            except StopIteration:
                self.push(b"QUIT\r\n")
                self.close()

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        self.ended.callback(None)


class Relay:
    def __init__(
        self, reactor: Any, spool: Spool, next_hop: str, retry: float, give_up: float
    ) -> None:
        host, _, port = next_hop.rpartition(":")
        self.reactor = reactor
        self.next_hop = HostnameEndpoint(reactor, host.strip("[]"), int(port))
        self.spool = spool
        self.retry = retry
        self.give_up = give_up
        self.slots = DeferredSemaphore(AT_ONCE)
        self.stopping = False

    def start(self) -> None:
        for name in self.spool.names():
            self.enqueue(name)

    def stop(self) -> Deferred[Any]:
        """Begin nothing new, and give what is being sent some time."""
        self.stopping = True
        idle: Deferred[Any] = DeferredList([self.slots.acquire() for _ in range(AT_ONCE)])
        return idle.addTimeout(STOP, self.reactor).addErrback(lambda _: None)

    def store(self, file: BinaryIO) -> None:
        """Called in a thread, because disks are slow. It goes on if the client is lost meanwhile."""
        try:
            self.spool.commit(file)
        except OSError:
            self.spool.discard(file)
            raise
        self.reactor.callFromThread(self.enqueue, Path(file.name).stem)

    def enqueue(self, name: str, attempt: int = 0) -> None:
        self.slots.run(self.forward, name, attempt)

    async def forward(self, name: str, attempt: int) -> None:
        if self.stopping:
            return
        try:
            left = await self.attempt(*self.spool.read(name))
        except Exception:  # noqa: BLE001 - a full disk, say; the mail is still there
            log.failure("cannot forward {name}", name=name)
            left = True
        if left:
            pause = min(self.retry * 2 ** min(attempt, 20), LONGEST_PAUSE)
            self.reactor.callLater(pause, self.enqueue, name, attempt + 1)

    async def attempt(self, mail: Mail, file: BinaryIO) -> bool:
        """Return whether there are recipients who still have to get the mail."""
        with file:
            sender = Sender(mail, file)
            try:
                await connectProtocol(self.next_hop, sender)  # type: ignore[no-untyped-call]
                await sender.ended.addTimeout(ATTEMPT, self.reactor)
            except (ConnectError, DNSLookupError, defer.TimeoutError) as error:
                sender.said = str(error)
            return await deferToThread(self.settle, mail, file, sender)

    def settle(self, mail: Mail, file: BinaryIO, sender: Sender) -> bool:
        """Called in a thread: keep on disk what became of the mail."""
        refused = dict(sender.refused)
        left = [to for to in mail.recipients if to not in sender.accepted and to not in refused]
        if left and time.time() > mail.since + self.give_up:
            refused |= dict.fromkeys(left, f"given up; the last problem was: {sender.said}")
            left = []
        if refused and mail.sender:
            self.bounce(mail, file, refused)  # first: a crash may send it twice, but not lose it
        if not left:
            self.spool.remove(mail)
        elif left != mail.recipients:
            rest = self.spool.begin(replace(mail, recipients=left))
            self.rewind(file)
            shutil.copyfileobj(file, rest)
            self.spool.commit(rest)
        log.info("{mail}: {said}; refused: {refused}", mail=mail, said=sender.said, refused=refused)
        return bool(left)

    def bounce(self, mail: Mail, file: BinaryIO, refused: dict[str, str]) -> None:
        bounce = self.spool.new_mail("", [mail.sender], eightbit=mail.eightbit)
        out = self.spool.begin(bounce)
        lines = [
            f"From: Mail delivery <postmaster@{NAME}>",
            f"To: <{mail.sender}>",
            "Subject: Your mail could not be delivered",
            f"Date: {formatdate()}",
            f"Message-ID: <{bounce.name}@{NAME}>",
            "Auto-Submitted: auto-replied",
            "",
            "Your mail did not reach:",
            "",
            *(f"<{to}>: {why[:500]}" for to, why in refused.items()),
            "",
            "It began with:",
            "",
        ]
        out.write("".join(f"{line}\r\n" for line in lines).encode())
        self.rewind(file)
        out.writelines(itertools.takewhile(lambda line: line != b"\r\n", file))
        self.store(out)

    def rewind(self, file: BinaryIO) -> None:
        file.seek(0)
        file.readline()  # the envelope


def main() -> None:
    from twisted.internet import reactor  # noqa: PLC0415 - this starts a program

    parser = argparse.ArgumentParser(description="Relay mail to the next hop.")
    parser.add_argument("--port", type=int, default=8025, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    parser.add_argument("--spool", metavar="DIR", type=Path, required=True)
    parser.add_argument("--next-hop", metavar="HOST:PORT", required=True)
    parser.add_argument("--certificate", metavar="FILE", help="for STARTTLS; with its key")
    parser.add_argument("--size", type=int, default=10_000_000, help="bytes of a mail, at most")
    parser.add_argument("--retry", type=float, default=60, help="seconds; twice as many each time")
    parser.add_argument("--give-up", type=float, default=432_000, help="seconds until it bounces")
    options = parser.parse_args()
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    tls = ServerOptions(Credentials(options.certificate)) if options.certificate else None
    relay = Relay(reactor, Spool(options.spool), options.next_hop, options.retry, options.give_up)
    relay.reactor.callWhenRunning(relay.start)
    relay.reactor.addSystemEventTrigger("before", "shutdown", relay.stop)
    serve(ChatFactory(Receiver, relay, options.size, tls), endpoint, announce=True)


if __name__ == "__main__":
    main()
