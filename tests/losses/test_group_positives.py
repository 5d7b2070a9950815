"""KEEP's loss against NumPy, value and gradient, its reduction to InfoNCE, and which labels are relatives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.config import ConfigError, config, validate
from clip_med.data.batch import text_id
from clip_med.data.shards import Columns
from clip_med.losses.config import GroupPositivesConfig, LossConfig
from clip_med.losses.contrastive import build_loss, chance_loss
from clip_med.losses.group_positives import Relatives, group_positives
from clip_med.losses.infonce import info_nce
from clip_med.training.relatives import label_relatives
from tests.losses.test_tiled_losses import LargestTensor
from tests.slopes import assert_slopes
from tests.tiny_run import tiny_config

# Caption, label, label. Groups: 4 | 5 | 6 | the caption 93; captions 90 and labels 5 are shared over groups.
IDS = torch.tensor([[90, 4, -1], [91, 4, 5], [92, 5, -1], [90, 6, -1], [95, 6, -1], [96, 4, -1], [93, -1, -1]])
GROUPS = [4, 4, 5, 6, 6, 4, 93]
RELATIVES = Relatives(torch.tensor([4, 6, 93]), torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0]]).bool())
LEFT_OUT = {(1, 2), (0, 3), (3, 6), (4, 6)}


@config
class OnlyLoss:
    loss: LossConfig


def rows(seed: int, count: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=1)


def reference(v: np.ndarray, t: np.ndarray, s: float, groups: list[int], left_out: set[tuple[int, int]]) -> float:
    total = 0.0
    for z in (s * v @ t.T, s * t @ v.T):
        for g in set(groups):
            own = [i for i, k in enumerate(groups) if k == g]
            pos = sum(1 / sum(np.exp(-z[a, p]) for p in own) for a in own)
            rest = [(a, b) for a in own for b in range(len(groups)) if groups[b] != g]
            neg = sum(np.exp(z[a, b]) for a, b in rest if (min(a, b), max(a, b)) not in left_out)
            total -= np.log(pos / (pos + neg)) / len(set(groups)) / 2
    return float(total)


@pytest.mark.parametrize("scale", [2.0, 25.0])
def test_value_and_gradient_are_those_of_the_reference(scale: float) -> None:
    v, t, s = rows(0).requires_grad_(), rows(1).requires_grad_(), torch.tensor(scale, dtype=torch.float64)
    s.requires_grad_()
    value = group_positives(v, t, s, IDS, RELATIVES)
    value.backward()

    def of(images: np.ndarray, texts: np.ndarray, factor: np.ndarray) -> float:
        return reference(images, texts, float(factor), GROUPS, LEFT_OUT)

    leaves = (v, t, s)
    assert value.item() == pytest.approx(of(*(leaf.detach().numpy() for leaf in leaves)), abs=1e-11)
    assert_slopes(of, leaves, ([(0, 0), (3, 1), (6, 4)], [(1, 2), (2, 0), (5, 3)], [()]), within=2e-7)


def test_one_pair_of_each_group_is_info_nce_in_value_and_gradients() -> None:
    found: list[list[Tensor]] = []
    ids = torch.arange(14).reshape(2, 7).T
    for loss in (info_nce, group_positives):
        v, t, s = rows(2).requires_grad_(), rows(3).requires_grad_(), torch.tensor(30.0).double().requires_grad_()
        value = loss(v, t, s, ids)
        found.append([value.detach(), *torch.autograd.grad(value, (v, t, s))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-13)


def test_order_does_not_matter_and_relatives_push_nothing() -> None:
    v, t, s = rows(4).requires_grad_(), rows(5).requires_grad_(), torch.tensor(25.0)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    value = group_positives(v, t, s, IDS, RELATIVES)
    torch.testing.assert_close(group_positives(v[order], t[order], s, IDS[order], RELATIVES), value)
    everything = Relatives(torch.tensor([4, 5, 6, 93]), ~torch.eye(4, dtype=torch.bool))
    alone = group_positives(v, t, s, IDS, everything)
    alone.backward()
    assert alone.item() == pytest.approx(0.0, abs=1e-12)
    assert v.grad is not None
    assert v.grad.abs().max() < 1e-12


def test_what_underflows_in_keep_is_finite_here() -> None:
    v = F.normalize(torch.tensor([[1.0, 0.1], [-1.0, 0.1], [0.1, 1.0], [0.2, 1.0]]), dim=1).requires_grad_()
    value = group_positives(v, v.detach().flip(1), torch.tensor(200.0), torch.tensor([[0], [0], [1], [1]]))
    value.backward()
    assert value.isfinite()
    assert v.grad is not None
    assert v.grad.isfinite().all()


@pytest.mark.parametrize("tile", [1, 3, 7, 100])
def test_parts_of_the_rows_give_the_same_loss_and_gradients_and_hold_no_square(tile: int) -> None:
    found: list[list[Tensor]] = []
    for part in (None, tile):
        v, t, s = rows(8).requires_grad_(), rows(9).requires_grad_(), torch.tensor(20.0).double().requires_grad_()
        with LargestTensor() as seen:
            value = group_positives(v, t, s, IDS, RELATIVES, tile=part)
            found.append([value.detach(), *torch.autograd.grad(value, (v, t, s))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    # Seven rows of features of five numbers; a share beside seven logits.
    assert seen.elements == max(7 * 5, min(tile, 7) * 8)


def test_the_configuration_has_no_ring_and_the_loss_wants_groups() -> None:
    with pytest.raises(ConfigError, match=r"loss.*exchange"):
        validate(OnlyLoss, {"loss": {"kind": "group_positives", "exchange": "ring"}})
    assert chance_loss(GroupPositivesConfig(), 128) is None
    with pytest.raises(ValueError, match="needs loader\\.positives: label"):
        dataclasses.replace(tiny_config(Path("shards")), loss=GroupPositivesConfig())
    v = rows(6)
    with pytest.raises(ValueError, match="group ids"):
        build_loss(GroupPositivesConfig())(v, v, torch.tensor(1.0), None, None)


def test_relatives_are_ancestors_and_two_names_of_one_finding() -> None:
    labels = ("pneumonia", "COVID-19 pneumonia", "nonsense", "melanoma")
    numbers = np.arange(4)
    columns = Columns(("X-ray", "dermoscopy"), np.array([0, 0, 0, 1]), labels, numbers, numbers)
    meant = GroupPositivesConfig(findings={"nonsense": "derm_melanoma"})
    relatives, line = label_relatives(meant, columns)
    ids = torch.tensor([text_id(label, "label") for label in labels])
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert torch.equal(relatives.pairs(ids, ids), expected)
    assert torch.equal(relatives.pairs(ids[1:3], ids), expected[1:3])
    assert line == "groups: 4 labels, 2 pairs of relatives; not known: -"
    assert label_relatives(GroupPositivesConfig(), columns)[1].endswith("1 pairs of relatives; not known: nonsense")
    with pytest.raises(ValueError, match="no id of a finding"):
        label_relatives(GroupPositivesConfig(findings={"nonsense": "nothing"}), columns)
    with pytest.raises(ValueError, match="first label; none has any"):
        label_relatives(meant, Columns(("X-ray",), numbers * 0, (), numbers * 0 - 1, numbers))
