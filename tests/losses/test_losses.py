"""Losses against ten-line NumPy references (value and gradient), reduction properties and extreme inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_med.losses.config import InfoNCEConfig, SigmoidConfig
from clip_med.losses.contrastive import build_loss
from clip_med.losses.infonce import info_nce
from clip_med.losses.positives import positive_pairs
from clip_med.losses.sigmoid import sigmoid_loss

Array = NDArray[np.float64]
IDS = torch.tensor([[1, -1], [2, 9], [1, -1], [3, 9], [4, -1], [5, -1]])
POSITIVE = np.array(
    [
        [1, 0, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ],
    dtype=float,
)


def features(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.nn.functional.normalize(torch.randn(2, n, 8, generator=generator, dtype=torch.float64), dim=-1)
    return pair[0].to(dtype), pair[1].to(dtype)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def numpy_info_nce(v: Array, t: Array, s: float, positive: Array) -> tuple[float, Array, Array, float]:
    """Loss and gradients for v, t and s: dL/dz = (softmax - Q) / 2B in either direction."""
    z, q = s * v @ t.T, positive / positive.sum(axis=1, keepdims=True)
    p_image, p_text = softmax(z), softmax(z.T)
    loss = -(q * np.log(p_image)).sum() / len(v) / 2 - (q * np.log(p_text)).sum() / len(v) / 2
    dz = ((p_image - q) + (p_text - q).T) / (2 * len(v))
    return float(loss), s * dz @ t, s * dz.T @ v, float((dz * (v @ t.T)).sum())


def numpy_sigmoid(v: Array, t: Array, s: float, b: float, positive: Array) -> tuple[float, Array, Array, float, float]:
    z, y = s * v @ t.T + b, 2 * positive - 1
    loss = np.log1p(np.exp(-y * z)).sum() / len(v)
    dz = -y / (1 + np.exp(y * z)) / len(v)
    return float(loss), s * dz @ t, s * dz.T @ v, float((dz * (v @ t.T)).sum()), float(dz.sum())


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("ids", [None, IDS])
def test_info_nce_matches_numpy(scale: float, ids: Tensor | None) -> None:
    v, t = (x.requires_grad_() for x in features(6))
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    loss = info_nce(v, t, s, ids)
    loss.backward()
    expected = numpy_info_nce(v.detach().numpy(), t.detach().numpy(), scale, np.eye(6) if ids is None else POSITIVE)
    for got, want in zip((loss, v.grad, t.grad, s.grad), expected, strict=True):
        assert got is not None
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ids", [None, IDS])
def test_sigmoid_matches_numpy(ids: Tensor | None) -> None:
    v, t = (x.requires_grad_() for x in features(6, seed=1))
    s = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    loss = sigmoid_loss(v, t, s, b, ids)
    loss.backward()
    expected = numpy_sigmoid(v.detach().numpy(), t.detach().numpy(), 10.0, -3.0, np.eye(6) if ids is None else POSITIVE)
    for got, want in zip((loss, v.grad, t.grad, s.grad, b.grad), expected, strict=True):
        assert got is not None
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-10, atol=1e-12)


def test_positive_pairs() -> None:
    np.testing.assert_array_equal(positive_pairs(IDS, IDS).numpy(), POSITIVE.astype(bool))
    np.testing.assert_array_equal(positive_pairs(IDS[2:4], IDS, 2).numpy(), POSITIVE[2:4].astype(bool))
    unused = torch.full((3, 2), -1)
    np.testing.assert_array_equal(positive_pairs(unused, unused).numpy(), np.eye(3, dtype=bool))


def test_distinct_ids_reduce_to_plain_losses() -> None:
    v, t = features(6)
    ids = torch.arange(6)[:, None]
    s, b = torch.tensor(20.0, dtype=torch.float64), torch.tensor(-5.0, dtype=torch.float64)
    assert info_nce(v, t, s, ids).item() == pytest.approx(info_nce(v, t, s).item(), abs=1e-14)
    assert sigmoid_loss(v, t, s, b, ids).item() == pytest.approx(sigmoid_loss(v, t, s, b).item(), abs=1e-14)


def test_rows_of_the_targets_sum_to_one() -> None:
    """Where all logits are equal, a cross-entropy is ln B times the sum of its targets, however many are positive."""
    nothing = torch.zeros(6, 8, dtype=torch.float64)
    assert info_nce(nothing, nothing, torch.tensor(20.0), IDS).item() == pytest.approx(np.log(6), abs=1e-12)


def test_order_of_the_batch_does_not_matter() -> None:
    v, t = features(6)
    s, b, turn = torch.tensor(20.0).double(), torch.tensor(-5.0).double(), torch.tensor([3, 1, 5, 0, 2, 4])
    assert info_nce(v[turn], t[turn], s, IDS[turn]).item() == pytest.approx(info_nce(v, t, s, IDS).item(), abs=1e-12)
    shuffled = sigmoid_loss(v[turn], t[turn], s, b, IDS[turn]).item()
    assert shuffled == pytest.approx(sigmoid_loss(v, t, s, b, IDS).item(), abs=1e-12)


def test_known_values() -> None:
    v, t = torch.eye(2048)[:1024, :], torch.eye(2048)[1024:, :]
    start = sigmoid_loss(v, t, torch.tensor(10.0), torch.tensor(-10.0)).item()
    assert start == pytest.approx(10.0465, abs=5e-5)
    uniform = info_nce(v, t, torch.tensor(14.3)).item()
    assert uniform == pytest.approx(np.log(1024), abs=1e-5)
    assert info_nce(v[:1], t[:1], torch.tensor(14.3)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_features_keep_a_precise_loss(dtype: torch.dtype) -> None:
    v, t = features(6, dtype=dtype)
    s = torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(v, t, s)
        pairwise = sigmoid_loss(v, t, s, torch.tensor(-10.0))
    assert loss.dtype == pairwise.dtype == torch.float32
    expected = numpy_info_nce(v.double().numpy(), t.double().numpy(), 100.0, np.eye(6))[0]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    expected = numpy_sigmoid(v.double().numpy(), t.double().numpy(), 100.0, -10.0, np.eye(6))[0]
    assert pairwise.item() == pytest.approx(expected, rel=1e-5)


def test_build_loss_exponentiates_and_needs_a_bias_for_sigmoid() -> None:
    v, t = features(6)
    log_scale, bias = torch.tensor(2.0).double(), torch.tensor([-3.0]).double()
    built = build_loss(InfoNCEConfig())(v, t, log_scale, None, IDS)
    assert built.item() == info_nce(v, t, log_scale.exp(), IDS).item()
    built = build_loss(SigmoidConfig())(v, t, log_scale.reshape(1), bias, None)
    assert built.item() == sigmoid_loss(v, t, log_scale.exp(), bias[0]).item()
    with pytest.raises(ValueError, match="logit bias"):
        build_loss(SigmoidConfig())(v, t, log_scale, None, None)
