"""
An SMTP relay: it keeps the mail that it accepts on disk, and forwards it until the next hop has it.

    python -m txasynchat run relay_legacy.py --port 8025 --spool spool --next-hop 127.0.0.1:2525
    swaks --server 127.0.0.1:8025 --from me@example.org --to you@example.org

"250" means that the file and its folder are synchronized with the disk. All other connections wait for
that; ``relay.py``, the same for Twisted's reactor, does it in a thread. Whatever ends the program, the
next one forwards what is in the folder: the next hop may get a mail twice, but none is lost.

Up to Python 3.11 ``python relay_legacy.py`` runs it on the standard library alone. asyncore never had
TLS: ``--certificate FILE``, with the key in the same file, offers STARTTLS where txasynchat runs the
program. Whoever can connect may send to anybody, and is never hurried: keep it to yourself.
"""

import argparse
import asynchat
import asyncore
import fcntl
import heapq
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import sys
import time
from email.utils import formatdate

COMMAND, TEXT_LINE = 510, 999  # bytes before CRLF (RFC 5321, 4.5.3.1), a doubled dot included
RECIPIENTS = 100
HOPS = 50  # a mail that has more Received lines goes round in circles
AT_ONCE = 10  # connections to the next hop
ATTEMPT = 600.0  # seconds for one of them
LONGEST_PAUSE = 3600.0  # seconds between two attempts
STOP = 15.0  # seconds that connections have when the program ends

NAME = socket.gethostname()
PATH = re.compile(r"(\w+): ?<([!-;=?-~]*)>((?: [!-~]+)*) *")


# -- mail on disk


class Spool:
    """A folder with a file for each mail: a line of JSON, the envelope, and then the message."""

    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.numbers = itertools.count()
        self.lock = open(os.path.join(folder, "lock"), "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("relay: another one uses %s" % folder)
        for name in os.listdir(folder):
            if name.endswith(".tmp"):  # nobody was told that these were accepted
                os.unlink(os.path.join(folder, name))

    def names(self):
        return sorted(name[:-5] for name in os.listdir(self.folder) if name.endswith(".mail"))

    def path(self, name, kind="mail"):
        return os.path.join(self.folder, "%s.%s" % (name, kind))

    def new_mail(self, sender, recipients, eightbit):
        now = time.time()
        return {
            "name": "%.6f-%d" % (now, next(self.numbers)),
            "sender": sender,  # empty for a bounce, which is never bounced itself
            "recipients": recipients,
            "eightbit": eightbit,
            "since": now,
        }

    def begin(self, mail):
        file = open(self.path(mail["name"], "tmp"), "wb")
        file.write(json.dumps(mail).encode() + b"\n")
        return file

    def commit(self, file):
        """After this the mail is there, whatever happens; before it, none of it is."""
        with file:
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, file.name[:-4] + ".mail")
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self, file):
        os.unlink(file.name)
        try:
            file.close()
        except OSError:
            pass  # the disk is full, and something was left to write

    def read(self, name):
        file = open(self.path(name), "rb")
        return json.loads(file.readline()), file

    def remove(self, mail):
        os.unlink(self.path(mail["name"]))


# -- receiving


class Server(asyncore.dispatcher):
    def __init__(self, address, relay, size, context):
        asyncore.dispatcher.__init__(self)
        self.relay, self.size, self.context = relay, size, context
        self.connections = set()
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)

    def handle_accepted(self, sock, addr):
        self.connections.add(Receiver(sock, addr, self))

    def stop(self):
        self.close()
        for receiver in list(self.connections):
            receiver.reply("421 going down")
            receiver.quit()


class Receiver(asynchat.async_chat):
    def __init__(self, sock, addr, server):
        asynchat.async_chat.__init__(self, sock)
        self.server, self.spool = server, server.relay.spool
        self.peer = addr[0]
        self.hello = self.protocol = ""
        self.secure = self.quitting = False
        self.file = None  # the mail that is being received
        self.line, self.line_length, self.line_limit = [], 0, COMMAND
        self.reset()
        self.set_terminator(b"\r\n")
        self.reply("220 %s ESMTP" % NAME)

    def reset(self):
        self.sender = None
        self.recipients = []
        self.eightbit = False

    def reply(self, text):
        self.push(text.encode() + b"\r\n")

    def quit(self):
        self.quitting = True  # what has arrived is still delivered
        self.close_when_done()

    def close(self):  # called for every end
        self.server.connections.discard(self)
        if self.file is not None:
            self.spool.discard(self.file)
            self.file = None
        asynchat.async_chat.close(self)

    def collect_incoming_data(self, data):
        self.line_length += len(data)
        if self.line_length <= self.line_limit:
            self.line.append(data)

    def found_terminator(self):
        line, length = b"".join(self.line), self.line_length
        self.line, self.line_length = [], 0
        if self.quitting:
            return
        if length > self.line_limit:
            if self.file is not None:
                self.refuse("500 line too long")
            else:
                self.reply("500 line too long")
        elif self.file is None:
            self.command(line)
        elif line == b".":
            self.end_of_mail()
        else:
            self.text_line(line)

    # -- commands

    def command(self, line):
        verb, _, argument = line.decode("ascii", "replace").partition(" ")
        do = getattr(self, "do_" + verb.lower(), None)
        if do is None or not line.isascii() or b"\r" in line or b"\n" in line:
            self.reply("500 no such command")
        else:
            do(argument)

    def do_helo(self, name):
        self.greet(name, "SMTP")

    def do_ehlo(self, name):
        offers = ["PIPELINING", "8BITMIME", "SIZE %d" % self.server.size]
        if self.server.context is not None and not self.secure:
            offers.append("STARTTLS")
        self.greet(name, "ESMTPS" if self.secure else "ESMTP", *offers)

    def greet(self, name, protocol, *offers):
        if not re.fullmatch(r"[!-~]+", name):
            self.reply("501 who are you?")
            return
        self.hello, self.protocol = name, protocol
        self.reset()
        *lines, last = [NAME, *offers]
        for line in lines:
            self.reply("250-" + line)
        self.reply("250 " + last)

    def do_starttls(self, argument):
        if argument or self.server.context is None or self.secure:
            self.reply("503 not here")
            return
        from txasynchat.compat import start_tls  # noqa: PLC0415 - the rest needs no txasynchat

        self.reply("220 go ahead")
        start_tls(self, self.server.context)  # raises, which closes, if commands came behind it
        self.secure = True
        self.hello = ""  # anybody may have said what came in the clear
        self.reset()

    def do_mail(self, argument):
        found = PATH.fullmatch(argument)
        if not self.hello or self.sender is not None:
            self.reply("503 EHLO first, and one MAIL at a time")
        elif found is None or found[1].upper() != "FROM":
            self.reply("501 MAIL FROM:<address>")
        else:
            for parameter in found[3].upper().split():
                size = re.fullmatch(r"SIZE=(\d{1,20})", parameter)
                if size is not None and int(size[1]) > self.server.size:
                    self.reply("552 at most %d bytes" % self.server.size)
                    return
                if size is None and parameter not in {"BODY=7BIT", "BODY=8BITMIME"}:
                    self.reply("555 unknown parameter")
                    return
            self.sender = found[2]
            self.eightbit = "BODY=8BITMIME" in found[3].upper()
            self.reply("250 ok")

    def do_rcpt(self, argument):
        found = PATH.fullmatch(argument)
        if self.sender is None:
            self.reply("503 MAIL first")
        elif found is None or found[1].upper() != "TO" or not found[2]:
            self.reply("501 RCPT TO:<address>")
        elif found[3]:
            self.reply("555 unknown parameter")
        elif len(self.recipients) == RECIPIENTS:
            self.reply("452 at most %d recipients" % RECIPIENTS)
        else:
            self.recipients.append(found[2])
            self.reply("250 ok")

    def do_data(self, argument):
        if argument or self.sender is None or not self.recipients:
            self.reply("503 MAIL and RCPT first")
            return
        mail = self.spool.new_mail(self.sender, self.recipients, self.eightbit)
        self.name = mail["name"]
        self.file = self.spool.begin(mail)
        received = "Received: from %s ([%s])\r\n\tby %s with %s id %s;\r\n\t%s\r\n"
        details = (self.hello, self.peer, NAME, self.protocol, self.name, formatdate())
        self.file.write((received % details).encode())
        self.refusal = ""
        self.length = self.hops = 0
        self.in_header = True
        self.line_limit = TEXT_LINE
        self.reply("354 end with a dot on a line of its own")

    def do_rset(self, argument):
        self.reset()
        self.reply("250 ok")

    def do_noop(self, argument):
        self.reply("250 ok")

    def do_vrfy(self, argument):
        self.reply("252 send it, and see")

    def do_quit(self, argument):
        self.reply("221 bye")
        self.quit()

    # -- the mail itself

    def text_line(self, line):
        # Others take a bare LF or CR for the end of a line, and what follows a dot there for commands:
        # passed on, one mail could smuggle in another.
        if b"\n" in line or b"\r" in line:
            self.refuse("550 a line ends with CRLF, and has no other CR or LF")
        if line.startswith(b"."):
            line = line[1:]
        self.length += len(line) + 2
        if self.length > self.server.size:
            self.refuse("552 at most %d bytes" % self.server.size)
        self.in_header = self.in_header and line != b""
        self.hops += self.in_header and line[:9].lower() == b"received:"
        if self.hops > HOPS:
            self.refuse("554 too many hops")
        if not self.refusal:
            try:
                self.file.write(line + b"\r\n")
            except OSError as error:
                print("cannot store a mail:", error, file=sys.stderr)
                self.refuse("452 cannot store it")

    def refuse(self, why):
        """Refuse the mail when it has ended, because the client does not listen before."""
        self.refusal = self.refusal or why

    def end_of_mail(self):
        file, self.file = self.file, None
        self.line_limit = COMMAND
        self.reset()
        if not self.refusal:
            try:
                self.spool.commit(file)  # everybody waits
            except OSError as error:
                print("cannot store a mail:", error, file=sys.stderr)
                self.refuse("452 cannot store it")
        if self.refusal:
            self.spool.discard(file)
            self.reply(self.refusal)
        else:
            self.server.relay.enqueue(self.name)
            self.reply("250 ok")


# -- forwarding


class Sender(asynchat.async_chat):
    """One mail to the next hop. What becomes of its recipients is in `accepted` and `refused`."""

    def __init__(self, relay, name, attempt):
        asynchat.async_chat.__init__(self)
        self.relay, self.attempt = relay, attempt
        self.mail, self.file = relay.spool.read(name)
        self.deadline = time.monotonic() + ATTEMPT
        self.accepted, self.refused = set(), {}
        self.lines, self.length, self.offers = [], 0, set()  # of the reply that is coming in
        self.said = "no answer"
        self.done = False
        self.set_terminator(b"\r\n")
        self.dialogue = self.talk()
        next(self.dialogue)

    def talk(self):
        """Yield each command, and get the code of its reply. What is left open is tried again."""
        mail = self.mail
        if (yield b"") >= 400 or (yield b"EHLO %s\r\n" % NAME.encode()) >= 400:
            return  # its trouble is with us, not with this mail
        body = ""
        if mail["eightbit"]:
            body = " BODY=8BITMIME"
            if "8BITMIME" not in self.offers:
                self.refuse(mail["recipients"], "554 the next hop takes 7 bits only")
                return
        code = yield ("MAIL FROM:<%s>%s\r\n" % (mail["sender"], body)).encode()
        if code >= 500:
            self.refuse(mail["recipients"], self.said)
        if code >= 400:
            return
        taken = []
        for recipient in mail["recipients"]:
            code = yield ("RCPT TO:<%s>\r\n" % recipient).encode()
            if code < 400:
                taken.append(recipient)
            elif code >= 500:
                self.refuse([recipient], self.said)
        if taken:
            code = yield b"DATA\r\n"
            if code < 400:
                self.push_with_producer(Text(self.file))
                code = yield b".\r\n"
            if code < 400:
                self.accepted.update(taken)
            elif code >= 500:
                self.refuse(taken, self.said)

    def refuse(self, recipients, why):
        self.refused.update(dict.fromkeys(recipients, why))

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)
        self.length += len(data)
        if self.length > 2000:
            self.close()  # that is not SMTP

    def found_terminator(self):
        line, self.length = self._get_data().decode("ascii", "replace"), 0
        self.lines.append(line[4:])
        if self.done:
            return  # what had arrived is delivered all the same
        if not re.match(r"[2-5]\d\d(?!\d)", line, re.ASCII) or len(self.lines) > 100:
            self.close()  # that is not SMTP
        elif line[3:4] != "-":
            self.said = "".join(character for character in line if character.isprintable())
            self.offers = {offer.upper() for offer in self.lines}
            self.lines = []
            try:
                self.push(self.dialogue.send(int(line[:3])))
            except StopIteration:
                self.done = True
                self.push(b"QUIT\r\n")
                self.close_when_done()

    def handle_error(self):
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.said = str(error)
            self.close()
        else:
            asynchat.async_chat.handle_error(self)

    def close(self):  # called for every end
        self.done = True
        asynchat.async_chat.close(self)
        self.relay.ended(self)


class Text:
    def __init__(self, file):
        self.file = file

    def more(self):
        lines = self.file.readlines(65536)
        return b"".join(b"." + line if line.startswith(b".") else line for line in lines)


class Relay:
    def __init__(self, spool, next_hop, retry, give_up):
        host, _, port = next_hop.rpartition(":")
        self.next_hop = (host, int(port))
        self.spool, self.retry, self.give_up = spool, retry, give_up
        self.due = [(0, name, 0) for name in spool.names()]  # a heap
        self.senders = set()

    def enqueue(self, name, attempt=0, pause=0.0):
        heapq.heappush(self.due, (time.monotonic() + pause, name, attempt))

    def work(self):
        """Begin what is due, and end what takes too long; called in each pass of the loop."""
        now = time.monotonic()
        for sender in list(self.senders):
            if sender.deadline < now:
                sender.close()
        while self.due and self.due[0][0] <= now and len(self.senders) < AT_ONCE:
            _, name, attempt = heapq.heappop(self.due)
            sender = Sender(self, name, attempt)
            self.senders.add(sender)
            try:
                sender.create_socket()
                sender.connect(self.next_hop)
            except OSError:
                sender.handle_error()

    def until_work(self):
        if not self.due or len(self.senders) == AT_ONCE:
            return 0.5
        return min(max(self.due[0][0] - time.monotonic(), 0.0), 0.5)

    def ended(self, sender):
        if sender not in self.senders:
            return  # it was closed before
        self.senders.remove(sender)
        try:
            with sender.file:
                left = self.settle(sender.mail, sender.file, sender)
        except OSError as error:  # a full disk, say; the mail is still there
            print("cannot forward a mail:", error, file=sys.stderr)
            left = True
        if left:
            pause = min(self.retry * 2 ** min(sender.attempt, 20), LONGEST_PAUSE)
            self.enqueue(sender.mail["name"], sender.attempt + 1, pause)

    def settle(self, mail, file, sender):
        """Keep on disk what became of the mail; return whether somebody still has to get it."""
        refused = dict(sender.refused)
        left = [to for to in mail["recipients"] if to not in sender.accepted and to not in refused]
        if left and time.time() > mail["since"] + self.give_up:
            why = "given up; the last problem was: " + sender.said
            refused.update(dict.fromkeys(left, why))
            left = []
        if refused and mail["sender"]:
            self.bounce(mail, file, refused)  # first: a crash may send it twice, but not lose it
        if not left:
            self.spool.remove(mail)
        elif left != mail["recipients"]:
            rest = self.spool.begin(dict(mail, recipients=left))
            self.rewind(file)
            shutil.copyfileobj(file, rest)
            self.spool.commit(rest)
        print("%s: %s; refused: %s" % (mail, sender.said, refused), file=sys.stderr)
        return bool(left)

    def bounce(self, mail, file, refused):
        bounce = self.spool.new_mail("", [mail["sender"]], mail["eightbit"])
        out = self.spool.begin(bounce)
        lines = [
            "From: Mail delivery <postmaster@%s>" % NAME,
            "To: <%s>" % mail["sender"],
            "Subject: Your mail could not be delivered",
            "Date: " + formatdate(),
            "Message-ID: <%s@%s>" % (bounce["name"], NAME),
            "Auto-Submitted: auto-replied",
            "",
            "Your mail did not reach:",
            "",
            *("<%s>: %s" % (to, why[:500]) for to, why in refused.items()),
            "",
            "It began with:",
            "",
        ]
        out.write("".join(line + "\r\n" for line in lines).encode())
        self.rewind(file)
        out.writelines(itertools.takewhile(lambda line: line != b"\r\n", file))
        self.spool.commit(out)
        self.enqueue(bounce["name"])

    def rewind(self, file):
        file.seek(0)
        file.readline()  # the envelope


def main():
    parser = argparse.ArgumentParser(description="Relay mail to the next hop.")
    parser.add_argument("--port", type=int, default=8025, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--spool", metavar="DIR", required=True)
    parser.add_argument("--next-hop", metavar="HOST:PORT", required=True)
    parser.add_argument("--certificate", metavar="FILE", help="for STARTTLS; with its key")
    parser.add_argument("--size", type=int, default=10_000_000, help="bytes of a mail, at most")
    parser.add_argument("--retry", type=float, default=60, help="seconds; twice as many each time")
    parser.add_argument("--give-up", type=float, default=432_000, help="seconds until it bounces")
    options = parser.parse_args()
    context = None
    if options.certificate:
        if "txasynchat" not in sys.modules:
            sys.exit("relay: --certificate needs: python -m txasynchat run relay_legacy.py")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate)
    relay = Relay(Spool(options.spool), options.next_hop, options.retry, options.give_up)
    server = Server(("127.0.0.1", options.port), relay, options.size, context)
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    print("listening on 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
    while not signals:
        relay.work()
        asyncore.loop(timeout=relay.until_work(), use_poll=True, count=1)
    server.stop()
    end = time.monotonic() + STOP
    while asyncore.socket_map and time.monotonic() < end:
        asyncore.loop(timeout=0.5, use_poll=True, count=1)


if __name__ == "__main__":
    main()
