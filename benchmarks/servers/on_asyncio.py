"""Servers on asyncio: streams and Protocol, each on the loop of the library and on uvloop."""

from __future__ import annotations

import asyncio
import ssl

from common import BLOCK, DONE, END, arguments, blocks, listening


def stream_handlers(options):
    async def echo(reader, writer) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()

    async def oneshot(reader, writer) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def source(reader, writer) -> None:
        while await reader.readline():
            for block in blocks(options.size):
                writer.write(block)
                await writer.drain()
        writer.close()

    async def sink(reader, writer) -> None:
        left = options.size
        while data := await reader.read(65536):
            left -= len(data)
            if not left:
                left = options.size
                writer.write(DONE)
        writer.close()

    return {"echo": echo, "oneshot": oneshot, "source": source, "sink": sink}


def protocol_handlers(options):
    class Lines(asyncio.Protocol):
        def __init__(self) -> None:
            self.rest = b""

        def connection_made(self, transport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            lines = (self.rest + data).split(END)
            self.rest = lines.pop()
            if lines:
                self.lines_received(lines)

    class Echo(Lines):
        def lines_received(self, lines: list[bytes]) -> None:
            self.transport.write(b"".join([line + END for line in lines]))

    class OneShot(Lines):
        def lines_received(self, lines: list[bytes]) -> None:
            self.transport.write(lines[0] + END)
            self.transport.close()

    class Source(Lines):
        left = 0
        paused = False

        def lines_received(self, lines: list[bytes]) -> None:
            self.left = options.size
            self.produce()

        def produce(self) -> None:
            while self.left and not self.paused:
                taken = min(self.left, len(BLOCK))
                self.left -= taken
                self.transport.write(BLOCK if taken == len(BLOCK) else BLOCK[:taken])

        def pause_writing(self) -> None:
            self.paused = True

        def resume_writing(self) -> None:
            self.paused = False
            self.produce()

    class Sink(Lines):
        left = options.size

        def data_received(self, data: bytes) -> None:
            self.left -= len(data)
            if not self.left:
                self.left = options.size
                self.transport.write(DONE)

    return {"echo": Echo, "oneshot": OneShot, "source": Source, "sink": Sink}


async def serve(options) -> None:
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.tls)
    style = options.competitor.removeprefix("uvloop-")
    where = {"host": "127.0.0.1", "port": 0, "backlog": 4096, "ssl": context}
    if style == "streams":
        handler = stream_handlers(options)[options.role]
        server = await asyncio.start_server(handler, **where)
    else:
        handler = protocol_handlers(options)[options.role]
        server = await asyncio.get_running_loop().create_server(handler, **where)
    listening(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def main() -> None:
    options = arguments(["streams", "protocol", "uvloop-streams", "uvloop-protocol"])
    factory = None
    if options.competitor.startswith("uvloop-"):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(options))


if __name__ == "__main__":
    main()
