"""Counts of what was drawn: over ranks, over stops, and where stand-ins come from."""

from __future__ import annotations

import torch

from clip_med.data.batch import Batch
from clip_med.data.mix import RealisedMix
from clip_med.data.training_data import SourcePart

SOURCES = (SourcePart("a", 0, 10, 0.5), SourcePart("b", 10, 5, 0.5))


def batch(indices: list[int], bad: int = 0) -> Batch:
    n = len(indices)
    return Batch(
        images=torch.zeros(n, 3, 1, 1, dtype=torch.uint8),
        tokens=None,
        captions=("c",) * n,
        keys=tuple(map(str, indices)),
        modalities=tuple("CT" if index % 2 else "MRI" for index in indices),
        indices=torch.tensor(indices),
        group_ids=torch.zeros(n, 1, dtype=torch.int64),
        position=0,
        bad=("line",) * bad,
    )


def test_ranks_add_up_and_intervals_begin_anew() -> None:
    ranks = [RealisedMix(SOURCES) for _ in range(2)]
    ranks[0].add(batch([0, 9, 10]))
    ranks[1].add(batch([14, 14, 1], bad=2))
    rows = [rank.fresh() for rank in ranks]
    for rank in ranks:
        rank.merge(rows)
    first = ranks[0].line()
    assert first == ranks[1].line()
    assert first["mix"] == {"sources": {"a": 3, "b": 3}, "modalities": {"CT": 2, "MRI": 4}}
    assert first["replaced"] == 2
    assert first["passes"] == {"a": 0.3, "b": 0.6}
    ranks[0].add(batch([3]))
    later = RealisedMix(SOURCES)
    later.load_state_dict({**ranks[0].state_dict(), "gone": 7})
    for mix in (ranks[0], later):
        mix.merge([ranks[0].fresh()] if mix is ranks[0] else [])
    assert ranks[0].line()["passes"] == {"a": 0.4, "b": 0.6}
    assert ranks[0].line()["mix"]["modalities"] == {"CT": 1}
    assert later.line()["passes"] == {"a": 0.3, "b": 0.6}
    assert "gone" not in later.state_dict()
    assert RealisedMix().line()["passes"] == {}
