"""
Many members of one `Broadcast`, of which some never read.

    python tests/helpers/broadcast.py --members 1000 --silent 10 --seconds 20 [--tls]

Every member gets a megabyte a second. Says as JSON whether those who read got every byte in order, how
much memory the server took, and what became of the others. The members are in a process of their own.
"""

import argparse
import json
import resource
import selectors
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

SIZE = 65_536
RATE = 1 << 20
ROOM = 1 << 20


def message(number):
    """Return the message with that number; each is different."""
    return number.to_bytes(8, "big") * (SIZE // 8)


# -- the members: python broadcast.py read PORT MEMBERS SILENT CERTIFICATE


def read(port, members, silent, certificate):
    """Print the count and the checksum of what each of those who read got, when all has ended."""
    context = None
    if certificate:
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
    selector = selectors.DefaultSelector()
    kept = []
    for number in range(members):
        sock = socket.socket()
        if number < silent:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.connect(("127.0.0.1", port))
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname="localhost")
        if number < silent:
            kept.append(sock)
        else:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, [0, 0])
    print("ready", flush=True)
    room = memoryview(bytearray(1 << 20))
    results = []
    while selector.get_map():
        for key, _ in selector.select():
            try:
                count = key.fileobj.recv_into(room)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            key.data[0] += count
            key.data[1] = zlib.crc32(room[:count], key.data[1])
            if not count:
                results.append(key.data)
                selector.unregister(key.fileobj)
                key.fileobj.close()
    print(json.dumps(results), flush=True)
    sys.stdin.read()  # the silent ones stay until the server has seen enough
    for sock in kept:
        sock.close()


# -- the server


def start_readers(words):
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve(options):
    """Run it, and print what there is to say."""
    from twisted.internet import defer, reactor, task
    from twisted.internet.endpoints import serverFromString
    from twisted.internet.threads import deferToThread

    from txasynchat import AsyncChat, Broadcast, ChatFactory, Slow

    room = Broadcast(slow=Slow[options.slow], limit=ROOM)
    everybody = []
    for_all = defer.Deferred()

    class Member(AsyncChat):
        close_timeout = 1.0

        def handle_connect(self):
            everybody.append(self)
            room.add(self)
            if len(everybody) == options.members:
                for_all.callback(None)

        def handle_end(self, reason):
            room.discard(self)

    count = options.seconds * RATE // SIZE
    said = {}

    async def run():
        with tempfile.TemporaryDirectory() as folder:
            certificate = ""
            endpoint = "tcp:0:interface=127.0.0.1:backlog=2000"
            if options.tls:
                import trustme

                authority = trustme.CA()
                certificate = Path(folder, "authority.pem")
                authority.cert_pem.write_to_path(certificate)
                server = Path(folder, "server.pem")
                authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
                    server
                )
                endpoint = f"secure:{endpoint}:certificate={server}"
            listening = serverFromString(reactor, endpoint)
            port = await listening.listen(ChatFactory(Member))
            words = ["read", port.getHost().port, options.members, options.silent, certificate]
            readers = start_readers(words)
            try:
                await deferToThread(readers.stdout.readline)
                await for_all
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                begun = time.monotonic()
                cpu = time.process_time()
                late = 0.0
                for number in range(count):
                    room.send(message(number))
                    if options.by_clock:
                        left = begun + (number + 1) * SIZE / RATE - time.monotonic()
                        late = max(late, -left)
                        await task.deferLater(reactor, max(0, left), lambda: None)
                    else:
                        await defer.gatherResults(
                            [chat.drained() for chat in everybody[options.silent :]]
                        )
                        await task.deferLater(reactor, 0, lambda: None)
                    busy = sum(chat.unsent > 0 for chat in everybody)
                    said["most_waiting"] = max(said.get("most_waiting", 0), busy)
                said["seconds"] = round(time.monotonic() - begun, 1)
                said["cpu"] = round(time.process_time() - cpu, 1)
                said["late"] = round(late, 2)
                said["grown_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                said["waiting"] = max(chat.unsent for chat in everybody)
                for chat in everybody:
                    chat.close()
                results = json.loads(await deferToThread(readers.stdout.readline))
            finally:
                readers.stdin.close()
                readers.kill()
                readers.wait()
                readers.stdout.close()
            await port.stopListening()
            for chat in everybody:
                chat.abort()
        checksum = 0
        for number in range(count):
            checksum = zlib.crc32(message(number), checksum)
        whole = [count * SIZE, checksum]
        said["complete"] = sum(result == whole for result in results)
        said["readers"] = options.members - options.silent
        names = "sent", "skipped", "dropped", "coalesced", "disconnected"
        said["counts"] = {name: getattr(room, name) for name in names}
        print(json.dumps(said), flush=True)

    task.react(lambda _: defer.ensureDeferred(run()))


def main():
    parser = argparse.ArgumentParser(description="Broadcast to many, of whom some never read.")
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--silent", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=20, help="megabytes, without --by-clock")
    parser.add_argument("--slow", default="SKIP", help="the name of a Slow")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument(
        "--by-clock", action="store_true", help="a megabyte a second, come what may"
    )
    serve(parser.parse_args())


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        read(*map(int, sys.argv[2:5]), sys.argv[5])
    else:
        main()
