"""
What tests of framers share: a receiver, and how to change the sizes of a batch.
"""

from txasynchat.framing import framer


class Calls:
    """
    Writes down the calls, and does in each what the test put there.
    """

    def __init__(self, framer, **actions):
        self.framer = framer
        self.actions = actions
        self.log = []

    def collect_incoming_data(self, data):
        self._call("collect", data)

    def found_terminator(self):
        self._call("found")

    def message_received(self, message):
        self._call("message", message)

    def overflowed(self, error):
        self._call("overflowed", error)

    def _call(self, name, *args):
        self.log.append((name, *args) if args else name)
        action = self.actions.get(name)
        if action is not None:
            action(*args)

    def receive(self, *chunks):
        for chunk in chunks:
            self.framer.receive(self, chunk)
        return self.log


def set_sizes(patch, window, settle):
    """Set a batch's window and the pause after it."""
    patch.setattr(framer, "WINDOW", window)
    patch.setattr(framer, "SETTLE", settle)
