"""Where an interrupted split is continued: after the last sample of its last finished shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from clip_med.data.sample import Sample
from clip_med.data.shard_index import ShardIndex
from data_prep.opening import Results
from data_prep.record import Rejection, Task


def continued(
    tasks: Iterable[Task], finished: Sequence[ShardIndex], opener: Results
) -> tuple[list[Rejection], Iterator[Task]] | None:
    """What had been rejected before the end of the finished shards, and the tasks that follow; None: begin anew.

    Images that are in no finished shard though their turn was before its end are looked at again, for the reason. If
    one of them can be used now, or the samples of the shards do not come in this order, the shards are of no use.
    """
    rest = iter(tasks)
    skipped: list[Task] = []
    for key in chain.from_iterable((entry.key for entry in index.samples) for index in finished):
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


__all__ = ["continued"]
