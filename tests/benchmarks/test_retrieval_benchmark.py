"""The benchmark of retrieval runs small, and its two sides find the same ranks."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import retrieval


def test_both_sides_find_the_same_ranks() -> None:
    retrieval.check(150)
    sides = [retrieval.run(side, 200) for side in ("blocks", "full matrix")]
    for own, other in zip(sides[0].ranks, sides[1].ranks, strict=True):
        assert np.abs(own - other).max() <= 1
        assert 1 < own.mean() < 100
    assert all(side.seconds > 0 for side in sides)


def test_a_side_that_ranks_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    actual = retrieval.blocks
    monkeypatch.setattr(
        retrieval, "blocks", lambda *arguments, **options: tuple(r + 1 for r in actual(*arguments, **options))
    )
    with pytest.raises(AssertionError):
        retrieval.check(150)
