"""Servers on asyncore and asynchat: whichever this Python has, or ours."""

from __future__ import annotations

import socket
import ssl
import warnings

from common import DONE, END, Blocks, arguments, listening


def modules(competitor: str):
    if competitor == "facade":
        from txasynchat.compat import asynchat, asyncore
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import asynchat
            import asyncore
    return asyncore, asynchat


def handlers(asyncore, asynchat, options):
    class Echo(asynchat.async_chat):
        ac_join_writes = options.join  # of the facade; elsewhere an attribute like any other

        def __init__(self, connection: socket.socket) -> None:
            asynchat.async_chat.__init__(self, connection)
            self.parts: list[bytes] = []
            self.set_terminator(END)

        def collect_incoming_data(self, data: bytes) -> None:
            self.parts.append(data)

        def found_terminator(self) -> None:
            line = b"".join(self.parts)
            self.parts.clear()
            self.push(line + END)

    class EchoAsked(Echo):
        """Overrides both predicates, as programs do that decide by state of their own."""

        open = True

        def readable(self) -> bool:
            return self.open and asynchat.async_chat.readable(self)

        def writable(self) -> bool:
            return self.open and asynchat.async_chat.writable(self)

    class OneShot(Echo):
        def found_terminator(self) -> None:
            Echo.found_terminator(self)
            self.close_when_done()

    class Source(Echo):
        def found_terminator(self) -> None:
            self.parts.clear()
            self.push_with_producer(Blocks(options.size))

    class Sink(Echo):
        left = options.size

        def __init__(self, connection: socket.socket) -> None:
            Echo.__init__(self, connection)
            self.set_terminator(None)

        def collect_incoming_data(self, data: bytes) -> None:
            self.left -= len(data)
            if not self.left:
                self.left = options.size
                self.push(DONE)

    echo = EchoAsked if options.predicates else Echo
    return {"echo": echo, "oneshot": OneShot, "source": Source, "sink": Sink}


def serve(handler, options) -> None:
    """Serve on an endpoint."""
    from twisted.internet import endpoints, reactor

    from txasynchat.compat import LegacyFactory

    place = "hub:tcp" if options.hub else "tcp"
    place = f"{place}:0:interface=127.0.0.1:backlog=4096"
    if options.tls:
        place = f"secure:{place}:certificate={options.tls}"
    endpoint = endpoints.serverFromString(reactor, place)
    endpoint.listen(LegacyFactory(handler)).addCallback(lambda port: listening(port.getHost().port))
    reactor.run()


def main() -> None:
    options = arguments(
        ["facade", "installed"],
        poll="use poll, not select, where there is the choice",
        predicates="handlers override readable() and writable()",
        join="join the writes of one chunk of input (ours only)",
        hub="beside a reactor, on sockets that the hub accepts (ours only)",
        worn="beside a reactor, on Twisted's transports (ours only)",
    )
    asyncore, asynchat = modules(options.competitor)
    handler = handlers(asyncore, asynchat, options)[options.role]
    if options.hub or options.worn:
        serve(handler, options)
        return

    class Listener(asyncore.dispatcher):
        def __init__(self) -> None:
            asyncore.dispatcher.__init__(self)
            self.create_socket(socket.AF_INET, socket.SOCK_STREAM)
            self.bind(("127.0.0.1", 0))
            if options.tls:  # of the facade alone
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(options.tls)
                self.listen(4096, tls=context)
            else:
                self.listen(4096)

        def handle_accepted(self, connection, address) -> None:
            handler(connection)

    listener = Listener()
    listening(listener.socket.getsockname()[1])
    asyncore.loop(use_poll=options.poll)


if __name__ == "__main__":
    main()
