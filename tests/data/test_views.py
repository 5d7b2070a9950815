"""Views: the first is that of evaluation, the others are augmented, and a selection changes none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clip_med.data.augment import AugmentConfig
from clip_med.data.images import Preprocess
from clip_med.data.loader import eval_batches
from clip_med.data.shards import ShardSet
from clip_med.data.views import ViewConfig, view_batches
from tests.tiny_run import write_shards

PREPROCESS = Preprocess(size=32)
pytestmark = pytest.mark.usefixtures("one_thread")


def views_of(shards: ShardSet, indices: list[int], config: ViewConfig, batch_size: int = 3) -> torch.Tensor:
    return torch.cat(list(view_batches(shards, indices, PREPROCESS, config, batch_size=batch_size)), dim=1)


def test_view_0_is_evaluations_and_the_others_depend_on_seed_view_and_sample_alone(tmp_path: Path) -> None:
    shards = ShardSet.open(write_shards(tmp_path / "s", 20))
    config = ViewConfig(count=3)
    made = views_of(shards, [4, 17, 0, 9], config)
    assert made.shape == (3, 4, 3, 32, 32)
    assert made.dtype == torch.uint8
    assert made[0].equal(torch.cat([b.images for b in eval_batches(shards, [4, 17, 0, 9], PREPROCESS)]))
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert all(not made[one, row].equal(made[two, row]) for row in range(4))
    assert views_of(shards, [9, 4], config, batch_size=1).equal(made[:, [3, 0]])
    assert not views_of(shards, [4], ViewConfig(count=3, seed=1))[1].equal(made[1, :1])
    plain = views_of(shards, [4], ViewConfig(count=2, augment=AugmentConfig(enabled=False)))
    assert plain[1].equal(plain[0])
