"""Opening the images of a table's rows: in this process or in several, always in the order of the rows."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final

from clip_med.data.images import ImageError
from clip_med.data.sample import Sample
from data_prep.pixels import clean_image
from data_prep.table_rows import Rejection, Task

# Rows that travel to a process together, and how many such parcels wait per process: memory stays bounded.
_PARCEL: Final = 16
_WAITING: Final = 4


class ImageReader:
    """Turns tasks into samples or rejections; a context manager that owns its processes.

    Args:
        workers: processes; 0 works in this one. The results are the same.
        max_side: scale larger images down to this.
    """

    def __init__(self, images_root: Path, *, max_side: int | None, workers: int) -> None:
        self._root = os.path.abspath(images_root)
        self._max_side = max_side
        self._workers = workers
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

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def read(self, tasks: Iterable[Task]) -> Iterator[Sample | Rejection]:
        """One result per task, in order.

        Raises:
            OSError: a worker process died.
        """
        if self._pool is None:
            for task in tasks:
                yield build_sample(task, self._root, self._max_side)
            return
        rest = iter(tasks)
        waiting: deque[Future[list[Sample | Rejection]]] = deque()
        try:
            while parcel := list(islice(rest, _PARCEL)):
                waiting.append(self._pool.submit(_build_parcel, parcel, self._root, self._max_side))
                if len(waiting) >= _WAITING * self._workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OSError("a process that reads images was ended (out of memory?); try fewer --workers") from error


def build_sample(task: Task, root: str, max_side: int | None) -> Sample | Rejection:
    """Read, check and clean one image."""

    def rejected(reason: str, detail: str = "") -> Rejection:
        return Rejection(row=task.row, path=task.relative, reason=reason, detail=detail, split=task.split)

    file = os.path.join(root, task.relative)
    try:
        if not os.path.isfile(file):
            return rejected("missing file")
        real, real_root = os.path.realpath(file), os.path.realpath(root)
        if os.path.commonpath((real, real_root)) != real_root:
            return rejected("outside images-root", "through a symbolic link")
        data = Path(file).read_bytes()
        image, suffix = clean_image(data, source=task.relative, max_side=max_side)
    except ImageError as error:
        return rejected("undecodable image", str(error))
    except OSError as error:
        return rejected("unreadable file", error.strerror or type(error).__name__)
    return Sample(
        key=task.key,
        image=image,
        image_suffix=suffix,
        captions=task.captions,
        caption_kinds=task.caption_kinds,
        labels=task.labels,
        modality=task.modality,
        dataset=task.dataset,
        group=task.group,
        split=task.split,
        view=task.view,
        study=task.study,
    )


def _build_parcel(tasks: list[Task], root: str, max_side: int | None) -> list[Sample | Rejection]:
    return [build_sample(task, root, max_side) for task in tasks]


def _end_with_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and do not outlive a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


__all__ = ["ImageReader", "build_sample"]
