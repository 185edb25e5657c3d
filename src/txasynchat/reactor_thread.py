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
    from collections.abc import Callable, Iterable

__all__ = ["check_threads"]


def check_threads(protocol: Any, names: Iterable[str]) -> None:
    """
    Let methods raise `RuntimeError` in any other thread than the one that made the connection.

    Args:
        protocol: a class of protocols.
        names: those of its methods; before the connection they may be called anywhere.
    """
    make = protocol.makeConnection

    @functools.wraps(make)
    def made(self: Any, transport: Any) -> None:
        self._reactor_thread = threading.get_ident()
        make(self, transport)

    protocol.makeConnection = made
    protocol._reactor_thread = None
    for name in names:
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
