"""
`Wait`: a Deferred that asyncio's tasks can await as well.

A coroutine does not know who runs it: Twisted (``Deferred.fromCoroutine``) or, under the asyncio
reactor, a task of asyncio, which accepts nothing but futures. A coroutine that waits for a connection
yields one of these, and both are content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

__all__ = ["Wait"]

T = TypeVar("T")


def _call(function: Callable[..., object], *arguments: Any) -> None:
    function(*arguments)


class Wait(Deferred[T]):
    """
    A Deferred that is a future to a task of asyncio; for one coroutine, which awaits it at once.

    Args:
        run: calls a function with arguments; a task is resumed by it.
        canceller: see `Deferred`.

    Attributes:
        fired: called when there is a result; then nobody adds callbacks.
    """

    # What a task looks for, and asks: PEP 3156's futures.
    _asyncio_future_blocking = True
    _loop: Any = None

    def __init__(
        self,
        run: Callable[..., object] = _call,
        canceller: Callable[[Deferred[Any]], None] | None = None,
    ) -> None:
        super().__init__(canceller)
        self._run = run
        self.fired: Callable[[], None] | None = None

    def fire(self) -> None:
        """`callback` with None: the short way, where `fired` is set."""
        if self.fired is None:
            self.callback(None)  # type: ignore[arg-type] # who fires it knows its type
        elif not self.called:
            self.called = True
            self.result = None
            self.fired()

    @override
    def errback(self, fail: Any = None) -> None:
        super().errback(fail)
        if self.fired is not None:
            self.fired()

    def get_loop(self) -> Any:
        """Return the loop of the task that asks."""
        if self._loop is None:
            import asyncio  # noqa: PLC0415 - a task asks, so it is loaded

            self._loop = asyncio.get_running_loop()
        return self._loop

    def add_done_callback(
        self, resume: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """Have a task resumed by the loop when there is a result."""
        loop = self.get_loop()

        def fired(result: T) -> T:
            loop.call_soon(self._run, resume, _DONE, context=context)
            return result

        self.addBoth(fired)

    @override
    def cancel(self, msg: object = None) -> bool:  # type: ignore[override] # a task's argument, and answer
        """Cancel. A task raises an error of its own when it is resumed."""
        if not self.called:
            if self._loop is None:
                super().cancel()
            else:
                self._suppressAlreadyCalled = True
                if self._canceller is not None:
                    self._canceller(self)
                if not self.called:
                    self.callback(None)  # type: ignore[arg-type] # nobody sees it
        return False


class _Done:
    # What a task is resumed with; the Deferred itself gives the result.
    def result(self) -> None:
        return None


_DONE = _Done()
