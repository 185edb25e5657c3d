"""
A chat server: rooms, nicknames, and messages for one member alone.

    python -m txasynchat run chat_legacy.py --port 8007
    nc 127.0.0.1 8007

Up to Python 3.11 ``python chat_legacy.py`` runs it on the standard library alone. asyncore never had
TLS: ``--certificate FILE``, with the key in the same file, is for where txasynchat runs the program.
``chat.py`` is the same for Twisted's reactor; its client, ``chat_client.py``, is for both.
"""

import argparse
import asynchat
import asyncore
import itertools
import re
import signal
import ssl
import sys
import time

HELP = "/nick NAME, /join ROOM, /msg NAME TEXT, /quit"
LONGEST_LINE = 1000
# Who reads so slowly that more lines than this wait is cut off; nobody else waits for it.
MOST_UNSENT = 1000
STOP = 15.0  # seconds that members have to read the rest when the server closes


class Member(asynchat.async_chat):
    def __init__(self, sock, server):
        asynchat.async_chat.__init__(self, sock)
        self.server, self.members = server, server.members
        self.line, self.length = [], 0
        self.room = ""
        self.line_end = b"\n"
        self.quitting = False
        self.set_terminator(b"\n")
        guests = ("guest%d" % number for number in itertools.count(1))
        self.name = next(name for name in guests if name not in self.members)

    def welcome(self):
        self.members[self.name] = self
        self.tell("* you are %s; %s" % (self.name, HELP))
        self.enter("lobby")

    def collect_incoming_data(self, data):
        self.length += len(data)
        if self.length <= LONGEST_LINE + 1:  # with a CR
            self.line.append(data)

    def found_terminator(self):
        message, length = b"".join(self.line), self.length
        self.line, self.length = [], 0
        self.line_end = b"\n"
        if message.endswith(b"\r"):
            message, length, self.line_end = message[:-1], length - 1, b"\r\n"
        if self.quitting:
            return
        if length > LONGEST_LINE:
            self.tell("* nobody saw that: a line has at most %d bytes" % LONGEST_LINE)
        else:
            self.message_received(message)

    def message_received(self, message):
        # Nobody shall move the cursors of others.
        line = "".join(c for c in message.decode(errors="replace") if c.isprintable())
        if not line.startswith("/"):
            self.tell_room("<%s> %s" % (self.name, line))
            return
        command, _, argument = line[1:].partition(" ")
        if command == "nick":
            self.rename(argument)
        elif command == "join" and re.fullmatch(r"\w{1,20}", argument):
            self.tell_room("* %s left %s" % (self.name, self.room))
            self.enter(argument)
        elif command == "msg":
            name, _, text = argument.partition(" ")
            if name.casefold() in self.members:
                self.members[name.casefold()].tell("*%s* %s" % (self.name, text))
            else:
                self.tell("* nobody is called %s" % name)
        elif command == "quit":
            self.tell("* bye")
            self.quit()
            self.leave()
        else:
            self.tell("* " + HELP)

    def quit(self):
        self.quitting = True  # what has arrived is still delivered
        self.close_when_done()

    def close(self, why=""):  # called for every end
        asynchat.async_chat.close(self)
        self.leave(why)

    def leave(self, why=""):
        if self.members.pop(self.name.casefold(), None) is not None:
            self.tell_room("* %s left%s" % (self.name, why))

    def rename(self, name):
        key, old = name.casefold(), self.name
        if not re.fullmatch(r"\w{1,20}", name):
            self.tell("* a name has 1 to 20 letters and digits")
        elif self.members.get(key, self) is not self:
            self.tell("* %s is taken" % name)
        else:
            del self.members[old.casefold()]
            self.members[key] = self
            self.name = name
            self.tell("* you are %s" % name)
            self.tell_room("* %s is %s now" % (old, name))

    def enter(self, room):
        self.room = room
        others = [member.name for member in self.members.values() if member.room == room]
        self.tell("* in %s: %s" % (room, ", ".join(others)))
        self.tell_room("* %s joined %s" % (self.name, room))

    def tell(self, text):
        self.push(text.encode() + self.line_end)
        if len(self.producer_fifo) > MOST_UNSENT:
            self.server.slow.add(self)

    def tell_room(self, text):
        for member in list(self.members.values()):  # push closes one that is gone, which leaves it
            if member.room == self.room and member is not self:
                member.tell(text)


class Server(asyncore.dispatcher):
    def __init__(self, address, context):
        asyncore.dispatcher.__init__(self)
        self.context = context
        self.members = {}
        self.slow = set()
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)

    def handle_accepted(self, sock, addr):
        member = Member(sock, self)
        if self.context is not None:
            from txasynchat.compat import start_tls  # noqa: PLC0415 - the rest needs no txasynchat

            start_tls(member, self.context)
        member.welcome()

    def cut_off_the_slow(self):
        while self.slow:  # others may find out that they are, when they are told
            self.slow.pop().close(", who read too slowly")

    def stop(self, *_):
        self.close()
        for member in list(self.members.values()):
            member.tell("* the server closes")
            member.quit()


def main():
    parser = argparse.ArgumentParser(description="Let people talk in rooms.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--certificate", metavar="FILE", help="for TLS; with its key")
    options = parser.parse_args()
    context = None
    if options.certificate:
        if "txasynchat" not in sys.modules:
            sys.exit("chat: --certificate needs: python -m txasynchat run chat_legacy.py")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate)
    server = Server(("127.0.0.1", options.port), context)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.stop)
    print("listening on 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
    while server.accepting:  # until it is closed
        asyncore.loop(use_poll=True, count=1)
        server.cut_off_the_slow()
    end = time.monotonic() + STOP
    while asyncore.socket_map and time.monotonic() < end:
        asyncore.loop(timeout=0.5, use_poll=True, count=1)


if __name__ == "__main__":
    main()
