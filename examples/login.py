r"""
A protocol with states: a user logs in, gives commands, and sends a text that ends with a dot.

    python login.py --port 8007
    printf 'USER ann\nPASS secret\nDATA\nhello\n.\nQUIT\n' | nc 127.0.0.1 8007

What may happen in which state is a state machine of Automat's, which comes with Twisted.
``login_legacy.py`` is the same for asyncore and asynchat, with a table.
"""

import argparse
import hmac
from typing import Protocol

from automat import NoTransition, TypeMachineBuilder
from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, Limits, MessageTooLong, Overflow, serve

PASSWORDS = {b"ann": b"secret", b"bob": b"hunter2"}
GUESSES = 3  # then the connection closes
COMMAND_LIMIT = 80  # bytes of a command
LINE_LIMIT = 1_000  # bytes of a line of a text
TEXT_LIMIT = 100_000  # bytes of a text
LOGIN_TIME = 60  # seconds to log in
PAUSE = 600  # seconds that a user who writes a text may think about the next line


class Inputs(Protocol):
    """What may happen."""

    def line(self, line: bytes) -> None: ...
    def long_line(self) -> None: ...
    def user(self, name: bytes) -> None: ...
    def right_password(self) -> None: ...
    def wrong_password(self) -> None: ...
    def whoami(self) -> None: ...
    def data(self) -> None: ...
    def dot(self) -> None: ...


class Login(AsyncChat):
    """A connection: tells the machine what comes, and does what the machine decides."""

    terminator = (b"\n", b"\r\n")
    max_message_length = COMMAND_LIMIT
    limits = Limits(session=LOGIN_TIME)  # for strangers; see welcome
    overflow = Overflow.SKIP
    name = b""
    guesses = 0

    def __init__(self) -> None:
        self.machine = Machine(self)

    @override
    def message_received(self, message: bytes) -> None:
        try:
            self.machine.line(message)
        except NoTransition:
            self.answer(b"503 not now")

    @override
    def message_too_long(self, error: MessageTooLong) -> None:
        self.machine.long_line()

    @override
    def handle_timeout(self, kind: str) -> None:
        self.answer(b"421 too slow")

    def answer(self, line: bytes) -> None:
        self.push(line + (self.matched_terminator or b"\r\n"))

    def knows(self, password: bytes) -> bool:
        return hmac.compare_digest(password, PASSWORDS.get(self.name, b"")) and bool(password)


class Text:
    """What comes after DATA."""

    def __init__(self, _machine: Inputs, _login: Login) -> None:
        self.lines: list[bytes] = []
        self.size = 0

    def add(self, line: bytes) -> None:
        self.size += len(line) + 1  # with its end
        if self.size <= TEXT_LIMIT:
            self.lines.append(line)


builder = TypeMachineBuilder(Inputs, Login)

stranger = builder.state("stranger")
named = builder.state("named")
member = builder.state("member")
writing = builder.state("writing", Text)


def command(machine: Inputs, login: Login, line: bytes) -> None:
    verb, _, argument = line.partition(b" ")
    match verb.upper():
        case b"USER":
            machine.user(argument)
        case b"PASS" if login.knows(argument):
            machine.right_password()
        case b"PASS":
            machine.wrong_password()
        case b"WHOAMI":
            machine.whoami()
        case b"DATA":
            machine.data()
        case b"QUIT":
            login.answer(b"221 bye")
            login.close()
        case _:
            login.answer(b"500 what?")


def long_command(_machine: Inputs, login: Login) -> None:
    login.answer(b"500 line too long")
    login.close()


def user(_machine: Inputs, login: Login, name: bytes) -> None:
    login.name = name
    login.answer(b"331 password?")


for state in (stranger, named, member):
    state.upon(Inputs.line).loop()(command)
    state.upon(Inputs.long_line).loop()(long_command)
for state in (stranger, named):
    state.upon(Inputs.user).to(named)(user)


@named.upon(Inputs.right_password).to(member)
def welcome(_machine: Inputs, login: Login) -> None:
    login.set_limits(session=None)
    login.answer(b"230 hello, " + login.name)


@named.upon(Inputs.wrong_password).loop()
def refuse(_machine: Inputs, login: Login) -> None:
    login.guesses += 1
    login.answer(b"530 wrong")
    if login.guesses == GUESSES:
        login.close()  # the answers are sent, and guesses that have arrived are not looked at


@member.upon(Inputs.whoami).loop()
def whoami(_machine: Inputs, login: Login) -> None:
    login.answer(b"200 " + login.name)


@member.upon(Inputs.data).to(writing)
def begin(_machine: Inputs, login: Login) -> None:
    login.set_limits(session=None, idle=PAUSE, max_message_length=LINE_LIMIT)
    login.answer(b"354 end with a dot")


@writing.upon(Inputs.line).loop()
def write(machine: Inputs, _login: Login, text: Text, line: bytes) -> None:
    if line == b".":
        machine.dot()
    else:
        text.add(line.removeprefix(b"."))  # a second dot was put before a line that begins with one


@writing.upon(Inputs.long_line).loop()
def write_no_more(_machine: Inputs, _login: Login, text: Text) -> None:
    text.size = TEXT_LIMIT + 1


@writing.upon(Inputs.dot).to(member)
def keep(_machine: Inputs, login: Login, text: Text) -> None:
    login.set_limits(session=None)
    if text.size > TEXT_LIMIT:
        login.answer(b"552 too long")
    else:
        login.answer(b"250 %d lines, %d bytes" % (len(text.lines), text.size))


Machine = builder.build()


def main() -> None:
    parser = argparse.ArgumentParser(description="Let users log in and send texts.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    options = parser.parse_args()
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    serve(ChatFactory(Login), endpoint, announce=True)


if __name__ == "__main__":
    main()
