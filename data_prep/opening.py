"""Opening the images of tasks: in this process or in several, always in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Final, Protocol

from clip_med.data.images import ImageError
from clip_med.data.sample import Sample
from clip_med.data.signals import ignore_signals, signals_held_back
from data_prep.burned_in import BLACKENED, open_checked
from data_prep.record import RejectedImageError, Rejection, Source, Task, unreadable

# Tasks that travel to a process together, and how many such parcels wait per process: memory stays bounded.
_PARCEL: Final = 16
_WAITING: Final = 4


class Results(Protocol):
    """What becomes of tasks."""

    def open(self, tasks: Iterable[Task]) -> Iterator[Sample | Rejection]:
        """One result per task, in order."""
        ...


class Opener:
    """Turns tasks into samples or rejections; a context manager that owns its processes.

    Args:
        workers: processes; 0 works in this one. The results are the same.
    """

    def __init__(self, source: Source, *, workers: int) -> None:
        self._source = source
        self._workers = workers
        # What this starts, and the processes that the first task starts, must not die of a signal that is for this one.
        with signals_held_back():
            self._pool = (
                ProcessPoolExecutor(
                    workers,
                    # Not fork: it copies locks held by the threads of progress bars.
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_end_with_parent,
                )
                if workers
                else None
            )

    def __enter__(self) -> Opener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def open(self, tasks: Iterable[Task]) -> Iterator[Sample | Rejection]:
        """One result per task, in order.

        Raises:
            OSError: a worker process died.
        """
        if self._pool is None:
            for task in tasks:
                yield open_task(self._source, task)
            return
        rest = iter(tasks)
        waiting: deque[Future[list[Sample | Rejection]]] = deque()
        try:
            while parcel := list(islice(rest, _PARCEL)):
                with signals_held_back():
                    waiting.append(self._pool.submit(_open_parcel, self._source, parcel))
                if len(waiting) >= _WAITING * self._workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OSError("a process that reads images was ended (out of memory?); try fewer --workers") from error


def open_task(source: Source, task: Task) -> Sample | Rejection:
    """Read, check and clean one image, or all of a study; a bad one costs the study and is named."""
    opened: list[tuple[str, bytes]] = []
    blackened = 0
    for path in (task.path, *task.more_paths):
        one = replace(task, path=path)
        try:
            image, suffix, places = open_checked(source, one)
        except RejectedImageError as error:
            return one.rejected(error.reason, error.detail)
        except ImageError as error:
            return one.rejected("undecodable image", str(error))
        except OSError as error:
            return one.rejected(*unreadable(error))
        opened.append((suffix, image))
        blackened += places
    (suffix, image), *more = opened
    return task.sample(image, suffix, tuple(more), found={BLACKENED: str(blackened)} if blackened else None)


def _open_parcel(source: Source, parcel: list[Task]) -> list[Sample | Rejection]:
    return [open_task(source, task) for task in parcel]


def _end_with_parent() -> None:
    """In a worker: leave signals to the parent, and do not outlive a parent that is killed."""
    ignore_signals()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


__all__ = ["Opener", "Results", "open_task"]
