"""
What is known of a handler class before its first connection: what its constructor wants, and whether
it takes messages at all. And, under ``python -X dev``, a check that its methods are called in the
reactor's thread.

No handler is built and none of its methods is called. Whatever cannot be known for certain is assumed
to be right. This module knows no protocol and no Twisted; it inspects classes, whatever their bases.
"""

from __future__ import annotations

import dis
import enum
import functools
import inspect
import threading
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Hears", "arguments_for", "check_threads", "hears", "is_legacy", "unheard", "wanted"]

# Names that a method may use without doing anything that others see.
_HARMLESS = frozenset({"__init__", "asynchat", "asyncore", "super", "set_terminator", "txasynchat"})


def wanted(
    handler: Callable[..., Any], arguments: Iterable[Any], keywords: dict[str, Any]
) -> inspect.Signature | None:
    """
    Return what *handler* wants, if calling it with these arguments would be a TypeError.

    Returns:
        Its signature without annotations; None if the call fits, or if that cannot be known.
    """
    makers = [handler]
    if isinstance(handler, type):
        makers += [handler.__init__, handler.__new__]  # type: ignore[misc] # looked at, not called
    if any(hasattr(one, "__signature__") for one in makers):
        return None  # which may be anything
    try:
        # A decorator may give arguments of its own, so what it wraps does not count.
        signature = inspect.signature(handler, follow_wrapped=False)
    except (TypeError, ValueError):  # such as one written in C
        return None
    try:
        signature.bind(*arguments, **keywords)
    except TypeError:
        bare = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
        return signature.replace(parameters=bare, return_annotation=signature.empty)
    return None


def arguments_for(signature: inspect.Signature) -> list[str]:
    """Return an example argument, named like it, for each parameter that needs one."""
    return [
        f"{one.name}={one.name}" if one.kind is one.KEYWORD_ONLY else one.name
        for one in signature.parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]


def is_legacy(handler: Any) -> bool:
    """Return whether *handler* is a class made from any ``asyncore.dispatcher``."""
    return isinstance(handler, type) and any(
        base.__name__ == "dispatcher" and base.__module__.rpartition(".")[2] == "asyncore"
        for base in handler.__mro__
    )


class Hears(enum.Enum):
    """Whether a handler takes what a peer sends."""

    YES = enum.auto()
    NO = enum.auto()  # but it may send, or others may use it to send
    USELESS = enum.auto()  # and it does nothing else either


def hears(handler: type, base: type, hooks: Iterable[str]) -> Hears:
    """Return whether *handler* overrides, or assigns somewhere, one of the *hooks* of *base*."""
    own = [one for one in handler.__mro__ if one not in base.__mro__]
    functions = [
        (name, member)
        for one in own
        for name, member in vars(one).items()
        if isinstance(member, FunctionType)
    ]
    look = inspect.getattr_static  # calls nothing
    mentioned = {name for _, function in functions for name in function.__code__.co_names}
    if any(hook in mentioned or look(handler, hook) is not look(base, hook) for hook in hooks):
        return Hears.YES
    harmless = _HARMLESS | {one.__name__ for one in handler.__mro__}
    for name in dir(base):
        if name.startswith("__") and name not in ("__init__", "__new__"):
            continue  # Python's own, and zope.interface's
        found = look(handler, name, None)
        if found is look(base, name, None) or isinstance(found, FunctionType):
            continue
        if callable(found) or hasattr(found, "__get__"):
            return Hears.NO  # it may do anything
    for name, function in functions:
        called = name.startswith("__") or hasattr(base, name)
        if called and not harmless.issuperset(_loaded(function)):
            return Hears.NO
    return Hears.USELESS


def unheard(handler: type, hooks: Iterable[str], made: str) -> Iterator[tuple[str, str]]:
    """
    Yield each of the *hooks* and *made* that does not work as it was meant, and the rest of a sentence
    why: generator functions, and *made* if it has to be awaited, which the *hooks* are.
    """
    for name in (made, *hooks):
        hook = getattr(handler, name, None)
        if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
            yield name, "is a generator function, which nobody runs: what it does never happens"
    if inspect.iscoroutinefunction(getattr(handler, made, None)):
        yield made, "is async def, which nobody awaits: what it does never happens"


def _loaded(function: FunctionType) -> Iterator[str]:
    # The names that it reads, without those of attributes that it only assigns.
    names = function.__code__.co_names
    for step in dis.get_instructions(function):
        if step.opname.startswith("LOAD_") and step.argval in names:
            yield step.argval


# What applications call.
_CHECKED = (
    "abort",
    "close",
    "close_when_done",
    "close_when_idle",
    "discard_buffers",
    "drained",
    "end_sending",
    "expect",
    "pause",
    "pipe_to",
    "push",
    "push_with_producer",
    "registerProducer",
    "resume",
    "set_terminator",
    "start_tls",
    "unread",
    "unregisterProducer",
    "write",
)


def check_threads(protocol: Any) -> None:
    """
    Let methods of `AsyncChat` raise `RuntimeError` in any thread but the one that made the connection.

    Without it such a call may find the queue in the middle of a change, and an answer is lost. Before
    the connection any thread may call them.
    """
    make = protocol.makeConnection

    @functools.wraps(make)
    def made(self: Any, transport: Any) -> None:
        self._reactor_thread = threading.get_ident()
        make(self, transport)

    protocol.makeConnection = made
    protocol._reactor_thread = None
    for name in _CHECKED:
        setattr(protocol, name, _checked(getattr(protocol, name)))


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: Any, *arguments: Any, **named: Any) -> Any:
        if self._reactor_thread not in (None, threading.get_ident()):
            cls = type(self).__qualname__
            raise RuntimeError(
                f"{cls}.{method.__name__}() was called in {threading.current_thread().name}, which is"
                f" not the reactor's thread; write reactor.callFromThread(chat.{method.__name__}, ...)"
            )
        return method(self, *arguments, **named)

    return checked
