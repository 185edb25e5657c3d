"""
Handler functions: ``async def handle(stream)`` in the place of a handler class.

The function is `handle_connect` of an `AsyncChat`, so what holds for a hook that waits holds for it. It
may await Deferreds and, under the asyncio reactor, whatever a task of asyncio may. An exception is
logged, with its traceback and the peer, and closes that connection.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from txasynchat.protocol import AsyncChat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    #: Called with the stream of each connection.
    HandlerFunction: TypeAlias = Callable[..., Awaitable[object]]

__all__ = ["FunctionChat", "class_of", "is_function"]


class FunctionChat(AsyncChat):
    """
    A connection that a handler function serves, and that ends with it.

    When the function returns, what it wrote is sent and the connection closes. So it does when the
    function raises; that is logged, unless it is how the connection ended.

    If the connection is lost, the read that waits raises that; a function that waits for anything else
    is cancelled, unless it has called `Stream.close`.
    """

    terminator = b"\n"

    #: The handler function.
    function: ClassVar[HandlerFunction]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._arguments, self._named = arguments, named

    @override
    async def handle_connect(self) -> None:
        await type(self).function(self.stream(), *self._arguments, **self._named)
        self.close()


def is_function(handler: Any) -> bool:
    """Return whether *handler* is an ``async def``, or an object that is called like one."""
    call = getattr(handler, "__call__", None)  # noqa: B004 - the method itself
    return not isinstance(handler, type) and (
        inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)
    )


def class_of(function: Any) -> type[FunctionChat]:
    """Return a class of handlers whose connections *function* serves; it has the function's name."""
    name = getattr(function, "__name__", type(function).__name__)
    place = {
        "function": staticmethod(function),
        "__qualname__": getattr(function, "__qualname__", name),
        "__module__": getattr(function, "__module__", __name__),
        "__doc__": FunctionChat.__doc__,
    }
    return type(name, (FunctionChat,), place)
