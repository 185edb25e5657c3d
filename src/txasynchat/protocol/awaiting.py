"""
`Awaiting`: the hooks of one connection that are not done, because they wait for something.

A hook that is ``async def`` is begun at once. If it is done without waiting, that is all. If not, the
rest of it runs in a Deferred. Where an asyncio loop runs, all of it runs in an asyncio task, so that
``asyncio.timeout`` and the like work. In either it may await Deferreds; in a task also whatever asyncio
awaits.

All coroutines of a connection run in one context of `contextvars`, the connection's own. What one sets,
the next one finds, however their messages were cut into packets.

Knows no `AsyncChat`: what follows when a hook waits, is done or has failed is its business.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio.events import _get_running_loop
from contextvars import copy_context
from functools import partial
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from typing_extensions import override

from txasynchat.waits import Wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    #: What runs one more step of a coroutine.
    Step: TypeAlias = Callable[[Any], Any]

__all__ = ["CANCELLED", "Awaiting", "Pending"]

#: A hook that has begun and is not done.
Pending: TypeAlias = "Deferred[Any] | asyncio.Task[Any]"

#: What a hook raises that was cancelled.
CANCELLED: Final = (CancelledError, asyncio.CancelledError)

# Tasks of Python 3.11 begin in the loop's next iteration.
_EAGER: Final[dict[str, Any]] = {"eager_start": True} if sys.version_info >= (3, 12) else {}

_NEEDS_ASYNCIO: Final = (
    "asyncio's awaitables need Twisted's asyncio reactor: install it before any other"
    " (twisted.internet.asyncioreactor.install, or twistd --reactor=asyncio)"
)


class Awaiting:
    """
    The pending hooks of one connection.

    Attributes:
        lost: the connection is; what begins from then on is not cancelled.
        starts: a coroutine that `begin` is given has run, as far as it can, when that returns.
    """

    __slots__ = ("_context", "_entered", "_loop", "_pending", "lost", "starts")

    def __init__(self) -> None:
        self._context = copy_context()
        # It can be entered once only, which a hook that runs at this moment has done.
        self._entered = False
        self._loop = _get_running_loop()
        self._pending: list[Pending] = []
        self.lost = False
        self.starts = self._loop is None or bool(_EAGER)

    @property
    def busy(self) -> bool:
        """A hook is pending."""
        return bool(self._pending)

    def begin(self, result: object) -> Pending | None:
        """
        Run what a hook returned, until it has to wait.

        Returns:
            What it waits for, for `watch`; None if it is done, or never had to be awaited.

        Raises:
            BaseException: whatever the hook raised without waiting.
        """
        lost = self.lost
        if isinstance(result, Deferred):
            pending: Pending = result
        elif type(result) is not CoroutineType:
            if not inspect.isawaitable(result):
                return None
            pending = self._start(_awaited(result))
        elif self._loop is None and not self._entered:
            # A short way for hooks that need not wait: 1.9 → 1.5 us in memory, plain ones 0.5.
            self._entered = True
            try:
                waited = self._context.run(result.send, None)
            except StopIteration:
                return None
            except RuntimeError as error:
                _explain(error)
                raise
            finally:
                self._entered = False
            if type(waited) is Wait:
                pending = _Rest(self, result, waited)
            else:
                pending = Deferred.fromCoroutine(self.rest(result, waited))
        else:
            pending = self._start(result)
        if _is_done(pending):
            return None
        if self.lost and not lost:
            _cancel(pending)  # it was running when the connection was lost
        return pending

    def watch(self, pending: Pending, ended: Callable[[BaseException | None], None]) -> None:
        """Call *ended* once, when *pending* is done, with what it raised."""
        self._pending.append(pending)
        if isinstance(pending, Deferred):
            arguments = (pending, ended)
            pending.addCallbacks(
                self._fired, self._failed, callbackArgs=arguments, errbackArgs=arguments
            )
        else:
            pending.add_done_callback(partial(self._task_done, ended))

    def cancel(self) -> list[Callable[[], object]]:
        """The connection is lost: return what cancels each pending hook, to be called."""
        self.lost = True
        return [partial(_cancel, each) for each in self._pending]

    def _start(self, hook: Coroutine[Any, Any, Any]) -> Pending:
        if self._loop is None:
            return Deferred.fromCoroutine(self.rest(hook, None))
        # Inside another hook of this connection: abort() in one has called handle_end, say.
        context = self._context.copy() if self._entered else self._context
        steps = _awaited(self._steps(hook))
        task = asyncio.Task(steps, loop=self._loop, context=context, **_EAGER)
        if self.lost:
            _allow_to_vanish(task)
        return task

    # -- internals: without asyncio

    def step(self, step: Step, value: Any) -> Any:
        """Run one more step of a coroutine; return what it waits for then, raise what it raises."""
        lost = self.lost
        context = self._context.copy() if self._entered else self._context  # see _start
        entered, self._entered = self._entered, True
        try:
            waited = context.run(step, value)
        except RuntimeError as error:
            _explain(error)
            raise
        finally:
            self._entered = entered
        if self.lost and not lost and isinstance(waited, Deferred):
            waited.cancel()  # it was running when the connection was lost
        return waited

    def rest(self, hook: Any, waited: Any, leaves: type | None = None) -> Generator[Any, Any, Any]:
        """
        Run the coroutine *hook*, which waits for *waited*, as a generator of the Deferreds that it
        awaits; until it is done, or awaits one of the kind *leaves*, which ends in `_Leaves`.
        """
        while True:
            if not isinstance(waited, Deferred) and asyncio.isfuture(waited):
                step: Step = hook.throw
                value: Any = RuntimeError(_NEEDS_ASYNCIO)
            else:
                try:
                    value = yield waited
                    step = hook.send
                except GeneratorExit:  # nobody is left who could fire it
                    hook.close()
                    raise
                except BaseException as error:  # noqa: BLE001 it is the coroutine's
                    step, value = hook.throw, error
            try:
                waited = self.step(step, value)
            except StopIteration as done:
                return done.value
            if type(waited) is leaves:
                return _Leaves(waited)

    def _fired(self, result: Any, pending: Pending, ended: Callable[[None], None]) -> Any:
        self._pending.remove(pending)
        ended(None)
        return result  # for others who were given the same Deferred

    def _failed(
        self, failure: Failure, pending: Pending, ended: Callable[[BaseException | None], None]
    ) -> None:
        self._pending.remove(pending)
        ended(failure.value)

    # -- internals: in a task

    @coroutine
    def _steps(self, hook: Any) -> Generator[Any, Any, Any]:
        """Run the coroutine *hook*; where it awaits a Deferred the task awaits a future of that."""
        step: Step = hook.send
        value: Any = None
        while True:
            entered, self._entered = self._entered, True
            try:
                waited = step(value)
            except StopIteration as done:
                return done.value
            finally:
                self._entered = entered
            step = hook.send
            try:
                if isinstance(waited, Deferred) and not isinstance(waited, Wait):
                    value = yield from self._outcome(waited)
                    if isinstance(value, Failure):
                        step, value = hook.throw, value.value
                else:
                    value = yield waited
            except GeneratorExit:  # see _rest
                hook.close()
                raise
            except BaseException as error:  # noqa: BLE001 it is the coroutine's
                step, value = hook.throw, error

    def _outcome(self, deferred: Deferred[Any]) -> Generator[Any, Any, Any]:
        """Wait for *deferred* in a task, and cancel it with the task; return its result or Failure."""
        future: asyncio.Future[Any] = asyncio.Future(loop=self._loop)

        def fired(result: Any) -> Any:
            if not future.done():
                future.set_result(result)
            # A coroutine that awaits it looks for its result there; a failure is thrown into it.
            return None if isinstance(result, Failure) else result

        deferred.addBoth(fired)
        try:
            return (yield from future)
        except asyncio.CancelledError:
            deferred.cancel()
            raise

    def _task_done(
        self, ended: Callable[[BaseException | None], None], task: asyncio.Task[Any]
    ) -> None:
        self._pending.remove(task)
        ended(asyncio.CancelledError() if task.cancelled() else task.exception())


class _Leaves:
    # Returned by `Awaiting.rest`: what the coroutine waits for.
    __slots__ = ("waited",)

    def __init__(self, waited: Any) -> None:
        self.waited = waited


class _Rest(Deferred[Any]):
    """
    The rest of a coroutine that waits for a `Wait`: that calls it directly when it fires.

    A line that a stream waits for costs 2.2 us less so than by Twisted's way, of 8.1 in memory.
    """

    def __init__(self, awaiting: Awaiting, hook: Any, waited: Wait[Any]) -> None:
        super().__init__()
        self._awaiting = awaiting
        self._hook = hook
        self._wait_for(waited)

    @override
    def cancel(self) -> None:
        """Cancel what it waits for; the coroutine may go on all the same."""
        if not self.called:
            self._waited.cancel()

    def _wait_for(self, waited: Any) -> None:
        if type(waited) is Wait and not waited.called:
            self._waited: Deferred[Any] = waited
            waited.fired = self._go_on
            return
        rest = self._awaiting.rest(self._hook, waited, Wait)
        self._waited = Deferred.fromCoroutine(rest)
        self._waited.addCallbacks(self._left, self.errback)

    def _left(self, result: Any) -> None:
        if type(result) is _Leaves:
            self._wait_for(result.waited)
        else:
            self.callback(result)

    def _go_on(self) -> None:
        try:
            waited = self._awaiting.step(self._hook.send, None)
        except StopIteration as done:
            self.callback(done.value)
        except BaseException:  # noqa: BLE001 it is the coroutine's
            self.errback()
        else:
            self._wait_for(waited)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _is_done(pending: Any) -> bool:
    """Return whether *pending* is done; raise what it raised."""
    if not isinstance(pending, Deferred):
        if not pending.done():
            return False
        pending.result()
        return True
    if not pending.called or pending.paused or isinstance(pending.result, Deferred):
        return False
    if isinstance(pending.result, Failure):
        failure = pending.result
        pending.addErrback(lambda _: None)  # it is raised here
        failure.raiseException()
    return True


def _cancel(pending: Any) -> None:
    if not isinstance(pending, Deferred):
        _allow_to_vanish(pending)
    pending.cancel()


def _allow_to_vanish(task: Any) -> None:
    """
    Let asyncio not complain that *task* did not end: connections are also lost because the reactor
    stops.
    """
    task._log_destroy_pending = False


def _explain(error: RuntimeError) -> None:
    if str(error) == "no running event loop":
        error.add_note(_NEEDS_ASYNCIO)
