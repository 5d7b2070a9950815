"""Opening the images of tasks: in this process or in several, always in the order of the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

from clip_med.data.images import ImageError
from clip_med.data.sample import Sample
from data_prep.burned_in import BLACKENED, open_checked
from data_prep.ordered import Ordered
from data_prep.record import RejectedImageError, Rejection, Source, Task, unreadable


class Results(Protocol):
    """What becomes of tasks."""

    def open(self, tasks: Iterable[Task]) -> Iterator[Sample | Rejection]:
        """One result per task, in order."""
        ...


class Opener(Ordered[Task, Sample | Rejection]):
    """Turns tasks into samples or rejections.

    Args:
        workers: processes; 0 works in this one. The results are the same.
    """

    def __init__(self, source: Source, *, workers: int) -> None:
        super().__init__(partial(open_task, source), workers=workers)

    def open(self, tasks: Iterable[Task]) -> Iterator[Sample | Rejection]:
        """One result per task, in order.

        Raises:
            OSError: a worker process died.
        """
        return self.map(tasks)


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


__all__ = ["Opener", "Results", "open_task"]
