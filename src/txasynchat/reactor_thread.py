"""
Methods that belong to the reactor's thread say so, under ``python -X dev``, when another calls them.

A call from another thread does not fail by itself: it meets the queue in the middle of a change, and
now and then an answer is lost. Without ``-X dev`` nothing here is in the way of any call.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_threads"]


# What applications call.
_CHECKED = (
    "abort",
    "close",
    "close_when_done",
    "close_when_idle",
    "discard_buffers",
    "pause",
    "push",
    "push_with_producer",
    "registerProducer",
    "resume",
    "set_terminator",
    "start_tls",
    "unregisterProducer",
    "write",
)


def check_threads(protocol: Any) -> None:
    """
    Let methods raise `RuntimeError` in any other thread than the one that made the connection.

    Before the connection they may be called anywhere.

    Args:
        protocol: `AsyncChat`.
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
