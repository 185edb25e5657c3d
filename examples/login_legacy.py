r"""
A protocol with states: a user logs in, gives commands, and sends a text that ends with a dot.

    python -m txasynchat run login_legacy.py --port 8007
    printf 'USER ann\nPASS secret\nDATA\nhello\n.\nQUIT\n' | nc 127.0.0.1 8007

What may happen in which state is a table. Up to Python 3.11 ``python login_legacy.py`` runs it on the
standard library alone. ``login.py`` is the same for Twisted's reactor, with a state machine.
"""

import argparse
import asynchat
import asyncore
import hmac
import signal

PASSWORDS = {b"ann": b"secret", b"bob": b"hunter2"}
GUESSES = 3  # then the connection closes
COMMAND_LIMIT = 80  # bytes of a command
LINE_LIMIT = 1_000  # bytes of a line of a text
TEXT_LIMIT = 100_000  # bytes of a text

# What happens upon which command in which state.
TABLE = {
    ("stranger", b"USER"): "user",
    ("named", b"USER"): "user",
    ("named", b"PASS"): "password",
    ("member", b"WHOAMI"): "whoami",
    ("member", b"DATA"): "data",
    ("stranger", b"QUIT"): "quit",
    ("named", b"QUIT"): "quit",
    ("member", b"QUIT"): "quit",
}
COMMANDS = {command for _, command in TABLE}


class Login(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.state = "stranger"
        self.name = b""
        self.guesses = 0
        self.length = 0  # of the line until now
        self.limit = COMMAND_LIMIT
        self.end = b"\r\n"
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self.length += len(data)
        if self.length <= self.limit:
            self._collect_incoming_data(data)
        elif self.state == "writing":
            self.size = TEXT_LIMIT + 1
        elif self.state != "closing":
            self.answer(b"500 line too long")
            self.finish()

    def found_terminator(self):
        line, self.end = self._get_data(), b"\n"
        if line.endswith(b"\r"):
            line, self.end = line[:-1], b"\r\n"
        too_long, self.length = self.length > self.limit, 0
        if self.state == "closing" or too_long:
            return
        if self.state == "writing":
            self.write(line)
            return
        command, _, argument = line.partition(b" ")
        command = command.upper()
        if command not in COMMANDS:
            self.answer(b"500 what?")
        elif (self.state, command) not in TABLE:
            self.answer(b"503 not now")
        else:
            getattr(self, TABLE[self.state, command])(argument)

    def answer(self, line):
        self.push(line + self.end)

    def finish(self):
        # What has arrived is still delivered after close_when_done(); in this state it is dropped.
        self.state = "closing"
        self.close_when_done()

    def user(self, name):
        self.state = "named"
        self.name = name
        self.answer(b"331 password?")

    def password(self, password):
        right = PASSWORDS.get(self.name, b"")
        if hmac.compare_digest(password, right) and password:
            self.state = "member"
            self.answer(b"230 hello, " + self.name)
            return
        self.guesses += 1
        self.answer(b"530 wrong")
        if self.guesses == GUESSES:
            self.finish()

    def whoami(self, _):
        self.answer(b"200 " + self.name)

    def data(self, _):
        self.state = "writing"
        self.limit = LINE_LIMIT
        self.lines, self.size = [], 0
        self.answer(b"354 end with a dot")

    def write(self, line):
        if line == b".":
            self.keep()
            return
        if line.startswith(b"."):  # a second dot was put before a line that begins with one
            line = line[1:]
        self.size += len(line) + 1  # with its end
        if self.size <= TEXT_LIMIT:
            self.lines.append(line)

    def keep(self):
        self.state = "member"
        self.limit = COMMAND_LIMIT
        if self.size > TEXT_LIMIT:
            self.answer(b"552 too long")
        else:
            self.answer(b"250 %d lines, %d bytes" % (len(self.lines), self.size))

    def quit(self, _):
        self.answer(b"221 bye")
        self.finish()


class LoginServer(asyncore.dispatcher):
    def __init__(self, address):
        asyncore.dispatcher.__init__(self)
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)

    def handle_accepted(self, sock, addr):
        Login(sock)

    def stop(self, *_):
        self.close()
        for channel in list(asyncore.socket_map.values()):
            channel.close_when_done()


def main():
    parser = argparse.ArgumentParser(description="Let users log in and send texts.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    options = parser.parse_args()
    server = LoginServer(("127.0.0.1", options.port))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.stop)
    print("listening on 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
    asyncore.loop(use_poll=True)  # until nothing is open any more


if __name__ == "__main__":
    main()
