"""What parts have made of their tasks, for the process that lays them into one output."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from data_prep.burned_in import blackened
from data_prep.record import Rejection, Task
from data_prep.rejections import read_rejections

# Written into the folder of a part when all of it is there.
DONE_FILE: Final = "done.json"


def part_folder(folder: Path, number: int) -> Path:
    """Where a part lies."""
    return folder / f"{number:04d}"


class PartResults:
    """Stands in the place of an `Opener`, with samples and rejections that the parts have written.

    Args:
        first_rows: the row that each part begins with, ascending. The keys of one part are in memory at a time.
    """

    def __init__(self, folder: Path, first_rows: Sequence[int]) -> None:
        self._folder, self._first_rows = folder, first_rows
        self._held: tuple[int, _Part] | None = None

    def open(self, tasks: Iterable[Task]) -> Iterator[Sample | Rejection]:
        """One result per task, in order.

        Raises:
            ValueError: a part does not hold what was asked of it, naming the part.
            ShardError: damaged bytes, naming the shard of the part.
        """
        for task in tasks:
            number = bisect_right(self._first_rows, task.row) - 1
            if self._held is None or self._held[0] != number:
                self._held = number, _Part(part_folder(self._folder, number))
            yield self._held[1].result(task)


class _Part:
    """The samples and rejections of one part; its shard sets must be those that it had when it was done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shards = folder / "shards"
        self._places: dict[str, tuple[ShardSet, int]] = {}
        for split, digest in json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))["digests"].items():
            written = ShardSet.open(shards / split)
            if written.digest != digest:
                raise ValueError(f"{shards / split}: changed after the part was done; {self._mend}")
            self._places.update({written.key(number): (written, number) for number in range(len(written))})
        self._rejections = {one.row: one for one in read_rejections(shards)}

    @property
    def _mend(self) -> str:
        return f"remove {self._folder} and write this part again"

    def result(self, task: Task) -> Sample | Rejection:
        """What became of a task: images as they were written, all else as it is listed."""
        if task.key in self._places:
            shards, number = self._places[task.key]
            written = shards.read(number)
            (suffix, image), *more = written.images
            sample = task.sample(image, suffix, tuple(more), found=blackened(written))
            if sample.members() != written.members():
                raise ValueError(f"{shards.tar(number)}: {task.key} is not what row {task.row} says; {self._mend}")
            return sample
        if task.row in self._rejections:
            return self._rejections[task.row]
        raise ValueError(f"{self._folder}: holds no sample of row {task.row} ({task.path}); {self._mend}")


__all__ = ["DONE_FILE", "PartResults", "part_folder"]
