"""
A server on the reactor that is named: each of our ways to speak TLS, on its own port.

    python serve.py REACTOR CERTIFICATE FOLDER

REACTOR is epoll, poll, select or asyncio, or private: one that is not installed. Prints the
places as JSON, then serves until its standard input ends.
"""

import json
import os
import ssl
import sys
import threading
from importlib import import_module
from pathlib import Path

REACTORS = {
    "epoll": "twisted.internet.epollreactor:EPollReactor",
    "poll": "twisted.internet.pollreactor:PollReactor",
    "select": "twisted.internet.selectreactor:SelectReactor",
    "asyncio": "twisted.internet.asyncioreactor:AsyncioSelectorReactor",
    "private": "twisted.internet.epollreactor:EPollReactor",
}


def make_reactor(name):
    module, _, kind = REACTORS[name].partition(":")
    reactor = getattr(import_module(module), kind)()
    if name != "private":
        from twisted.internet.main import installReactor

        installReactor(reactor)
    return reactor


def main():
    name, certificate, folder = sys.argv[1:]
    reactor = make_reactor(name)

    from twisted.internet.defer import gatherResults
    from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
    from twisted.internet.protocol import Factory

    from txasynchat import AsyncChat
    from txasynchat.compat import asyncore, attach, start_tls
    from txasynchat.compat.asynchat import async_chat
    from txasynchat.compat.served import LegacyFactory
    from txasynchat.endpoints import parse_server
    from txasynchat.tls import Credentials, ServerOptions

    options = ServerOptions(Credentials(certificate))

    class Echo(AsyncChat):
        terminator = (b"\n", b"\r\n")

        def message_received(self, message):
            self.push(message + b"\n")

    class POP3(Echo):
        """The part of POP3 that the openssl program needs for its -starttls pop3 (RFC 2595)."""

        def handle_connect(self):
            self.push(b"+OK ready\r\n")

        def message_received(self, message):
            if message == b"STLS" and self.tls is None:
                self.push(b"+OK begin\r\n")
                self.start_tls(options)
            else:
                super().message_received(message if self.tls else b"-ERR in the clear")

    class LegacyEcho(async_chat):
        def __init__(self, sock):
            super().__init__(sock)
            self.set_terminator(b"\n")

        def collect_incoming_data(self, data):
            self._collect_incoming_data(data)

        def found_terminator(self):
            self.push(self._get_data().rstrip(b"\r") + b"\n")

    class FacadePOP3(LegacyEcho):
        """The same with its own socket and ``start_tls``."""

        def __init__(self, sock):
            super().__init__(sock)
            self.secure = False
            self.push(b"+OK ready\r\n")

        def found_terminator(self):
            if self.secure:
                super().found_terminator()
            elif self._get_data().rstrip(b"\r") == b"STLS":
                self.push(b"+OK begin\r\n")
                self.secure = True
                start_tls(self, context)

    class FacadeListener(asyncore.dispatcher):
        """Accepts in a map that the reactor drives."""

        def __init__(self, handler, tls):
            super().__init__()
            self.handler = handler
            self.create_socket()
            self.bind(("127.0.0.1", 0))
            self.listen(5, tls=tls)

        def handle_accepted(self, sock, addr):
            self.handler(sock)

    def factory(handler):
        made = Factory.forProtocol(handler)
        made.noisy = False
        return made

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    facade = {
        "facade": FacadeListener(LegacyEcho, context),
        "facade starttls": FacadeListener(FacadePOP3, None),
    }
    reactor.callWhenRunning(attach, asyncore.socket_map, reactor)
    tcp = ("tcp", "0")
    words = {"interface": "127.0.0.1", "certificate": certificate}
    paths = {kind: str(Path(folder, f"{name}-{kind}")) for kind in ("unix", "unix starttls")}
    listening = {
        "tcp": parse_server(reactor, *tcp, **words).listen(factory(Echo)),
        "unix": parse_server(reactor, "unix", paths["unix"], certificate=certificate).listen(
            factory(Echo)
        ),
        "legacy": parse_server(reactor, *tcp, **words).listen(LegacyFactory(LegacyEcho)),
        "starttls": TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory(POP3)),
        "unix starttls": UNIXServerEndpoint(reactor, paths["unix starttls"]).listen(factory(POP3)),
    }
    if name != "private":
        # Twisted's own string, whose TLS is for the global reactor only.
        from twisted.internet.endpoints import serverFromString

        listening["ssl"] = serverFromString(
            reactor, f"ssl:0:privateKey={certificate}:certKey={certificate}:interface=127.0.0.1"
        ).listen(factory(Echo))

    def tell(ports):
        places = {
            kind: paths.get(kind) or port.getHost().port
            for kind, port in zip(listening, ports, strict=True)
        }
        places |= {kind: channel.socket.getsockname()[1] for kind, channel in facade.items()}
        print(json.dumps(places), flush=True)

    def end_with_input():
        sys.stdin.read()
        reactor.callFromThread(reactor.stop)

    gatherResults(listening.values()).addCallbacks(
        tell, lambda why: os._exit(why.printTraceback() or 1)
    )
    threading.Thread(target=end_with_input, daemon=True).start()
    reactor.run(installSignalHandlers=False)
    assert (name == "private") is ("twisted.internet.reactor" not in sys.modules)


if __name__ == "__main__":
    main()
