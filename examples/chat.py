"""
A chat server: rooms, nicknames, and messages for one member alone.

    python chat.py --port 8007
    nc 127.0.0.1 8007

``python chat_client.py tcp:127.0.0.1:8007`` is a better client. ``--certificate FILE``, with its key in
the same file, is for TLS: then ``chat_client.py secure:tcp:127.0.0.1:8007``, with ``:ca=FILE`` behind
it for a private authority. ``--listen`` takes any other endpoint. ``chat_legacy.py`` is the same for
asyncore and asynchat.
"""

import argparse
import itertools
import re

from typing_extensions import override

from txasynchat import AsyncChat, ChatError, ChatFactory, MessageTooLong, Overflow, serve
from txasynchat.errors import UnsentLimitExceeded

HELP = "/nick NAME, /join ROOM, /msg NAME TEXT, /quit"


class Member(AsyncChat):
    terminator = (b"\n", b"\r\n")
    max_message_length = 1000
    overflow = Overflow.SKIP
    #: Who reads so slowly that more bytes than this wait is cut off; nobody else waits for it.
    max_unsent = 1 << 20

    def __init__(self, members: dict[str, "Member"]) -> None:
        self.members = members
        self.name = self.room = ""
        self.line_end = b"\n"

    @override
    def handle_connect(self) -> None:
        guests = (f"guest{number}" for number in itertools.count(1))
        self.name = next(name for name in guests if name not in self.members)
        self.members[self.name] = self
        self.tell(f"* you are {self.name}; {HELP}")
        self.enter("lobby")

    @override
    def message_received(self, message: bytes) -> None:
        self.line_end = self.matched_terminator
        # Nobody shall move the cursors of others.
        line = "".join(c for c in message.decode(errors="replace") if c.isprintable())
        if not line.startswith("/"):
            self.tell_room(f"<{self.name}> {line}")
            return
        command, _, argument = line[1:].partition(" ")
        if command == "nick":
            self.rename(argument)
        elif command == "join" and re.fullmatch(r"\w{1,20}", argument):
            self.tell_room(f"* {self.name} left {self.room}")
            self.enter(argument)
        elif command == "msg":
            name, _, text = argument.partition(" ")
            if name.casefold() in self.members:
                self.members[name.casefold()].tell(f"*{self.name}* {text}")
            else:
                self.tell(f"* nobody is called {name}")
        elif command == "quit":
            self.tell("* bye")
            self.close()
            self.leave()  # its end comes later if the client is still sending
        else:
            self.tell(f"* {HELP}")

    @override
    def message_too_long(self, error: MessageTooLong) -> None:
        self.tell(f"* nobody saw that: a line has at most {error.limit} bytes")

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        self.leave(", who read too slowly" if isinstance(reason, UnsentLimitExceeded) else "")

    @override
    def handle_shutdown(self) -> None:
        self.tell("* the server closes")
        self.close()

    def leave(self, why: str = "") -> None:
        if self.members.pop(self.name.casefold(), None) is not None:
            self.tell_room(f"* {self.name} left{why}")

    def rename(self, name: str) -> None:
        key, old = name.casefold(), self.name
        if not re.fullmatch(r"\w{1,20}", name):
            self.tell("* a name has 1 to 20 letters and digits")
        elif self.members.get(key, self) is not self:
            self.tell(f"* {name} is taken")
        else:
            del self.members[old.casefold()]
            self.members[key] = self
            self.name = name
            self.tell(f"* you are {name}")
            self.tell_room(f"* {old} is {name} now")

    def enter(self, room: str) -> None:
        self.room = room
        others = [member.name for member in self.members.values() if member.room == room]
        self.tell(f"* in {room}: {', '.join(others)}")
        self.tell_room(f"* {self.name} joined {room}")

    def tell(self, text: str) -> None:
        self.push(text.encode() + self.line_end)

    def tell_room(self, text: str) -> None:
        for member in list(self.members.values()):  # one that is cut off leaves it
            if member.room == self.room and member is not self:
                member.tell(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Let people talk in rooms.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    parser.add_argument("--certificate", metavar="FILE", help="for TLS; with its key")
    options = parser.parse_args()
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    if options.certificate:
        endpoint = f"secure:{endpoint}:certificate={options.certificate}"
    serve(ChatFactory(Member, {}), endpoint, announce=True)


if __name__ == "__main__":
    main()
