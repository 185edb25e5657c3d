"""
The command line: ``twistd asynchat``, and ``twist asynchat``.

Every mistake ends the program with one line that says what to change (`CannotStart`).
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import MultiService
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.logger import ILogObserver, Logger, textFileLogObserver
from twisted.python import usage
from typing_extensions import override

from txasynchat.compat import install
from txasynchat.compat._install import what_brings_back
from txasynchat.errors import ConfigurationError
from txasynchat.functions import is_function
from txasynchat.handlers import Hears, hears, is_legacy, wanted
from txasynchat.limits.file import read_limits
from txasynchat.limits.options import UNSET, Limits, parse
from txasynchat.logformat import event_as_json, json_observer
from txasynchat.program import CannotStart, Program
from txasynchat.protocol import AsyncChat
from txasynchat.ranges import STOPPING, Range
from txasynchat.server import TRANSPORTS, ChatFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["LineEcho", "Options", "load_factory", "makeService"]

ENDPOINT = "tcp:8007:interface=127.0.0.1"

LOG_FORMATS = ("text", "json")

# An AsyncChat that takes messages overrides one of these.
_HOOKS = ("message_received", "found_terminator", "collect_incoming_data", "dataReceived")
_log = Logger()

EXAMPLES = """
Examples:
  twistd -n asynchat
      line echo on 127.0.0.1:8007, in the foreground

  twistd -n asynchat --handler chat:User --listen tcp:4000 --listen unix:chat.sock
      class User of chat.py (an AsyncChat, a Twisted protocol, or an unmodified
      asynchat.async_chat) on all addresses and on a Unix socket

  twistd -n asynchat --listen secure:tcp:4433:certificate=cert.pem:key=key.pem
      line echo over TLS; ssl: and tls: are understood too

  twistd -n asynchat --listen systemd:domain=INET:index=0
      line echo on the socket that systemd has opened

In an endpoint a colon ends an argument; write \\: for one inside.
"""


class LineEcho(AsyncChat):
    """The default handler: sends each line back with its own terminator."""

    terminator = (b"\n", b"\r\n")

    @override
    def message_received(self, message: bytes) -> None:
        self.push(message + self.matched_terminator)


#: Like `max_message_length`, with 0 for None.
_LENGTHS = Range(0, whole=True)


class Options(usage.Options):
    """The options of ``twistd asynchat``."""

    synopsis = "[--handler MODULE:NAME] [--listen ENDPOINT]..."
    longdesc = "Serve asynchat-style line and frame protocols on any Twisted endpoint."

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Twisted's, untyped
        self.update(handler=None, listen=[], transport="hub", config=None)
        self["proxy-from"] = []
        self["log-format"] = None
        #: Of the command line: the values, and the option that gave each.
        self.limits: dict[str, Any] = {}
        self._given_by: dict[str, str] = {}

    # What --help shows of these is their docstrings.

    def opt_handler(self, name: str) -> None:
        """
        MODULE:NAME of what serves a connection: a class, an async function of a stream, or a factory,
        in a module that can be imported (from the current directory too). [default: line echo]
        """
        self["handler"] = name

    def opt_listen(self, endpoint: str) -> None:
        """
        Where to listen: a Twisted endpoint, such as tcp:, unix:, secure:, systemd:. May be repeated.
        [default: tcp:8007:interface=127.0.0.1]
        """
        self["listen"].append(endpoint)

    def opt_transport(self, name: str) -> None:
        """What carries the connections: hub, which costs less, or twisted. [default: hub]"""
        if name not in TRANSPORTS:
            raise CannotStart(f"--transport must be {' or '.join(TRANSPORTS)}, not {name!r}")
        self["transport"] = name

    def opt_proxy_from(self, network: str) -> None:
        """
        NETWORK that proxies connect from, such as 10.0.0.0/8, or unix: each connection begins with
        their PROXY header, and others are refused. May be repeated.
        """
        self["proxy-from"].append(network)

    def opt_limit(self, text: str) -> None:
        """
        NAME=VALUE: what a peer may take, in seconds, bytes or bytes a second; none switches a limit
        off. May be repeated. Names are those of Limits, such as idle, first_message, write_stall.
        [default: on, see the documentation]
        """
        try:
            name, value = parse(text)
        except ValueError as error:
            raise CannotStart(f"--limit {error}") from None
        self._limit(f"--limit {name}=", name, value)

    def opt_config(self, path: str) -> None:
        """FILE in TOML, whose table [limits] has what --limit takes; --limit comes before it."""
        if self["config"] is not None:
            raise CannotStart("--config may be given once")
        try:
            self["config"] = read_limits(path)
        except ConfigurationError as error:
            raise CannotStart(f"--config {error}") from None

    def opt_log_format(self, name: str) -> None:
        """
        What the log is written as: text, or json, an object in each line. [default: text; twist has an
        option of its own]
        """
        if name not in LOG_FORMATS:
            raise CannotStart(f"--log-format must be {' or '.join(LOG_FORMATS)}, not {name!r}")
        self["log-format"] = name

    def opt_max_message_length(self, count: str) -> None:
        """
        --limit max_message_length=COUNT, with 0 for none. [default: what the handler says, or 16384]
        """
        value = _number("max-message-length", count, _LENGTHS)
        self._limit("--max-message-length", "max_message_length", value or None)

    def opt_stop_timeout(self, seconds: str) -> None:
        """--limit stop_timeout=SECONDS, that connections have to finish at the end. [default: 15]"""
        self._limit("--stop-timeout", "stop_timeout", _number("stop-timeout", seconds, STOPPING))

    def _limit(self, option: str, name: str, value: Any) -> None:
        before = self._given_by.setdefault(name, option)
        if before != option:
            raise CannotStart(f"{before} and {option} are the same limit; give one of them")
        self.limits[name] = value

    @override
    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        # A mistake is reported in one line, not below a page of help.
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call] # Twisted's, untyped
        except usage.UsageError as error:
            raise CannotStart(f"{error} (--help lists the options)") from None

    @override
    def getUsage(self, width: int | None = None) -> str:
        return f"{super().getUsage(width)}{EXAMPLES}"  # which may not be wrapped


def makeService(options: Options) -> Program | _Logged:  # noqa: N802 - ServiceMaker looks for this name
    """
    Make the service that ``twistd`` or ``twist`` runs, on its reactor.

    Raises:
        CannotStart: an option has a value that cannot be used.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - installed by now

    # Only twistd has this option, and daemonizes without it.
    parent: Any = options.parent or {}
    detached = not parent.get("nodaemon", True)
    name = options["handler"]
    limits = Limits(**options.limits).over(options["config"])
    program = Program(
        reactor,
        load_factory(name, max_message_length=limits.max_message_length is not UNSET),
        options["listen"] or [ENDPOINT],
        what=name or "echo",
        detached=detached,
        transport=options["transport"],
        proxy_from=options["proxy-from"],
        limits=limits,
        default_limits=Limits.served(),
    )
    observer = _log_observer(options["log-format"], parent)
    return program if observer is None else _Logged(program, observer)


class _Logged(MultiService):
    """
    A program for ``twistd``, and what that is to log with.

    Args:
        program: the program.
        observer: an observer of `twisted.logger`.
    """

    def __init__(self, program: Program, observer: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Twisted's, untyped
        program.setServiceParent(self)  # type: ignore[no-untyped-call] # as above
        self._observer = observer

    @override
    def setServiceParent(self, parent: Any) -> None:
        super().setServiceParent(parent)  # type: ignore[no-untyped-call] # as above
        # An application's own observer comes before what twistd would make.
        parent.setComponent(ILogObserver, self._observer)


def _log_observer(name: str | None, parent: Any) -> Any:
    """
    Have the log written in the format of that *name*.

    Args:
        name: of the format; None if the option was not given.
        parent: the options of ``twistd`` or ``twist``.

    Returns:
        What ``twistd`` is to log with; None for its own observer.

    Raises:
        CannotStart: something else writes the log.
    """
    if name is None:
        return None
    if "fileLogObserverFactory" in parent:  # those of twist
        if name != parent["logFormat"]:
            _log.info(
                "txasynchat: the log is {ours}, by --log-format of asynchat; twist's own was {theirs}",
                ours=name,
                theirs=parent["logFormat"],
            )
        parent["fileLogObserverFactory"] = json_observer if name == "json" else textFileLogObserver
        return None
    for option in ("logger", "syslog"):
        if parent.get(option):
            raise CannotStart(
                f"--log-format {name} is for a log file or standard output, and twistd's --{option} "
                "writes the log another way; leave one of them out"
            )
    if name == "text":
        return None
    from twisted.scripts import twistd  # noqa: PLC0415 - it is loaded by now

    command: Any = twistd
    # The file, its rotation, and standard output stay twistd's; only the lines do not.
    observer = command._SomeApplicationRunner.loggerFactory(parent)._getLogObserver()
    observer.formatEvent = event_as_json
    return observer


def load_factory(name: str | None, *, max_message_length: bool = False) -> Any:
    """
    Import a handler and make the factory that serves it.

    ``asyncore`` and ``asynchat`` are installed first, for modules that import them.

    Args:
        name: ``module:name`` of a handler class (`AsyncChat`, any Twisted protocol, a legacy
            ``async_chat`` or ``dispatcher``), of a handler function (``async def handle(stream)``), of
            a factory, or of something that returns a factory when called; None for line echo.
        max_message_length: there is a limit of that name, which only an `AsyncChat` can have.

    Raises:
        CannotStart: *name* cannot be imported, or is none of these.
    """
    found: Any = LineEcho if name is None else _import(name)
    if is_function(found):
        return _serve(ChatFactory, found, name)
    is_native = isinstance(found, type) and issubclass(found, AsyncChat)
    if max_message_length and not is_native:
        raise CannotStart(f"max_message_length is for AsyncChat handlers, which {name} is not")
    if name is None or (isinstance(found, type) and IProtocol.implementedBy(found)):
        factory = _serve(ChatFactory, found, name)
        if is_native:
            answer = hears(found, AsyncChat, _HOOKS)
            # A handler without a terminator that only sends is as it should be.
            if answer is not Hears.NO or found.terminator:
                _check_takes_data(answer, name, _HOOKS)
        return factory
    if is_legacy(found):
        return _serve_legacy(found, name)
    if IProtocolFactory.providedBy(found):
        return found
    if callable(found):
        made = _call(found, name)
        if IProtocolFactory.providedBy(made):
            return made
    raise CannotStart(
        f"{name} is {found!r}, neither a handler class (AsyncChat, a Twisted protocol, a legacy "
        "async_chat) nor a factory"
    )


def _serve(make: Callable[[Any], Any], handler: Any, name: str | None) -> Any:
    # If the constructor wants arguments, the error has the factory to write.
    try:
        return make(handler)
    except TypeError as error:
        what, write, example = str(error).rpartition("; write ")
        if not write:
            raise CannotStart(f"{name}: {error}") from None
        module = str(name).partition(":")[0]
        remedy = f"write --handler {module}:factory, and in that module factory = {example}"
        raise CannotStart(f"{name}: {what}; {remedy}") from None


def _serve_legacy(handler: type, name: str) -> Any:
    from txasynchat.compat import asyncore  # noqa: PLC0415 - loaded by those who use it
    from txasynchat.compat.served import LegacyFactory, takes_data  # noqa: PLC0415 - see above

    if not issubclass(handler, asyncore.dispatcher):
        theirs = next(one for one in handler.__mro__ if one.__name__ == "dispatcher").__module__
        raise CannotStart(
            f"{name} is made from the dispatcher of {theirs}, which does not run on Twisted; "
            "import asyncore and asynchat by their own names"
        )
    factory = _serve(LegacyFactory, handler, name)
    is_chat = hasattr(handler, "found_terminator")
    hooks = ["collect_incoming_data", "found_terminator"] if is_chat else ["handle_read"]
    _check_takes_data(takes_data(handler), name, hooks)
    return factory


def _check_takes_data(answer: Hears, name: str | None, hooks: Sequence[str]) -> None:
    either = " nor ".join(hooks[:2])
    what = f"{name} overrides {'neither' if 'nor' in either else 'no'} {either}"
    if answer is Hears.USELESS:
        raise CannotStart(f"{what}, and does nothing else either; give it such a method")
    if answer is Hears.NO:
        _log.warn("txasynchat: {what}, so it ignores what it is sent", what=what)


def _call(function: Callable[[], Any], name: str) -> Any:
    if (want := wanted(function, (), {})) is not None:
        short = name.partition(":")[2]
        raise CannotStart(
            f"{name} wants {want}, but --handler calls a function without arguments, to get a "
            f"factory; if it makes legacy handlers, write factory = LegacyFactory(build={short})"
        )
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - it is the user's, and is told
        raise CannotStart(f"{name}() raised {_what_and_where(error)}") from None


def _import(name: str) -> Any:
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise CannotStart(f"--handler {name!r}: write it as package.module:Class")
    # Python searches the folder of the twistd script, and not the current one.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        install()
        found = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - it is the user's, and is told
        told = what_brings_back(error)
        more = f"; {told}" if told else ""
        raise CannotStart(f"cannot import {module_name}: {_what_and_where(error)}{more}") from None
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise CannotStart(f"module {module_name} has no {path!r}") from None
    return found


def _what_and_where(error: Exception) -> str:
    # In one line, with the place in the user's file that raised it.
    notes = sum(str(note).count("\n") + 1 for note in getattr(error, "__notes__", ()))
    what = " ".join(traceback.format_exception_only(error)[-1 - notes].split())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        return f"{what} ({error.filename}, line {error.lineno})"
    own = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    if own and own[-1].filename not in (__file__, importlib.__file__):
        return f"{what} ({own[-1].filename}, line {own[-1].lineno})"
    return what


def _number(option: str, text: str, range_: Range) -> Any:
    try:
        return range_.parse(f"--{option}", text)
    except ValueError as error:
        raise CannotStart(str(error)) from None
