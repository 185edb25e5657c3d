r"""
A program that talks on its standard input and output, and a program that starts it and talks to it.

    printf 'hello\nworld\n' | python pipes.py --worker
    python pipes.py hello world

The first answers each line in capitals. The second starts the first, and has it answer its arguments.
"""

import argparse
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import ProcessEndpoint, connectProtocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from typing_extensions import override

from txasynchat import AsyncChat, ChatError

# -- the worker


class Worker(AsyncChat):
    terminator = b"\n"

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    @override
    def message_received(self, message: bytes) -> None:
        self.push(message.upper() + b"\n")

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        self.ended.callback(None)


async def work(_reactor: Any) -> None:
    worker = Worker()
    StandardIO(worker)
    await worker.ended  # Twisted leaves the two descriptors open: the exit closes them


# -- the program that starts it


class Client(AsyncChat):
    terminator = b"\n"

    def __init__(self, questions: list[str]) -> None:
        self.questions = questions
        self.ended: Deferred[None] = Deferred()

    @override
    def handle_connect(self) -> None:
        self.ask_next()

    @override
    def message_received(self, message: bytes) -> None:
        print(message.decode(), flush=True)
        self.ask_next()

    def ask_next(self) -> None:
        if self.questions:
            self.push(self.questions.pop(0).encode() + b"\n")
        else:
            self.close()  # the end of the worker's input, at which it ends

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        self.ended.callback(None)


async def ask(reactor: Any, questions: list[str]) -> None:
    command = [sys.executable, __file__, "--worker"]
    process = ProcessEndpoint(reactor, sys.executable, command, env=None)
    client = await connectProtocol(process, Client(questions))
    await client.ended


# -- the command line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start a program, and let it answer.")
    parser.add_argument("--worker", action="store_true", help="be the program that is started")
    parser.add_argument("questions", nargs="*")
    options = parser.parse_args()
    if options.worker:
        react(work)
    else:
        react(ask, [options.questions])
