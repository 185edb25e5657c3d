"""
A server as a program: what it logs when it starts, and how it ends if it cannot start.

`serve` is for a script, `Program` for an application file; ``twistd`` and ``twist`` get theirs from
`txasynchat.twistd`.
"""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

from twisted import logger
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.python import log
from typing_extensions import override

from txasynchat.errors import ListenError
from txasynchat.limits.options import UNSET, Limits
from txasynchat.server import Server
from txasynchat.systemd import service_manager

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.internet.interfaces import IAddress, IStreamServerEndpoint

    from txasynchat.limits.options import Unset
    from txasynchat.listening import Listens
    from txasynchat.server import Serves

__all__ = ["CannotStart", "Program", "serve"]


class CannotStart(SystemExit, Exception):
    """
    The program cannot start: one line on standard error, exit status 1.

    It is an `Exception` too, because ``twistd`` cleans up (its pid file, the process that waits for the
    daemon) only after those. It ends the program as `SystemExit` does, without a traceback.
    """

    def __init__(self, problem: object) -> None:
        super().__init__(f"txasynchat: {problem}")


class Program(Server):
    """
    A `Server` that is a whole program: logs what listens where and how to try it, or ends.

    A service manager that waits for it is told when every endpoint listens, when the program stops, and
    meanwhile that the reactor runs (``Type=notify``, ``WatchdogSec=`` of systemd). All programs of a
    process are one to it. A subclass that overrides `listening` calls ``super()``.

    Args:
        reactor, factory, endpoints, stop_timeout, transport, limits, default_limits: see `Server`.
        proxy_from: networks of proxies; every connection begins with a header of theirs, as behind
            ``proxy:``. *endpoints* are descriptions then.
        what: what is served, in a word or two; by default the name of the handler.
        detached: nobody reads standard error any more; a reason not to start goes to the log.
        announce: print ``listening on PLACE`` on standard output too, a line for each endpoint, once
            signals end the program in order: who started it learns the port from that.

    Raises:
        CannotStart: a description is not an endpoint's; or, from ``startService``, an endpoint cannot
            be listened on.
    """

    _log = logger.Logger()

    def __init__(  # noqa: PLR0913 - four of them by name
        self,
        reactor: Any,
        factory: Serves,
        endpoints: Iterable[str | IStreamServerEndpoint | Listens],
        *,
        what: str = "",
        stop_timeout: float | Unset | None = UNSET,
        detached: bool = False,
        transport: str = "twisted",
        announce: bool = False,
        proxy_from: Iterable[str] = (),
        limits: Limits | None = None,
        default_limits: Limits | None = None,
    ) -> None:
        served = getattr(factory, "handler", factory)
        self.what = what or getattr(served, "__name__", type(served).__name__)
        self.detached = detached
        self.announce = announce
        networks = [proxy_from] if isinstance(proxy_from, str) else list(proxy_from)
        try:
            if networks:
                endpoints = [_behind(networks, each) for each in endpoints]
            super().__init__(
                reactor,
                factory,
                endpoints,
                stop_timeout=stop_timeout,
                transport=transport,
                limits=limits,
                default_limits=default_limits,
            )
        except ListenError as error:
            raise CannotStart(error) from None

    @override
    def privilegedStartService(self) -> None:
        if (manager := service_manager(self.reactor)) is not None:
            manager.expect(self)
        try:
            super().privilegedStartService()
        except ListenError as error:
            # Ports that are already open close in the reactor's next iteration. Without this there
            # would be none, and a Unix socket's file would stay.
            if not self.reactor.running:
                self.reactor.iterate()
            if not self.detached:
                sys.stderr = sys.__stderr__  # the log had replaced it
            raise CannotStart(error) from None

    @override
    def listening(self) -> None:
        if (manager := service_manager(self.reactor)) is not None:
            manager.listens(self)
        for (description, _), port in zip(self._endpoints, self.ports, strict=True):
            address = port.getHost()
            place, hint = _place(address), _hint(description, address)
            self._log.info(
                "txasynchat: {what} on {place}{hint}", what=self.what, place=place, hint=hint
            )
            if self.announce:
                # The reactor installs its signal handlers when it starts to run.
                self.reactor.callWhenRunning(print, "listening on", place, flush=True)

    @override
    def listening_failed(self, error: ListenError) -> None:
        super().listening_failed(error)
        self.reactor.callWhenRunning(self.reactor.stop)


def serve(  # noqa: PLR0913 a whole program in one call
    factory: Serves,
    *endpoints: str | IStreamServerEndpoint | Listens,
    stop_timeout: float | Unset | None = UNSET,
    transport: str = "hub",
    announce: bool = False,
    proxy_from: Iterable[str] = (),
    limits: Limits | None = None,
) -> None:
    """
    Serve until SIGINT or SIGTERM; for a script's last line.

    This runs the global reactor, which cannot run a second time in a process. The log goes to standard
    error, unless the script already logs somewhere: then it goes there. A signal stops it in order
    (`Server.stopService`), and the exit status is 0.

    Args:
        factory: what serves the connections, as `Server` takes it.
        endpoints: what to listen on, as `Server` takes it.
        stop_timeout: see `Server`.
        transport: what carries the connections, as `Server` takes it.
        announce: print ``listening on 127.0.0.1:PORT``, flushed, on standard output, as `Program` does.
        proxy_from: networks of proxies, as `Program` takes them.
        limits: what a peer may take; what it leaves open is as in `Limits.served`.

    Raises:
        CannotStart: an endpoint cannot be listened on; uncaught, it ends the script with one line.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - this starts a program

    loop: Any = reactor
    if not _is_logging():
        observers = [logger.textFileLogObserver(sys.stderr)]
        logger.globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)
    program = Program(
        loop,
        factory,
        endpoints,
        stop_timeout=stop_timeout,
        transport=transport,
        announce=announce,
        proxy_from=proxy_from,
        limits=limits,
        default_limits=Limits.served(),
    )
    program.startService()
    loop.addSystemEventTrigger("before", "shutdown", program.stopService)
    loop.run()


def _behind(networks: list[str], endpoint: Any) -> str:
    from txasynchat.proxy.endpoints import behind_proxies  # noqa: PLC0415 - loaded by those who use it

    if not isinstance(endpoint, str):
        raise CannotStart(
            f"proxy_from is for descriptions; put ProxyServerEndpoint around {endpoint!r:.80}"
        )
    try:
        return behind_proxies(endpoint, networks)
    except ValueError as error:
        raise CannotStart(f"cannot listen on {endpoint!r} for proxies: {error}") from None


def _is_logging() -> bool:
    # Whether logging has begun, or an observer that writes the log somewhere was added.
    temporary = getattr(logger.globalLogBeginner, "_temporaryObserver", logger.globalLogBeginner)
    if temporary is None:
        return True
    for observer in getattr(logger.globalLogPublisher, "_observers", ()):
        # twisted.python.log adds observers as wrapped methods.
        legacy = getattr(getattr(observer, "legacyObserver", None), "__self__", None)
        if isinstance(observer, logger.FileLogObserver | logger.STDLibLogObserver) or isinstance(
            legacy, log.FileLogObserver | log.PythonLoggingObserver
        ):
            return True
    return False


def _place(address: IAddress) -> str:
    if isinstance(address, IPv4Address | IPv6Address):
        return _host_and_port(address.host, address.port)
    if isinstance(address, UNIXAddress) and address.name:
        return address.name.decode("utf-8", "backslashreplace")
    return str(address)


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _hint(description: str, address: IAddress) -> str:
    # How a person may talk to *address*, with a program that this machine has.
    secure = description.startswith(("secure:", "ssl:", "tls:"))
    if re.match("(secure:)*(ha)?proxy:", description):
        return ""  # a person would have to type a header
    if isinstance(address, UNIXAddress) and address.name:
        client = "openssl s_client -quiet -unix" if secure else "nc -U"
        return f"; try: {client} {_place(address)}"
    if not isinstance(address, IPv4Address | IPv6Address):
        return ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - compared, not bound
    place = _host_and_port(host, address.port)
    if secure:
        return f"; try: openssl s_client -quiet -connect {place}"
    if shutil.which("nc") is None and shutil.which("curl") is not None:
        return f"; try: curl -sN telnet://{place}"
    return f"; try: nc {host} {address.port}"
