"""Real gloo groups of 2 and 4 processes against one process: loss and every gradient after DDP's averaging."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clip_med.distributed import process_group, rank, world_size
from clip_med.losses.config import GroupPositivesConfig, InfoNCEConfig, LossConfig, SigmoidConfig, SoftTargetsConfig
from clip_med.losses.contrastive import build_loss
from tests.losses.test_tiled_losses import LargestTensor
from tests.rank_server import RankServer

BATCH = 8
PLAIN: list[LossConfig] = [InfoNCEConfig(), SigmoidConfig()]
# Tiles of 3 are ragged for 2 ranks of 4 rows and larger than the 2 rows of 4 ranks; 1 is the smallest.
CONFIGS: list[LossConfig] = [
    *PLAIN,
    *(
        kind(tile=tile, exchange=exchange)
        for kind in (InfoNCEConfig, SigmoidConfig)
        for tile, exchange in ((3, "gather"), (None, "ring"), (3, "ring"), (1, "ring"))
    ),
]
CASES: dict[str, tuple[LossConfig, bool]] = {
    f"{config} {multi_positive}": (config, multi_positive) for config in CONFIGS for multi_positive in (False, True)
} | {
    "groups": (GroupPositivesConfig(), True),
    "groups in parts": (GroupPositivesConfig(tile=3), True),
    "soft": (SoftTargetsConfig(sharpness=3.0), True),
    "soft in parts": (SoftTargetsConfig(sharpness=3.0, tile=3), True),
}


class Pair(nn.Module):
    """Two small encoders, scale, bias and the loss, in one module as a trainer wraps them."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (
            nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double() for _ in range(2)
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.3, dtype=torch.float64))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
        self.loss = build_loss(config)

    def forward(self, images: Tensor, texts: Tensor, ids: Tensor | None) -> Tensor:
        v, t = (nn.functional.normalize(x, dim=-1) for x in (self.image(images), self.text(texts)))
        return self.loss(v, t, self.logit_scale, self.logit_bias, ids)


def plain(config: LossConfig) -> LossConfig:
    """The same loss without tiles and ring."""
    if isinstance(config, GroupPositivesConfig | SoftTargetsConfig):
        return dataclasses.replace(config, tile=None)
    return PLAIN[isinstance(config, SigmoidConfig)]


def inputs(multi_positive: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(2, BATCH, 6, generator=generator, dtype=torch.float64)
    # Equal ids lie on different ranks, so that a gather in another order would be noticed.
    ids = torch.tensor([[0, -1], [1, 9], [2, 0], [3, -1], [0, -1], [5, 9], [2, 7], [0, -1]])
    return images, texts, ids if multi_positive else None


def gradients(module: Pair) -> dict[str, Tensor]:
    # The bias takes no part in InfoNCE: None on every rank.
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def run_rank(file: str) -> None:
    """Every case, on this rank's part of the batch; the last rank writes what it found."""
    results = {}
    with process_group("cpu"):
        for name, (config, multi_positive) in CASES.items():
            module = Pair(config)
            wrapped = DistributedDataParallel(module, find_unused_parameters=True)
            images, texts, ids = inputs(multi_positive)
            own = own_part()
            loss = wrapped(images[own], texts[own], None if ids is None else ids[own])
            loss.backward()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            results[name] = (mean / world_size(), gradients(module))
        for config, multi_positive in CASES.values():
            compare_with_plain(config, multi_positive)
        measure_ring()
        if rank() == world_size() - 1:
            torch.save(results, file)
        # A rank that leaves while another still talks to it makes gloo abort that one.
        dist.barrier()
    print(json.dumps(len(results)))


def own_part() -> slice:
    return slice(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size())


def compare_with_plain(config: LossConfig, multi_positive: bool) -> None:
    """Cached features as leaves, and a caller who weighs ranks: each rank's value and features' gradients are equal."""
    images, texts, ids = inputs(multi_positive)
    own = own_part()
    found: list[list[Tensor]] = []
    for each in (plain(config), config):
        v, t = (nn.functional.normalize(x, dim=-1)[own].clone().requires_grad_() for x in (images, texts))
        s, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (2.3, -2.0))
        loss = build_loss(each)(v, t, s, b, None if ids is None else ids[own])
        (loss * (rank() + 1)).backward()
        assert v.grad is not None
        assert t.grad is not None
        assert s.grad is not None
        # A rank's own part of the scale's gradient may differ; the ranks' sum may not.
        dist.all_reduce(s.grad)
        found.append([loss.detach(), v.grad, t.grad, s.grad])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


def measure_ring() -> None:
    """Round the ring no rank makes a tensor that grows with the number of ranks, but for one number per row."""
    generator = torch.Generator().manual_seed(rank())
    for dtype in (torch.float64, torch.bfloat16):
        v, t = (torch.randn(12, 16, generator=generator).to(dtype).requires_grad_() for _ in range(2))
        for config in (InfoNCEConfig(tile=4, exchange="ring"), SigmoidConfig(tile=4, exchange="ring")):
            with LargestTensor() as seen:
                build_loss(config)(v, t, torch.tensor(1.0), torch.tensor(-1.0), None).backward()
            assert seen.elements == 12 * 16
        with LargestTensor() as seen:
            build_loss(InfoNCEConfig(tile=4))(v, t, torch.tensor(1.0), None, None).backward()
        assert seen.elements == world_size() * 12 * 16


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_compute_the_loss_and_gradients_of_one_process(ranks: RankServer, tmp_path: Path, size: int) -> None:
    assert ranks.results(size, run_rank, str(tmp_path / "results.pt")) == [len(CASES)] * size
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert set(results) == set(CASES)
    assert len(CASES) == 24
    for name, (config, multi_positive) in CASES.items():
        # One process, the plain loss.
        module = Pair(plain(config))
        loss = module(*inputs(multi_positive))
        loss.backward()
        mean, got = results[name]
        assert abs(mean.item() - loss.item()) < 1e-12, name
        expected = gradients(module)
        assert set(got) == set(expected) | ({"logit_bias"} if "logit_bias" in got else set())
        assert len(expected) == (10 if isinstance(config, SigmoidConfig) else 9)
        for parameter, gradient in expected.items():
            torch.testing.assert_close(got[parameter], gradient, rtol=0, atol=1e-12, msg=f"{name}: {parameter}")
