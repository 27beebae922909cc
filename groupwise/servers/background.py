"""An event loop in a thread of its own, for waiting for others while this program computes. Knows not for whom."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")
_TICK = 0.2  # s until signals are heeded again
_UNRESPONSIVE = 1.0  # s for a loop that something blocks, and for its thread to end


def result_of(future: "Future[Result]") -> Result:
    """What a future holds, when it does.

    In short waits: a signal that comes between two instructions just before a wait does not interrupt that one.
    """
    while not wait([future], timeout=_TICK).done:
        pass
    return future.result()


class Background:
    """Runs coroutines one after the other, in the order in which they came.

    The thread is a daemon: a program that ends does not wait for what is under way.

    >>> background = Background("example")
    >>> background.submit(asyncio.sleep, 0, "done").result()
    'done'
    >>> never = background.submit(asyncio.sleep, 10**6)
    >>> background.close(lambda: asyncio.sleep(10**6), limit=0.1)
    >>> never.cancelled()
    True
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._turn = asyncio.Lock()  # first come, first served
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[P, Coroutine[Any, Any, Result]], *args: P.args, **kwargs: P.kwargs
    ) -> Future[Result]:
        """Run `work` when all before it is over; to cancel the future is to cancel it."""

        async def in_turn() -> Result:
            async with self._turn:
                return await work(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(in_turn(), self._loop)

    def close(self, last: Callable[[], Coroutine[Any, Any, object]], *, limit: float) -> None:
        """Cancel all that is under way, run `last`, and end: `limit` seconds later at the latest, whatever is done."""

        async def ending() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await asyncio.gather(*others, return_exceptions=True)
                    await last()

        try:
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(ending(), self._loop).result(limit + _UNRESPONSIVE)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_UNRESPONSIVE)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
