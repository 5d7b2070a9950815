"""Distillation against NumPy, value and gradient, and real ranks against one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from clip_med.distributed import gather, gather_with_gradient, process_group, rank, world_size
from clip_med.losses.distill import distillation_loss
from tests.rank_server import RankServer

BATCH = 6


def rows(seed: int, width: int, count: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, dtype=torch.float64, generator=generator), dim=1)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def reference(
    v: NDArray[np.float64],
    t: NDArray[np.float64],
    s: float,
    u: NDArray[np.float64],
    w: NDArray[np.float64],
    r: float,
    T: float,
) -> tuple[float, NDArray[np.float64], NDArray[np.float64], float]:
    """Value, and gradients of images, texts and scale: d KL / d logits = student's shares - teacher's."""

    def shares(z: NDArray[np.float64]) -> NDArray[np.float64]:
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    q1, q2, p1, p2 = (shares(z) for z in (s * v @ t.T / T, s * t @ v.T / T, r * u @ w.T / T, r * w @ u.T / T))
    value = T**2 / 2 * ((p1 * np.log(p1 / q1)).sum() + (p2 * np.log(p2 / q2)).sum()) / len(v)
    g1, g2 = T / 2 * (q1 - p1) / len(v), T / 2 * (q2 - p2) / len(v)
    scale = float((g1 * (v @ t.T)).sum() + (g2 * (t @ v.T)).sum())
    return float(value), s * (g1 @ t + g2.T @ t), s * (g2 @ v + g1.T @ v), scale


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradients_against_numpy(temperature: float) -> None:
    v, t, scale = rows(0, 4).requires_grad_(), rows(1, 4).requires_grad_(), scalar(7.0).requires_grad_()
    # The teacher is wider than the student.
    u, w, teacher_scale = rows(2, 9).requires_grad_(), rows(3, 9).requires_grad_(), scalar(20.0)
    loss = distillation_loss(v, t, scale, u, w, teacher_scale, temperature=temperature)
    loss.backward()
    value, dv, dt, ds = reference(
        *(x.detach().numpy() for x in (v, t)), 7.0, *(x.detach().numpy() for x in (u, w)), 20.0, temperature
    )
    assert loss.item() == pytest.approx(value, abs=1e-12)
    assert value > 0.1
    for got, expected in ((v.grad, dv), (t.grad, dt), (scale.grad, np.float64(ds))):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    assert u.grad is None
    assert w.grad is None


def test_the_teacher_itself_has_nothing_to_learn() -> None:
    v, t, scale = rows(0, 4).requires_grad_(), rows(1, 4).requires_grad_(), scalar(30.0).requires_grad_()
    loss = distillation_loss(v, t, scale, v.detach(), t.detach(), scalar(30.0))
    loss.backward()
    assert abs(loss.item()) < 1e-14
    for parameter in (v, t, scale):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-14


def test_features_in_bf16_are_compared_in_fp32() -> None:
    v, t, u, w = (rows(seed, 8).bfloat16() for seed in range(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = distillation_loss(v, t, torch.tensor(100.0), u, w, torch.tensor(100.0))
    assert got.dtype == torch.float32
    value, *_ = reference(
        *(x.double().numpy() for x in (v, t)), 100.0, *(x.double().numpy() for x in (u, w)), 100.0, 1.0
    )
    assert got.item() == pytest.approx(value, rel=1e-5)


def local_loss(v: Tensor, t: Tensor, scale: Tensor) -> Tensor:
    """This rank's loss for its part of the teacher's rows."""
    own = slice(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size())
    u, w = rows(2, 9)[own], rows(3, 9)[own]
    return distillation_loss(
        v[own],
        t[own],
        scale,
        u,
        w,
        scalar(20.0),
        all_image_features=gather_with_gradient(v[own]),
        all_text_features=gather_with_gradient(t[own]),
        all_teacher_image_features=gather(u),
        all_teacher_text_features=gather(w),
    )


def student() -> tuple[Tensor, Tensor, Tensor]:
    return rows(0, 4).requires_grad_(), rows(1, 4).requires_grad_(), scalar(7.0).requires_grad_()


def run_rank(file: str) -> None:
    """The loss of this rank's part; rank 0 writes the means."""
    with process_group("cpu"):
        parameters = student()
        loss = local_loss(*parameters)
        loss.backward()
        # What DistributedDataParallel does to gradients: the mean over the ranks.
        values = [loss.detach(), *(parameter.grad for parameter in parameters)]
        for value in values:
            assert value is not None
            dist.all_reduce(value)
        if rank() == 0:
            torch.save([value / world_size() for value in values if value is not None], file)
        dist.barrier()
    print(json.dumps(len(values)))


def test_two_ranks_compute_the_loss_and_gradients_of_one_process(ranks: RankServer, tmp_path: Path) -> None:
    assert ranks.results(2, run_rank, str(tmp_path / "results.pt")) == [4, 4]
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    parameters = student()
    loss = local_loss(*parameters)
    loss.backward()
    assert len(results) == 4
    for got, expected in zip(results, [loss.detach(), *(p.grad for p in parameters)], strict=True):
        assert expected is not None
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
