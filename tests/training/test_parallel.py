"""Real gloo groups of 2 and 4 processes: DDP and FSDP2, with and without GradCache, take the steps of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from clip_med.distributed import process_group, rank, world_size
from clip_med.models.dual_encoder import DualEncoder
from clip_med.training.config import DDPConfig, FSDPConfig, ParallelConfig, TrainConfig
from clip_med.training.parallel import blocks, clip_gradients
from clip_med.training.step import TrainStep
from tests.rank_server import RankServer
from tests.training.steps import BATCH, LOSSES, batch, gradients, tiny_encoder, tiny_step, whole

STEPS = 4
CASES: dict[str, tuple[str, ParallelConfig, int | None]] = {
    **{f"ddp {loss}": (loss, DDPConfig(), None) for loss in LOSSES},
    **{f"fsdp {loss}": (loss, FSDPConfig(), None) for loss in LOSSES},
    "ddp cached": ("multi_positive", DDPConfig(), 1),
    "fsdp cached": ("sigmoid", FSDPConfig(reshard_after_forward=False), 1),
}


def take_steps(step: TrainStep, encoder: DualEncoder, *, multi: bool, own: slice) -> tuple[Any, ...]:
    """Loss, norm and gradients of the first step; weights after the last."""
    first: tuple[Any, ...] = ()
    for number in range(STEPS):
        result = step.gradients(batch(multi_positive=multi, own=own, step=number), number, lambda: None)
        if number == 0:
            first = (result.loss, result.grad_norm, gradients(encoder))
        step.update()
    return (*first, whole(encoder.clip.state_dict()))


def run_rank(file: str) -> None:
    """Every case, on this rank's part of each batch; the last rank writes what it found."""
    results: dict[str, Any] = {}
    with process_group("cpu"):
        own = slice(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size())
        for name, (loss, parallel, micro_batch) in CASES.items():
            encoder = tiny_encoder()
            step = tiny_step(encoder, LOSSES[loss][0], parallel=parallel, micro_batch=micro_batch)
            results[name] = take_steps(step, encoder, multi=LOSSES[loss][1], own=own)
        results["pure_bf16"] = pure_bf16_is_close(own)
        if rank() == world_size() - 1:
            torch.save(results, file)
        # A rank that leaves while another still talks to it makes gloo abort that one.
        dist.barrier()
    print(json.dumps(len(results)))


def pure_bf16_is_close(own: slice) -> dict[str, tuple[str, float]]:
    """Type of the sharded and copied fp32 weights, and the loss in bf16."""
    found: dict[str, tuple[str, float]] = {}
    for kind, parallel in (("ddp", DDPConfig()), ("fsdp", FSDPConfig())):
        encoder = tiny_encoder(dtype=torch.float32)
        step = tiny_step(encoder, LOSSES["info_nce"][0], parallel=parallel, precision="pure_bf16")
        loss = take_steps(step, encoder, multi=False, own=own)[0]
        found[kind] = (str({tensor.dtype for tensor in encoder.clip.parameters()}), loss)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_take_the_steps_of_one_process(ranks: RankServer, tmp_path: Path, size: int) -> None:
    assert ranks.results(size, run_rank, str(tmp_path / "results.pt")) == [len(CASES) + 1] * size
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    bf16 = results.pop("pure_bf16")
    assert set(results) == set(CASES)
    for name, (loss, _, _) in CASES.items():
        encoder = tiny_encoder()
        step = tiny_step(encoder, LOSSES[loss][0])
        expected = take_steps(step, encoder, multi=LOSSES[loss][1], own=slice(None))
        got = results[name]
        assert got[0] == pytest.approx(expected[0], abs=1e-12), name
        assert got[1] == pytest.approx(expected[1], abs=1e-12), name
        assert set(got[2]) == set(expected[2])
        assert len(expected[2]) == (63 if loss == "sigmoid" else 62)
        for parameter, gradient in expected[2].items():
            torch.testing.assert_close(got[2][parameter], gradient, rtol=0, atol=1e-12, msg=f"{name}: {parameter}")
        for parameter, value in expected[3].items():
            torch.testing.assert_close(got[3][parameter], value, rtol=0, atol=1e-8, msg=f"{name}: {parameter}")
    encoder = tiny_encoder(dtype=torch.float32)
    exact = take_steps(tiny_step(encoder, LOSSES["info_nce"][0]), encoder, multi=False, own=slice(None))[0]
    for kind, (dtypes, value) in bf16.items():
        assert dtypes == "{torch.float32}", kind
        assert value == pytest.approx(exact, abs=0.05), kind
        assert value != exact, kind


def test_blocks_are_the_outermost_of_both_towers() -> None:
    encoder = tiny_encoder()
    found = blocks(encoder.clip)
    assert found == [*encoder.clip.visual.transformer.resblocks, *encoder.clip.transformer.resblocks]


def test_the_norm_is_that_of_all_gradients_together() -> None:
    torch.manual_seed(0)
    parameters = [torch.zeros(3, 4, requires_grad=True), torch.zeros(5, requires_grad=True), torch.zeros(2)]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn(parameter.shape)
    flat = torch.cat([p.grad.flatten() for p in parameters[:2] if p.grad is not None])
    norm = clip_gradients(parameters, 0.5)
    assert norm == pytest.approx(float(flat.norm()), rel=1e-6)
    clipped: list[Tensor] = [p.grad.flatten() for p in parameters[:2] if p.grad is not None]
    torch.testing.assert_close(torch.cat(clipped), flat * 0.5 / norm, rtol=1e-5, atol=0)


def test_weights_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="channels_last: fsdp"):
        TrainConfig(samples=8, batch_size=8, channels_last=True, parallel=FSDPConfig())
