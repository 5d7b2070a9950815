"""MedCLIP's loss against NumPy, value and gradient, and what it reduces to."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.config import ConfigError, config, validate
from clip_med.losses.config import LossConfig, SoftTargetsConfig
from clip_med.losses.contrastive import build_loss, chance_loss
from clip_med.losses.infonce import info_nce
from clip_med.losses.soft_targets import label_products, soft_target_loss
from tests.slopes import assert_slopes

# A caption, which does not count, and labels; the last sample has none.
IDS = torch.tensor([[9, 3, 4, -1], [9, 4, -1, -1], [9, 3, 4, 5], [9, 6, -1, -1], [9, -1, -1, -1]])
LABELS = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=float)


@config
class OnlyLoss:
    loss: LossConfig


def rows(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(5, 4, generator=generator, dtype=torch.float64), dim=1)


def reference(v: np.ndarray, t: np.ndarray, s: float, similarity: str, sharpness: float) -> float:
    y = LABELS @ LABELS.T
    if similarity == "cosine":
        norms = np.maximum(np.linalg.norm(LABELS, axis=1), 1)
        y /= np.outer(norms, norms)
    y[4, 4] = 1
    q = np.exp(sharpness * y)
    q /= q.sum(1, keepdims=True)
    total = 0.0
    for z in (s * v @ t.T, s * t @ v.T):
        total -= float((q * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1).mean()) / 2
    return total


@pytest.mark.parametrize(("similarity", "sharpness"), [("dot", 1.0), ("cosine", 7.0)])
def test_value_and_gradient_are_those_of_the_reference(similarity: Literal["dot", "cosine"], sharpness: float) -> None:
    v, t = rows(0).requires_grad_(), rows(1).requires_grad_()
    s = torch.tensor(9.0, dtype=torch.float64).requires_grad_()
    value = soft_target_loss(v, t, s, IDS, similarity=similarity, sharpness=sharpness)
    value.backward()

    def of(images: np.ndarray, texts: np.ndarray, factor: np.ndarray) -> float:
        return reference(images, texts, float(factor), similarity, sharpness)

    leaves, places = (v, t, s), [(0, 1), (2, 3), (4, 0)]
    assert value.item() == pytest.approx(of(*(leaf.detach().numpy() for leaf in leaves)), abs=1e-12)
    assert_slopes(of, leaves, (places, places, [()]), within=1e-7)


@pytest.mark.parametrize("labels", [[1, 2, 3, 4, 5], [1, 2, 1, 4, 1], [-1, -1, -1, -1, -1]])
def test_one_label_each_and_sharp_targets_are_info_nce_over_equal_labels(labels: list[int]) -> None:
    ids = torch.stack([torch.arange(5), torch.tensor(labels)], dim=1)
    found: list[list[Tensor]] = []
    for sharp in (False, True):
        v, t, s = rows(2).requires_grad_(), rows(3).requires_grad_(), torch.tensor(20.0).double().requires_grad_()
        value = soft_target_loss(v, t, s, ids, sharpness=1e4) if sharp else info_nce(v, t, s, ids[:, 1:])
        found.append([value.detach(), *torch.autograd.grad(value, (v, t, s))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def test_targets_without_sharpness_are_uniform() -> None:
    """Products of labels that are all 0 say nothing: every pair is as right as every other."""
    v, t, s = rows(6), rows(7), torch.tensor(9.0).double()
    value = soft_target_loss(v, t, s, IDS, sharpness=0.0)
    uniform = -(s * v @ t.T).log_softmax(1).mean() / 2 - (s * t @ v.T).log_softmax(1).mean() / 2
    assert value.item() == pytest.approx(uniform.item(), abs=1e-12)


def test_targets_do_not_depend_on_what_is_one_pair_or_on_the_order() -> None:
    v, t, s = rows(4), rows(5), torch.tensor(9.0)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(soft_target_loss(v[order], t[order], s, IDS[order]), soft_target_loss(v, t, s, IDS))
    # Unpaired: texts of the same labels may change places.
    ids = torch.tensor([[0, 3], [1, 3], [2, 4], [3, 4], [4, 5]])
    swapped = t[[1, 0, 3, 2, 4]]
    torch.testing.assert_close(soft_target_loss(v, swapped, s, ids), soft_target_loss(v, t, s, ids))
    products = label_products(IDS[:, 1:], IDS[:, 1:])
    assert torch.equal(products, products.T)


@pytest.mark.parametrize("tile", [1, 3, 8])
def test_parts_of_the_rows_give_the_same_loss_and_gradients(tile: int) -> None:
    found: list[list[Tensor]] = []
    for part in (None, tile):
        v, t, s = rows(8).requires_grad_(), rows(9).requires_grad_(), torch.tensor(20.0).double().requires_grad_()
        value = soft_target_loss(v, t, s, IDS, similarity="cosine", sharpness=3.0, tile=part)
        found.append([value.detach(), *torch.autograd.grad(value, (v, t, s))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-13)


def test_the_configuration_has_no_ring_and_the_loss_wants_labels() -> None:
    with pytest.raises(ConfigError, match=r"loss.*exchange"):
        validate(OnlyLoss, {"loss": {"kind": "soft_targets", "exchange": "ring"}})
    assert chance_loss(SoftTargetsConfig(), 128) is None
    with pytest.raises(ValueError, match="group ids"):
        build_loss(SoftTargetsConfig())(rows(6), rows(7), torch.tensor(1.0), None, None)
