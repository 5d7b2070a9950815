"""Where an interrupted split is continued: after the last sample of its last finished shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from data_prep.opening import Results
from data_prep.record import Rejection, Task


def continued(
    tasks: Iterable[Task], finished: Sequence[Path], opener: Results
) -> tuple[list[Rejection], Iterator[Task]] | None:
    """What had been rejected before the end of the finished shards, and the tasks that follow; None: begin anew.

    Images that are in no finished shard though their turn was before its end are looked at again, for the reason. If
    one of them can be used now, or the samples of the shards do not come in this order, the shards are of no use.
    """
    rest = iter(tasks)
    skipped: list[Task] = []
    for key in chain.from_iterable(map(_keys, finished)):
        for task in rest:
            if task.key == key:
                break
            skipped.append(task)
        else:
            return None
    rejections: list[Rejection] = []
    for result in opener.open(skipped):
        if isinstance(result, Sample):
            return None
        rejections.append(result)
    return rejections, rest


def _keys(tar: Path) -> list[str]:
    shards = ShardSet.open(tar)
    return [shards.key(number) for number in range(len(shards))]


__all__ = ["continued"]
