"""
A chat room: everybody hears what anybody says.

Run it, and join from several terminals: ``nc 127.0.0.1 8007``. It takes other endpoints as arguments;
``twistd -n asynchat --handler chat:User`` serves the same.
"""

import sys

from typing_extensions import override

from txasynchat import AsyncChat, ChatError, ChatFactory, serve


class User(AsyncChat):
    terminator = (b"\n", b"\r\n")
    max_message_length = 1000
    name = b""

    @override
    def handle_connect(self) -> None:
        self.push(b"Your name?\n")

    @override
    def message_received(self, message: bytes) -> None:
        if not self.name:
            self.name = message.strip() or b"nobody"
            self.tell_others(b"* %b came" % self.name)
        else:
            self.tell_others(b"%b: %b" % (self.name, message))

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        # Called for every end; handle_close is not called after close() or abort().
        if self.name:
            self.tell_others(b"* %b left" % self.name)

    @override
    def handle_shutdown(self) -> None:
        self.push(b"* the room closes\n")
        self.close_when_done()

    def tell_others(self, line: bytes) -> None:
        # A client that reads too slowly is cut off by max_unsent, and delays no other.
        for user in self.factory.connections:
            if user is not self and user.name:
                user.push(line + b"\n")


def main(*endpoints: str) -> None:
    serve(ChatFactory(User), *(endpoints or ["tcp:8007:interface=127.0.0.1"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
