"""AdaSP against NumPy, value and gradient, and what it reduces to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.losses.adasp import adasp
from clip_med.losses.infonce import info_nce
from tests.slopes import assert_slopes


def reference(x: np.ndarray, groups: list[int], s: float, ignored: np.ndarray, weights: list[float] | None) -> float:
    """With the weights given, or None: those of the rows."""
    every, terms = sorted(set(groups)), []
    for number, g in enumerate(every):
        own = [i for i, k in enumerate(groups) if k == g]
        sums = [sum(np.exp(-s * x[a] @ x[p]) for p in own) for a in own]
        hh, he = 1 / sum(sums), sum(1 / total for total in sums)
        w = _weight(np.log(hh) / s, np.log(he) / s) if weights is None else weights[number]
        pos = hh**w * he ** (1 - w)
        rest = [b for b in range(len(groups)) if groups[b] != g]
        terms.append(
            -np.log(pos / (pos + sum(np.exp(s * x[a] @ x[b]) for a in own for b in rest if not ignored[a, b])))
        )
    return float(np.mean(terms))


def _weight(h: float, e: float) -> float:
    return 0.0 if h < 0 else float(2 * h * e / (h + e))


def weights(x: np.ndarray, groups: list[int], s: float) -> list[float]:
    found = []
    for g in sorted(set(groups)):
        rows = x[[i for i, k in enumerate(groups) if k == g]]
        away = np.exp(-s * rows @ rows.T).sum(1)
        found.append(_weight(-np.log(away.sum()) / s, np.log((1 / away).sum()) / s))
    return found


def rows(count: int, seed: int, *, spread: float = 0.4) -> Tensor:
    """Near a common direction, so that some groups are near each other and some are not."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(5, generator=generator, dtype=torch.float64)
    return F.normalize(centre + spread * torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize(("scale", "spread"), [(2.0, 3.0), (25.0, 0.4), (25.0, 3.0)])
def test_value_and_gradient_are_those_of_the_reference(scale: float, spread: float) -> None:
    x = rows(9, 0, spread=spread).requires_grad_()
    groups = [3, 3, 1, 1, 1, 7, 7, 8, 7]
    ignored = torch.rand(9, 9, generator=torch.Generator().manual_seed(1)) < 0.3
    value = adasp(x, torch.tensor(groups), scale, ignored)
    plain = x.detach().numpy()
    assert value.item() == pytest.approx(reference(plain, groups, scale, ignored.numpy(), None), abs=1e-11)
    value.backward()
    fixed = weights(plain, groups, scale)
    assert min(fixed) >= 0
    assert len(set(fixed)) > 1
    assert_slopes(
        lambda moved: reference(moved, groups, scale, ignored.numpy(), fixed),
        [x],
        [[(0, 0), (4, 3), (7, 1), (8, 4)]],
        within=2e-6,
    )


def test_one_text_of_each_group_is_info_nce_of_the_texts_with_themselves() -> None:
    x = rows(6, 2)
    expected = info_nce(x, x, torch.tensor(20.0))
    assert adasp(x, torch.arange(6), 20.0).item() == pytest.approx(expected.item(), abs=1e-12)


def test_order_does_not_matter_and_ignored_groups_push_nothing() -> None:
    x, groups = rows(8, 3).requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adasp(x[order], groups[order], 25.0), adasp(x, groups, 25.0))
    everything = torch.ones(8, 8, dtype=torch.bool)
    value = adasp(x, groups, 25.0, everything)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-12


def test_what_underflows_in_kep_is_finite_here() -> None:
    x = F.normalize(torch.tensor([[1.0, 0.1], [-1.0, 0.1], [0.1, 1.0], [0.2, 1.0]]), dim=1).requires_grad_()
    value = adasp(x, torch.tensor([0, 0, 1, 1]), 200.0)
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    with pytest.raises(ValueError, match="one group of texts"):
        adasp(x, torch.zeros(4, dtype=torch.int64), 25.0)
