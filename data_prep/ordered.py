"""One function on many items, in this process or in several, with results in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from clip_med.data.signals import ignore_signals, signals_held_back

Item = TypeVar("Item")
Result = TypeVar("Result")
# Items that travel to a process together, and how many such parcels wait per process: memory stays bounded.
_PARCEL: Final = 16
_WAITING: Final = 4
# In a worker: what it does.
_WORK: Final[list[Callable[[Any], Any]]] = []


class Ordered(Generic[Item, Result]):
    """A context manager that owns its processes.

    Args:
        work: a picklable function; every process gets one copy.
        workers: processes; 0 works in this one. The results are the same.
    """

    def __init__(self, work: Callable[[Item], Result], *, workers: int) -> None:
        self._work = work
        self._workers = workers
        # What this starts, and the processes that the first item starts, must not die of a signal that is for this one.
        with signals_held_back():
            self._pool = (
                ProcessPoolExecutor(
                    workers,
                    # Not fork: it copies locks held by the threads of progress bars.
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_begin,
                    initargs=(work,),
                )
                if workers
                else None
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """One result per item, in order.

        Raises:
            OSError: a worker process died.
        """
        if self._pool is None:
            yield from map(self._work, items)
            return
        rest = iter(items)
        waiting: deque[Future[list[Result]]] = deque()
        try:
            while parcel := list(islice(rest, _PARCEL)):
                with signals_held_back():
                    waiting.append(self._pool.submit(_do, parcel))
                if len(waiting) >= _WAITING * self._workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OSError("a process that reads images was ended (out of memory?); try fewer --workers") from error


def _do(parcel: list[Any]) -> list[Any]:
    return [_WORK[0](item) for item in parcel]


def _begin(work: Callable[[Any], Any]) -> None:
    """In a worker: leave signals to the parent, and do not outlive a parent that is killed."""
    ignore_signals()
    _WORK.append(work)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


__all__ = ["Ordered"]
