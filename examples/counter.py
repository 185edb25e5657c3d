"""
One number for everybody. Serve it with ``twistd -n asynchat --handler counter:Counter``.
"""

from txasynchat import AsyncChat


class Counter(AsyncChat):
    terminator = (b"\n", b"\r\n")
    total = 0

    def message_received(self, message: bytes) -> None:
        command, _, argument = message.partition(b" ")
        if command == b"add":
            self.add(argument)
        elif command == b"total":
            self.answer(b"%d" % Counter.total)
        elif command == b"quit":
            self.answer(b"bye")
            self.close()
        else:
            self.answer(b"error: add NUMBER, total or quit")

    def add(self, argument: bytes) -> None:
        try:
            Counter.total += int(argument)
        except ValueError:
            self.answer(b"error: add what?")
        else:
            self.answer(b"ok")

    def answer(self, line: bytes) -> None:
        self.push(line + b"\n")


# -- more than one


class TalkingCounter(Counter):
    def add(self, argument: bytes) -> None:
        super().add(argument)
        for other in self.factory.connections:
            if other is not self:
                other.answer(b"somebody added " + argument)
