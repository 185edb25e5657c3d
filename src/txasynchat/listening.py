r"""
Endpoints from their descriptions, and one sentence for each way in which that, or listening, fails:
what happened, the value, and what to write instead. Twisted's words are kept where they are clear.

A Unix socket that systemd opened belongs to systemd, which passes it to the next start, too. When the
server stops, the socket keeps listening and its file stays; the file's mode is never changed.

Nothing here knows what is served, or what a word of a ``secure:`` string means; `endpoints` does.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet import unix
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    quoteStringArgument,
    serverFromString,
)
from twisted.internet.error import AlreadyListened

from txasynchat.errors import CredentialsError, ListenError
from txasynchat.transports import Lent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint

__all__ = ["Listens", "make_endpoint", "parse", "split", "unlock", "why"]

# What an endpoint of each kind looks like.
_FORMS = {
    "tcp": "tcp:4000:interface=127.0.0.1",
    "tcp6": r"tcp6:4000:interface=\:\:1",
    "unix": "unix:chat.sock:mode=660",
    "ssl": "ssl:4433:privateKey=key.pem:certKey=cert.pem",
    "systemd": "systemd:domain=INET:index=0",
}
# Prefixes of another endpoint's description.
_AROUND = re.compile(r"((secure|haproxy|proxy|hub):)*")


class Listens(Protocol):
    """
    An endpoint, for type checkers that do not know that a class implements `IStreamServerEndpoint`.
    """

    def listen(self, protocolFactory: Any, /) -> Any: ...  # noqa: D102, N803 - Twisted's


def make_endpoint(reactor: Any, endpoint: Any, *, hub: bool = False) -> IStreamServerEndpoint:
    """
    Return *endpoint*, or make it from its description.

    Args:
        reactor: listens.
        endpoint: an endpoint, or the description of one.
        hub: have `hub` serve what is described, where it can.

    Raises:
        ListenError: it is a description, but not of an endpoint.
        TypeError: it is neither a description nor an endpoint.
    """
    if isinstance(endpoint, str):
        try:
            return parse(reactor, _on_hub(endpoint) if hub else endpoint)
        except Exception as error:
            # Each kind of endpoint has exceptions of its own for bad arguments.
            raise ListenError(endpoint, error, why(endpoint, error)) from error
    if not callable(getattr(endpoint, "listen", None)):
        port, host = endpoint, "127.0.0.1"
        if isinstance(endpoint, tuple) and len(endpoint) == 2:
            host, port = endpoint
        example = _tcp(host, port if isinstance(port, int) else 8007)
        raise TypeError(f"{endpoint!r} is not an endpoint; write {example!r}")
    return endpoint  # type: ignore[no-any-return] # it has its method


def parse(reactor: Any, description: str) -> IStreamServerEndpoint:
    """Make an endpoint as `serverFromString` does. It may raise anything, which `why` explains."""
    endpoint: IStreamServerEndpoint = serverFromString(reactor, description)  # type: ignore[no-untyped-call] # Twisted's, untyped
    inner: Any = endpoint
    while (wrapped := getattr(inner, "_wrappedEndpoint", None)) is not None:
        inner = wrapped
    if isinstance(inner, AdoptedStreamServerEndpoint):
        inner.reactor = _Adopter(inner.reactor)
    return endpoint


class _Adopter:
    # Stands in for the reactor when an endpoint adopts a socket that systemd opened.

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def adoptStreamPort(  # noqa: N802 Twisted's name
        self, descriptor: int, family: int, factory: IProtocolFactory
    ) -> IListeningPort:
        with socket.socket(fileno=os.dup(descriptor)) as given:
            if given.type != socket.SOCK_STREAM:
                raise ValueError(
                    f"systemd passed a socket of type {given.type.name}; "
                    "write ListenStream= in its .socket unit"
                )
            if not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError(
                    "systemd passed a connection, not a socket that listens; "
                    "write Accept=no in its .socket unit"
                )
            if (given.family == socket.AF_UNIX) is not (family == socket.AF_UNIX):
                what = given.family.name
                raise ValueError(
                    f"systemd passed a socket of family {what}; write domain={what[3:]}"
                )
        if family == socket.AF_UNIX and not getattr(self._reactor, "lends", False):
            lent = _LentPort._fromListeningDescriptor(self._reactor, descriptor, factory)  # type: ignore[no-untyped-call] # Twisted's, untyped
            lent.startListening()
            return lent  # type: ignore[no-any-return] # see above
        adopted: IListeningPort = self._reactor.adoptStreamPort(descriptor, family, factory)
        return adopted


def _on_hub(description: str) -> str:
    from txasynchat.hub.places import on_hub  # noqa: PLC0415 - loaded by those who use it

    return on_hub(description)


class _LentPort(Lent, unix.Port):
    """Twisted's port on a Unix socket that was lent."""


def split(
    prefix: str, names: Iterable[str], arguments: tuple[str, ...], words: dict[str, str]
) -> tuple[str, dict[str, str]]:
    """
    Split a description that Twisted has split already: into the inner one, and our own arguments.

    Args:
        prefix: the one before it, without its colon.
        names: of our own arguments.
        arguments: what Twisted made of the rest, up to the first word.
        words: what it made of the words.

    Raises:
        ValueError: there is no inner one.
    """
    first = next(iter(words), "")
    if not arguments and ":" in first:
        # An inner string that was written as one argument, and that Twisted split at its first "=".
        arguments = (f"{first}={words.pop(first)}",)
    if not arguments:
        raise ValueError(f"{prefix}: needs another endpoint behind it, as in {prefix}:tcp:8443")
    ours = {name: words.pop(name) for name in names if name in words}
    if len(arguments) > 1:
        arguments = tuple(map(quoteStringArgument, arguments))
    theirs = (f"{name}={quoteStringArgument(value)}" for name, value in words.items())  # type: ignore[no-untyped-call] # Twisted's
    return ":".join((*arguments, *theirs)), ours


def unlock(reactor: Any, error: Any) -> None:
    """
    Release the lock on the Unix socket that could not be bound according to *error*.

    Twisted keeps the lock, and could not get it a second time in this process.
    """
    path, reason = getattr(error, "port", None), getattr(error, "socketError", None)
    if not isinstance(path, bytes) or not isinstance(reason, OSError):
        return
    from txasynchat.hub.shared import served_by  # noqa: PLC0415 - loaded where something failed

    for port in (*getattr(reactor, "getReaders", list)(), *served_by(reactor)):
        if getattr(getattr(port, "lockFile", None), "name", None) == path + b".lock":
            return  # another port of ours listens there
    lock = _lock(Path(os.fsdecode(path)))
    if _owner(lock) == str(os.getpid()):
        with suppress(OSError):
            lock.unlink()


def why(description: str, error: BaseException) -> str:
    """Return why making the endpoint, or its ``listen``, raised *error*, and what to write instead."""
    # Twisted's CannotListenError names the port again, and has the reason inside.
    reason = getattr(error, "socketError", None) or error
    if isinstance(reason, CredentialsError):
        return str(reason)
    if isinstance(reason, str) or (isinstance(reason, OSError) and hasattr(error, "port")):
        return _not_bound(error)
    if isinstance(reason, OSError):
        return _os_error(reason)
    if isinstance(reason, LookupError) and "systemd:" in description:
        return (
            "systemd passed no such socket; start the .socket unit, "
            "and count index from 0 or give its name"
        )
    if isinstance(reason, AlreadyListened):
        return "a socket from systemd can be listened on only once in a process"
    if isinstance(reason, OverflowError):
        return "a port must be a number from 0 to 65535"
    if isinstance(reason, RuntimeError) and isinstance(reason.__cause__, StopIteration):
        return "the backslash at the end escapes nothing"
    if isinstance(reason, AttributeError) and (domain := re.search(r"AF_(\w*)", str(reason))):
        return f"domain={domain[1]} is not known; write INET, INET6 or UNIX"
    if isinstance(reason, TypeError | ValueError) and str(reason):
        return _bad_arguments(description, reason)
    return f"{type(reason).__name__}: {reason}"


def _bad_arguments(description: str, error: Exception) -> str:
    # The name of the function that refused the arguments does not help the reader.
    text = re.sub(r"^[\w.]+\(\) ", "", str(error))
    if number := re.fullmatch(r"invalid literal for int\(\) with base (\d+): (.*)", text):
        kind = "an octal number, as in mode=660" if number[1] == "8" else "a number"
        text = f"{number[2]} is not {kind}"
    if text.startswith("Unknown endpoint type"):
        return f"{text}; write {_guess(description)}"
    if re.search(r"multiple values|takes .* positional arguments", text):
        text += r" (a colon inside one is written \:)"
    words = [word.lower() for word in re.split(r"\\*[:=]", description)]
    form = next((_FORMS[word] for word in words if word in _FORMS), None)
    return f"{text}; write {_like(description, form)}" if form else text


def _guess(description: str) -> str:
    # How a description that begins with no kind of endpoint may have been meant.
    inner = re.sub(r":\w+=.*", "", _AROUND.sub("", description, count=1))
    if inner.isdecimal():
        here, all_of_them = (_like(description, to) for to in (_tcp("", inner), f"tcp:{inner}"))
        return f"{here} for this machine only, or {all_of_them} for all addresses"
    if place := re.fullmatch(r"(.*):(\d+)", inner):
        host = place[1].strip("[]")
        if host in ("", "localhost") or re.fullmatch(r"[\d.]+|[\da-fA-F]*:[\da-fA-F:]+", host):
            return _like(description, _tcp(host, place[2]))
    if "/" in inner and ":" not in inner:
        return _like(description, f"unix:{inner}")
    kinds = ", ".join(f"{kind}:" for kind in _FORMS)
    return f"one of {kinds}, or secure: before one of them, as in {_FORMS['tcp']}"


def _tcp(host: object, port: object) -> str:
    text = "127.0.0.1" if host in ("", "localhost") else str(host)
    kind = "tcp6" if ":" in text else "tcp"
    address = text.replace(":", r"\:")
    return f"{kind}:{port}:interface={address}"


def _like(description: str, form: str) -> str:
    # *form* behind the ``secure:`` and ``proxy:`` that *description* begins with.
    around = _AROUND.match(description)[0]  # type: ignore[index] # it matches nothing, too
    ours = around.split(":")
    secure = ":certificate=cert.pem" if "secure" in ours else ""
    proxy = ":from=10.0.0.0/8" if "proxy" in ours else ""
    return f"{around}{form}{secure}{proxy}"


def _not_bound(error: Any) -> str:
    reason, place = error.socketError, error.port
    if isinstance(place, bytes):
        path = Path(os.fsdecode(place))
        if reason == "Cannot acquire lock":
            return (
                f"process {_owner(_lock(path))} already listens on {str(path)!r}; "
                "end it, or name another path"
            )
        if isinstance(reason, OSError) and reason.errno == errno.EADDRINUSE:
            try:
                is_socket = stat.S_ISSOCK(path.stat().st_mode)
            except OSError:
                return _os_error(reason)
            what = "remove it if no program listens there" if is_socket else "it is not a socket"
            return f"{reason.strerror}: {str(path)!r} exists; {what}"
    if not isinstance(reason, OSError):
        return str(reason)
    if reason.errno == errno.EADDRNOTAVAIL or isinstance(reason, socket.gaierror):
        return f"{reason.strerror}; give interface= an address of this machine, or leave it out"
    return _os_error(reason)


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _owner(lock: Path) -> str:
    # The process that holds a lock, which is a link with the process's number as its target.
    try:
        return str(lock.readlink())
    except OSError:
        return "unknown"


def _os_error(error: OSError) -> str:
    if not error.strerror:
        return str(error)
    # A lock on a Unix socket is a link: the first name is the process's number, the second the file.
    name = error.filename if error.filename2 is None else error.filename2
    if name is None:
        return error.strerror
    path = os.fsdecode(name)
    if error.filename2 is not None and error.errno == errno.ENOENT:
        return f"there is no folder {str(Path(path).parent)!r}; make it, or name another one"
    return f"{error.strerror}: {path!r}" if path else f"the path is empty; write {_FORMS['unix']}"
