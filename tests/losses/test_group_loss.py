"""The metric loss on texts: its value and gradient against NumPy, and what it reduces to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_med.losses.infonce import info_nce
from clip_med.losses.text_groups import group_info_nce
from tests.slopes import assert_slopes


def reference(features: np.ndarray, groups: list[int], scale: float, ignored: np.ndarray) -> float:
    terms = []
    for i in range(len(groups)):
        others = [j for j in range(len(groups)) if j != i and (groups[j] == groups[i] or not ignored[i, j])]
        positives = [j for j in others if groups[j] == groups[i]]
        if positives:
            total = np.log(sum(np.exp(scale * features[i] @ features[j]) for j in others))
            terms.append(-np.mean([scale * features[i] @ features[j] - total for j in positives]))
    return float(np.mean(terms))


@pytest.mark.parametrize("scale", [1.0, 25.0])
def test_value_and_gradient_are_those_of_the_reference(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(9, 5, generator=generator, dtype=torch.float64), dim=1).requires_grad_()
    groups = [0, 0, 1, 1, 1, 2, 2, 3, 2]
    ignored = torch.rand(9, 9, generator=generator) < 0.3
    value = group_info_nce(rows, torch.tensor(groups), scale, ignored)
    plain = rows.detach().numpy()
    assert value.item() == pytest.approx(reference(plain, groups, scale, ignored.numpy()), abs=1e-12)
    value.backward()
    places = [(0, 0), (4, 3), (7, 1), (8, 4)]
    assert_slopes(lambda moved: reference(moved, groups, scale, ignored.numpy()), [rows], [places], within=1e-6)


def test_two_of_each_group_across_two_sides_are_info_nce_with_own_side_ignored() -> None:
    """Names against definitions, where each side is no negative of itself: CLIP's loss."""
    generator = torch.Generator().manual_seed(1)
    names, told = (F.normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    side = torch.arange(12) < 6
    groups = torch.arange(6).repeat(2)
    got = group_info_nce(torch.cat([names, told]), groups, 10.0, side[:, None] == side[None, :])
    assert got.item() == pytest.approx(info_nce(names, told, torch.tensor(10.0)).item(), abs=1e-12)


def test_ignored_pairs_get_no_gradient_and_lone_texts_are_left_out() -> None:
    rows = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(2)), dim=1)
    groups = torch.tensor([0, 0, 1, 1, 2])
    ignored = torch.zeros(5, 5, dtype=torch.bool)
    ignored[4, :] = ignored[:, 4] = True
    all_rows = rows.clone().requires_grad_()
    group_info_nce(all_rows, groups, 5.0, ignored).backward()
    assert all_rows.grad is not None
    assert all_rows.grad[4].abs().max() == 0
    without = group_info_nce(rows[:4], groups[:4], 5.0)
    torch.testing.assert_close(group_info_nce(rows, groups, 5.0, ignored), without)
    with pytest.raises(ValueError, match="two or more of each group"):
        group_info_nce(rows, torch.arange(5), 5.0)
