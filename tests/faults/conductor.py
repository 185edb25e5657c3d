"""
The conductor: starts the server, keeps the clients busy in rounds, and makes trouble meanwhile.

A round is load and then quiet: all clients come to their end, and the server gives an account of
itself. The first round's account is what the later ones are compared with.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

import trustme
from cryptography import x509

from clients import GOOD, Client, Connection, Place, World
from faulty import FAULTS
from ledger import CLIENTS_HELD_UP, SERVER_HELD_UP, Ledger, Windows

if TYPE_CHECKING:
    from collections.abc import Callable

#: What the server's limits are, so short that they all pass.
LIMITS = {
    "first_message": 3.0,
    "idle": 4.0,
    "message": 3.0,
    "minimum_rate": 5_000.0,
    "write_stall": 3.0,
    "stop_timeout": 6.0,
}
HANDSHAKE = 4.0
#: Seconds for which a busy machine may hold up server or clients before that is counted for them.
HELD_UP = 0.7
LONGEST_HELD_UP = 10.0
#: Seconds in which clients come to their end when a round is over.
LULL = 40.0
#: Seconds in which a renewed certificate has to be in use.
RENEWAL = 5.0


class Broken(Exception):
    """The program cannot go on."""


class Server:
    """The server's process, as it is seen from here."""

    def __init__(
        self, folder: str, transport: str, descriptors: int, held_up: Callable[[float], None]
    ) -> None:
        command = [sys.executable, str(Path(__file__).with_name("serving.py"))]
        command += ["--folder", folder, "--transport", transport, "--handshake", str(HANDSHAKE)]
        command += ["--descriptors", str(descriptors), "--limits", json.dumps(LIMITS)]
        command += ["--held-up", str(HELD_UP)]
        self._held_up = held_up
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answers: Queue[dict[str, Any]] = Queue()
        self._stopped: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            if "held up" in answer:
                self._held_up(answer["held up"])
                continue
            (self._stopped if "stopped" in answer else self._answers).put(answer)
        self._answers.put({"error": "the server's process ended"})

    def __call__(self, *command: Any) -> Any:
        """Have it obey, and return its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            answer = self._answers.get(timeout=30)
        except (OSError, Empty) as error:
            raise Broken(f"the server does not answer to {command}: {error!r}") from error
        if "error" in answer:
            raise Broken(f"{command}: {answer['error']}")
        return answer["result"]

    def stopped(self, seconds: float) -> dict[str, Any] | None:
        """Wait until a listener has stopped."""
        try:
            return self._stopped.get(timeout=seconds)
        except Empty:
            return None

    def end(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


class Slot(threading.Thread):
    """One client after another, while a round lasts; which, and what it does, *seed* decides."""

    def __init__(self, conductor: Conductor, number: int) -> None:
        super().__init__(name=f"slot {number}", daemon=True)
        self.conductor = conductor
        self.rng = random.Random(f"{conductor.seed}/{number}")
        self.client: Client | None = None

    def run(self) -> None:
        conductor, rng = self.conductor, self.rng
        choices = [*GOOD, *FAULTS]
        weights = [one.weight for one in choices]
        while not conductor.over:
            conductor.going.wait()
            time.sleep(rng.uniform(0, 2.0))
            while conductor.going.is_set():
                kind = rng.choices(choices, weights)[0]
                self.client = client = kind(conductor.world, random.Random(rng.random()))
                try:
                    client.live()
                except Exception as error:  # noqa: BLE001 it is reported
                    what = f"the client {client.name} broke: {type(error).__name__}: {error}"
                    conductor.ledger.mistake(what)
                self.client = client = None
                time.sleep(rng.uniform(0.05, 0.8))
            conductor.rested(self)


class Conductor:
    """A whole run; *wrong* in its ledger, and the accounts, are what is left of it."""

    def __init__(self, options: Any, folder: str) -> None:
        self.options = options
        self.seed: int = options.seed
        self.folder = Path(folder)
        self.rng = random.Random(self.seed)
        self.ledger = Ledger()
        self.windows = Windows()
        self.going = threading.Event()
        self.over = False
        self.accounts: list[dict[str, Any]] = []
        self.renewals: list[float] = []
        self.drains: list[float] = []
        self.eaten = 0
        self._resting: set[Slot] = set()
        self._rested = threading.Condition()
        self._authority = trustme.CA()

    # -- called by the slots

    def rested(self, slot: Slot) -> None:
        """A slot has come to its end; it waits for the next round."""
        with self._rested:
            self._resting.add(slot)
            self._rested.notify_all()
            while not (self.over or self.going.is_set()):
                self._rested.wait(1.0)

    # -- a run

    def run(self) -> None:
        """Do everything."""
        self._write_certificate(slowly=False)
        contexts = []
        for version in ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2:
            context = ssl.create_default_context()
            context.maximum_version = version
            self._authority.configure_trust(context)
            contexts.append(context)
        server = Server(
            str(self.folder),
            self.options.transport,
            int(self.options.clients * 1.5) + 150,
            self._server_held_up,
        )
        try:
            ports = server("listen")
            self.world = World(
                [Place(*one) for one in ports.items()],
                LIMITS | {"handshake": HANDSHAKE, "now": 0.0, "linger": 3.0},
                self.options.slack,
                self.ledger,
                self.windows,
                contexts,
            )
            self._run_rounds(server)
        finally:
            self.over = True
            self.going.set()
            server.end()

    def _server_held_up(self, seconds: float) -> None:
        began = time.monotonic() - seconds
        self.windows.close(self.windows.open(SERVER_HELD_UP, began=began))
        self.ledger.count("times that the server was held up")
        if seconds > LONGEST_HELD_UP:
            self.ledger.mistake(f"the server was held up for {seconds:.1f} s")

    def _watch_the_clock(self) -> None:
        """Notice when this process is held up, so that clients which keep the rules seem not to."""
        last = time.monotonic()
        while not self.over:
            time.sleep(0.1)
            now = time.monotonic()
            if now - last > 0.1 + HELD_UP:
                self.windows.close(self.windows.open(CLIENTS_HELD_UP, began=last))
                self.ledger.count("times that the clients were held up")
            last = now

    def _run_rounds(self, server: Server) -> None:
        slots = [Slot(self, number) for number in range(self.options.clients)]
        for slot in slots:
            slot.start()
        threading.Thread(target=self._watch_the_clock, daemon=True).start()
        began = time.monotonic()
        seconds = self.options.seconds
        rounds = max(2, round(seconds / (60 if seconds > 600 else 33)))
        for number in range(rounds):
            length = (began + seconds - time.monotonic()) / (rounds - number)
            self._round(server, slots, length)
            self._print_account(number, time.monotonic() - began)

    def _round(self, server: Server, slots: list[Slot], length: float) -> None:
        # The quiet takes as long as the longest limit that is waited for.
        load = max(10.0, length - 9.0)
        until = time.monotonic() + load
        with self._rested:
            self._resting.clear()
        self.going.set()
        try:
            troubles = [
                (0.25, self._run_out),
                (0.35, self._spoil),
                (0.45, self._renew),
                (0.55, self._drain),
                (0.75, self._drain),
            ]
            for part, trouble in troubles:
                time.sleep(max(0.0, until - load * (1 - part) - time.monotonic()))
                trouble(server)
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            self.going.clear()
        deadline = time.monotonic() + LULL
        with self._rested:
            while len(self._resting) < len(slots) and time.monotonic() < deadline:
                self._rested.wait(1.0)
            late = [one.client for one in slots if one not in self._resting]
        for client in late:
            if client is not None:
                self.ledger.mistake(f"{client.name} to {client.place.name} did not come to its end")
        self.accounts.append(self._account(server))

    def _account(self, server: Server) -> dict[str, Any]:
        """Return the server's account, once its last connections are gone; they have limits too."""
        deadline = time.monotonic() + 12
        while True:
            account: dict[str, Any] = server("look")
            if not (any(account["connections"].values()) or account["live"]) or (
                time.monotonic() > deadline
            ):
                return account
            time.sleep(0.5)

    # -- troubles

    def _run_out(self, server: Server) -> None:
        """Take every descriptor, for a while."""
        window = self.windows.open("no descriptors")
        self.eaten = max(self.eaten, server("eat"))
        time.sleep(0.7)
        server("eat")  # those that were closed since
        time.sleep(0.8)
        server("free")
        self.windows.close(window)
        self.ledger.count("times without descriptors")

    def _spoil(self, server: Server) -> None:
        """Let the handlers of a listener's kind raise when they are built, for a while."""
        kind = self.rng.choice(self.world.places).kind
        windows = [
            self.windows.open("no handlers", one.name)
            for one in self.world.places
            if one.kind == kind
        ]
        server("spoil", kind)
        time.sleep(0.5)
        server("spoil", None)
        for window in windows:
            self.windows.close(window)

    def _renew(self, server: Server) -> None:
        """Renew the certificate; half of it is there first."""
        began = time.monotonic()
        serial = self._write_certificate(slowly=True)
        place = next(one for one in self.world.places if one.secure)
        while time.monotonic() < began + RENEWAL:
            try:
                connection = Connection(self.world, place)
                try:
                    connection.shake_hands(self.world.contexts[0])
                    found = connection.sock.getpeercert()["serialNumber"]
                finally:
                    connection.close()
            except OSError as error:
                self.ledger.mistake(f"no handshake during a renewal: {error}")
                return
            if int(found, 16) == serial:
                self.renewals.append(time.monotonic() - began)
                return
            time.sleep(0.1)
        self.ledger.mistake(f"a renewed certificate was not in use after {RENEWAL} s")

    def _write_certificate(self, *, slowly: bool) -> int:
        leaf = self._authority.issue_cert("localhost")
        chain = b"".join(one.bytes() for one in leaf.cert_chain_pems)
        pem = self.folder / "server.pem"
        if slowly:
            pem.write_bytes(chain[: len(chain) // 3])
            time.sleep(0.3)
        pem.write_bytes(chain)
        if slowly:
            time.sleep(0.3)
        (self.folder / "server.key").write_bytes(leaf.private_key_pem.bytes())
        return x509.load_pem_x509_certificate(chain).serial_number

    def _drain(self, server: Server) -> None:
        """Stop a listener, and let it come back."""
        place = self.rng.choice(self.world.places)
        window = self.windows.open("stop", place.name)
        server("stop", place.name)
        allowed = LIMITS["stop_timeout"] + 3.0
        answer = server.stopped(allowed + 10)
        if answer is None:
            self.ledger.mistake(f"{place.name} did not stop within {allowed + 10:.0f} s")
            return
        self.ledger.kept(f"a stop of {place.name}", "stop_timeout", answer["seconds"], allowed)
        self.drains.append(answer["seconds"])
        try:
            socket.create_connection(("127.0.0.1", place.port), 1).close()
        except OSError:
            pass
        else:
            self.ledger.mistake(f"{place.name} still accepts after its stop")
        server("start", place.name)
        self.windows.close(window)

    def _print_account(self, number: int, seconds: float) -> None:
        account, ledger = self.accounts[-1], self.ledger
        live = sum(account["live"].values())
        print(
            f"round {number + 1:3}  {seconds:5.0f} s  {account['KiB'] / 1024:6.1f} MiB"
            f"  {account['descriptors']} descriptors  {account['objects']:,} objects"
            f"  {live} of connections  {ledger.requests:,} answers"
            f"  {sum(ledger.wrong.values())} wrong  lag {account['lag']:.2f} s",
            flush=True,
        )
        for what, detail in ledger.news() + [(one, "") for one in account["wrong"]][:5]:
            print(f"    {what[:500]}\n        {detail}", flush=True)
