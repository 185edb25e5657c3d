"""PodSixNet: a game server and its players, each pumping `poll` on a map of its own."""

import time

from PodSixNet.Channel import Channel
from PodSixNet.Connection import EndPoint
from PodSixNet.Server import Server


class Player(Channel):
    def Network_say(self, data):  # noqa: N802 - PodSixNet calls it by that name
        self._server.heard.append(data["text"])
        for channel in self._server.channels:
            channel.Send({"action": "said", "text": data["text"]})


class Game(Server):
    channelClass = Player  # noqa: N815 - PodSixNet's name

    def __init__(self):
        self.heard = []
        Server.__init__(self, localaddr=("127.0.0.1", 0))


def _pump(things, until, seconds=10):
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        for thing in things:
            thing()


def test_players_receive_each_others_messages():
    game = Game()
    address = game.socket.getsockname()
    heard = [[], [], []]
    ends = [EndPoint(address) for _ in heard]
    for end in ends:
        end.DoConnect()

    def pump(end, texts):
        def step():
            end.Pump()
            texts.extend(event["text"] for event in end.GetQueue() if event["action"] == "said")

        return step

    things = [game.Pump, *(pump(end, texts) for end, texts in zip(ends, heard, strict=True))]
    _pump(things, lambda: all(end.isConnected for end in ends))
    for number, end in enumerate(ends):
        for count in range(20):
            end.Send({"action": "say", "text": f"{number}.{count}"})
    _pump(things, lambda: all(len(texts) == 60 for texts in heard))
    assert heard[0] == heard[1] == heard[2] == game.heard
    for number in range(3):
        mine = [text for text in game.heard if text.startswith(f"{number}.")]
        assert mine == [f"{number}.{count}" for count in range(20)]
    for end in ends:
        end.Close()
    game.close()


def test_refused_connection_is_reported():
    end = EndPoint(("127.0.0.1", 1))
    end.DoConnect()
    errors = []

    def step():
        end.Pump()
        errors.extend(event for event in end.GetQueue() if event["action"] == "error")

    _pump([step], lambda: errors)
    end.close()
