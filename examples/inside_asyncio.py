r"""
A program of asyncio's, in which Twisted's asyncio reactor serves beside the program's own tasks.

    python inside_asyncio.py --port 8007
    printf '3\n1\n' | nc 127.0.0.1 8007

A number is answered when so many ticks have gone by; a task counts them. Handlers may await whatever
asyncio awaits, and Twisted's Deferreds. ``--listen`` takes any other endpoint.
"""

import argparse
import asyncio
import signal
from typing import Any

from twisted.internet import asyncioreactor
from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, Program


class Ticker:
    """What a task of the program does; the handlers wait for it."""

    def __init__(self) -> None:
        self.ticks = 0
        self.ticked = asyncio.Condition()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            async with self.ticked:
                self.ticks += 1
                self.ticked.notify_all()

    async def wait(self, ticks: int) -> int:
        end = self.ticks + ticks
        async with self.ticked:
            await self.ticked.wait_for(lambda: self.ticks >= end)
        return self.ticks


# -- a handler


class Waiter(AsyncChat):
    terminator = (b"\n", b"\r\n")

    def __init__(self, ticker: Ticker) -> None:
        self.ticker = ticker

    @override
    async def message_received(self, message: bytes) -> None:
        # Until this is done, nothing more of this connection is delivered; others are served.
        try:
            async with asyncio.timeout(5):
                answer = b"tick %d" % await self.ticker.wait(int(message))
        except ValueError:
            answer = b"a number, please"
        except TimeoutError:
            answer = b"that is too long"
        self.push(answer + self.matched_terminator)


# -- the program


async def main(endpoint: str) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    # The reactor, in the loop that runs already.
    asyncioreactor.install(loop)
    from twisted.internet import reactor as installed  # noqa: PLC0415 - not before

    reactor: Any = installed
    reactor.startRunning(installSignalHandlers=False)  # not run(), which would run the loop

    ticker = Ticker()
    factory = ChatFactory(Waiter, ticker)
    server = Program(reactor, factory, [endpoint], transport="hub", announce=True)
    server.startService()
    ticking = asyncio.create_task(ticker.run())
    await stop.wait()
    await server.stopService().asFuture(loop)
    ticking.cancel()


# -- the command line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer after so many ticks.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    options = parser.parse_args()
    asyncio.run(main(options.listen or f"tcp:{options.port}:interface=127.0.0.1"))
