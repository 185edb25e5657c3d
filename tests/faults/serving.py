"""
The server, in a process of its own: six listeners, with and without TLS, and an account of itself.

It is told what to do in lines of JSON on its standard input, and answers each on its standard output.
Neither needs a descriptor, so it can be asked while none is left.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import resource
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import LogLevel, formatEvent, globalLogBeginner

import handlers
from txasynchat import AsyncChat, ChatFactory, Limits, Server
from txasynchat.compat import asyncore
from txasynchat.compat.served import LegacyFactory
from txasynchat.hub.transport import Connection
from txasynchat.limits.deadlines import Deadlines
from txasynchat.tls.transport import TLSTransport

#: Kinds of objects of which there is one or more for each connection.
KINDS = (AsyncChat, asyncore.dispatcher, handlers.Ordinary, Connection, TLSTransport, Deadlines)


def factories(limits):
    return {
        "native": lambda: ChatFactory(handlers.Native),
        "legacy": lambda: LegacyFactory(
            handlers.Legacy, limits=limits, on_timeout=handlers.legacy_timeout
        ),
        "ordinary": lambda: Factory.forProtocol(handlers.Ordinary),
    }


class Log:
    """Counts what the library logs; what is an error and not deliberate is kept."""

    def __init__(self, file):
        self.file = file
        self.lines = 0

    def __call__(self, event):
        self.lines += 1
        failure = event.get("log_failure") or event.get(
            "failure"
        )  # the latter of Twisted's old log
        with suppress(ValueError):
            level = event["log_level"].name
            self.file.write(f"{time.strftime('%X')} {level} {formatEvent(event)}\n")
        error = None if failure is None else failure.value
        if isinstance(error, handlers.Deliberate) or isinstance(
            getattr(error, "__cause__", None), handlers.Deliberate
        ):
            handlers.counts["deliberate failures logged"] += 1
        elif failure is not None or event["log_level"] >= LogLevel.error:
            trace = failure.getTraceback() if failure is not None else ""
            with suppress(ValueError):
                self.file.write(trace)
            handlers.wrong[f"logged: {formatEvent(event)}\n{trace}"] += 1


class Serving:
    """What the server can be told to do; each method of a public name is a command."""

    def __init__(self, options):
        self.options = options
        self.limits = Limits(**json.loads(options.limits))
        self.servers = {}
        self.ports = {}
        self.eaten = []
        self.lag = 0.0
        self._random = random.Random()
        self._ticked = time.monotonic()
        LoopingCall(self._tick).start(0.05)

    def _tick(self):
        now = time.monotonic()
        lag = now - self._ticked - 0.05
        self.lag = max(self.lag, lag)
        if lag > self.options.held_up:
            _say({"held up": lag})
        self._ticked = now

    def listen(self):
        """Start every listener; return their ports."""
        for kind, make in factories(self.limits).items():
            for secure in (False, True):
                self._listen(f"{kind} {'TLS' if secure else 'plain'}", make(), secure)
        return self.ports

    def _listen(self, name, factory, secure):
        port = self._free_port()
        endpoint = f"tcp:{port}:interface=127.0.0.1:backlog=1000"
        if secure:
            folder = self.options.folder
            endpoint = f"secure:{endpoint}:certificate={folder}/server.pem:key={folder}/server.key"
            endpoint += f":reload=0.2:handshake_timeout={self.options.handshake}:close_timeout=2"
        server = Server(
            reactor, factory, [endpoint], transport=self.options.transport, limits=self.limits
        )
        server.startService()
        self.servers[name], self.ports[name] = server, port

    def _free_port(self):
        # Not one of those that the system gives to connections: these could have it while the listener
        # that is to come back is away.
        while True:
            port = self._random.randrange(15_000, 30_000)
            with suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                return port

    def stop(self, name):
        """Begin to stop a listener."""
        server = self.servers[name]
        began = time.monotonic()
        server.stopService().addCallback(lambda _: self._stopped(name, began))

    def _stopped(self, name, began):
        handlers.counts["listeners drained"] += 1
        _say({"stopped": name, "seconds": time.monotonic() - began})

    def start(self, name):
        """Let a stopped listener come back, on its port."""
        self.servers[name].startService()

    def spoil(self, kind):
        """Let no handler of a kind be built, until the next call without one."""
        handlers.unbuildable.clear()
        handlers.unbuildable.update(filter(None, [kind]))

    def eat(self):
        """Open files until no descriptor is left; return how many it took."""
        with suppress(OSError):
            while True:
                self.eaten.append(os.open(os.devnull, os.O_RDONLY))
        return len(self.eaten)

    def free(self):
        """Close them again."""
        while self.eaten:
            os.close(self.eaten.pop())

    def look(self):
        """Give an account: memory, descriptors, objects, counters."""
        for _ in range(3):
            gc.collect()
        objects = gc.get_objects()
        live = Counter()
        for each in objects:
            if isinstance(each, KINDS):
                live[type(each).__name__] += 1
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        lag, self.lag = self.lag, 0.0
        self._ticked = time.monotonic()
        status = Path("/proc/self/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return {
            "KiB": rss,
            "descriptors": len(os.listdir("/proc/self/fd")) - 1,
            "objects": len(objects),
            "live": dict(live),
            "connections": {name: len(one.connections) for name, one in self.servers.items()},
            "left": [repr(each)[:300] for each in objects if isinstance(each, KINDS)][:5],
            "channels": len(asyncore.socket_map),
            "calls": len(reactor.getDelayedCalls()),
            "threads": threading.active_count(),
            "lag": lag,
            "seconds of CPU": time.process_time(),
            "counts": dict(handlers.counts),
            "wrong": dict(handlers.wrong),
        }

    def end(self):
        """End the process."""
        reactor.callLater(0, reactor.stop)


#: What a legacy handler prints is none of the answers.
_answers, sys.stdout = sys.stdout, sys.stderr


def _say(answer):
    _answers.write(json.dumps(answer) + "\n")
    _answers.flush()


def _hear(serving):
    """Read commands, in a thread: standard input need not be a descriptor of the reactor's."""
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        reactor.callFromThread(_obey, serving, command, arguments)
    reactor.callFromThread(serving.end)


def _obey(serving, command, arguments):
    try:
        result = getattr(serving, command)(*arguments)
    except Exception as error:  # noqa: BLE001 it is reported
        _say({"to": command, "error": f"{type(error).__name__}: {error}"})
    else:
        _say({"to": command, "result": result})


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--transport", default="hub")
    parser.add_argument("--descriptors", type=int, required=True)
    parser.add_argument("--limits", required=True)
    parser.add_argument("--handshake", type=float, required=True)
    parser.add_argument("--held-up", type=float, required=True)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (options.descriptors, hard))
    with Path(options.folder, "server.log").open("w", buffering=1) as file:
        globalLogBeginner.beginLoggingTo([Log(file)], redirectStandardIO=False)
        serving = Serving(options)
        threading.Thread(target=_hear, args=(serving,), daemon=True).start()
        reactor.run()


if __name__ == "__main__":
    main()
