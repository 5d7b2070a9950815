"""The arithmetic of operations against torch's own count of what runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clip_med.models.compute import apply_compute
from clip_med.models.compute_config import ComputeConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.flops import FlopCount, peak_flops
from clip_med.models.folder import build_model
from clip_med.models.unlock import freeze
from tests.models.test_compute import RESNET, VIT, bert_model

# One length for all: torch counts padding too.
TEXTS = ["left " * 10, "right " * 10, "small " * 10]


def counted(encoder: DualEncoder) -> int:
    """What torch sees of a training step without the loss; attention as plain products, which it can count on CPUs."""
    size = encoder.preprocess.size
    tokens = encoder.tokenize(TEXTS)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        text = encoder.encode_text(tokens)
        image = encoder.encode_image(torch.rand(len(TEXTS), 3, size, size))
        (text.sum() + image.sum()).backward()
    return counter.get_total_flops()


def compare(encoder: DualEncoder, compute: ComputeConfig, tolerance: float) -> None:
    encoder.train()
    count = FlopCount(encoder, compute)
    lengths = encoder.text_tower.lengths(encoder.tokenize(TEXTS))
    assert count.step(lengths) == pytest.approx(counted(encoder), rel=tolerance)


@pytest.mark.parametrize(
    "compute", [ComputeConfig(), ComputeConfig(pooled_last_block=True), ComputeConfig(patch_dropout=0.5)]
)
@pytest.mark.parametrize("kind", ["open_clip", "bert"])
def test_transformers_cost_what_torch_counts(kind: str, compute: ComputeConfig, tmp_path: Path) -> None:
    encoder = build_model(VIT if kind == "open_clip" else bert_model(tmp_path / "bert"))
    apply_compute(encoder, compute)
    compare(encoder, compute, 0.01)


@pytest.mark.parametrize("kind", ["open_clip", "bert"])
def test_packed_texts_with_a_pooled_last_block(kind: str, tmp_path: Path) -> None:
    encoder = build_model(VIT if kind == "open_clip" else bert_model(tmp_path / "bert"))
    compute = ComputeConfig(pack_text=True, pooled_last_block=True)
    apply_compute(encoder, compute)
    compare(encoder, compute, 0.01)


@pytest.mark.parametrize(
    "locks",
    [
        {"image": "all"},
        {"text": "trunk"},
        {"image": "trunk", "unlock_image": 1},
        {"image": "all", "text": "trunk", "unlock_text": 2},
    ],
)
def test_frozen_parts_cost_less(locks: dict[str, object]) -> None:
    encoder = build_model(VIT)
    freeze(encoder, **locks)  # type: ignore[arg-type]
    compare(encoder, ComputeConfig(), 0.01)


def test_convolutional_towers_are_counted_by_running_them() -> None:
    # Pixels need no gradient, so the first convolution costs two passes and not three: 4 % of this small tower.
    compare(build_model(RESNET), ComputeConfig(), 0.06)


def test_padding_is_not_counted_and_cached_texts_cost_their_head_only() -> None:
    count = FlopCount(build_model(VIT), ComputeConfig())
    short, long = torch.tensor([3, 3, 3, 3]), torch.tensor([3, 3, 3, 20])
    # Two blocks of 12 W^2 entries at W = 32, seventeen tokens more, forward and twice backward; and attention.
    more = 3 * 2 * (2 * 12 * 32**2 * 17 + 4 * (20**2 - 3**2) * 32)
    assert count.step(long) - count.step(short) == more
    heads = 4 * 3 * 2 * 32 * 16
    images = count.step(short) - count.step(short.new_tensor([])) - 4 * count._head
    assert count.step(long, cached=True) == count.step(short, cached=True)
    assert count.step(short) - count.step(short, cached=True) == 3 * 2 * (2 * 12 * 32**2 * 12 + 4 * 4 * 9 * 32)
    assert 4 * count._head == heads
    assert images > 0


def test_a_usual_model_by_hand() -> None:
    """ViT-B/32 at 224 px with a text of 77 tokens: 7.3 and 2 x 2.95 GMAC forward, thrice for training."""
    encoder = _vit_b_32()
    image = 2 * (768 * 3 * 32**2 * 49 * 2 / 3 + 12 * 12 * 768**2 * 50 + 768 * 512) + 12 * 4 * 50**2 * 768
    text = 2 * (12 * 12 * 512**2 * 77 + 512 * 512) + 12 * 4 * 77**2 * 512
    assert FlopCount(encoder, ComputeConfig()).step(torch.tensor([77])) == pytest.approx(3 * (image + text), rel=1e-9)


def _vit_b_32() -> DualEncoder:
    import open_clip

    from clip_med.data.images import Preprocess
    from clip_med.models.construct import construct

    model_cfg = open_clip.get_model_config("ViT-B-32")
    assert model_cfg is not None
    return DualEncoder(construct(model_cfg), model_cfg, Preprocess(size=224), open_clip.SimpleTokenizer())


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "pure_bf16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("AMD EPYC", "bf16", None),
    ],
)
def test_peaks(name: str, precision: str, tera: float | None) -> None:
    assert peak_flops(name, precision) == (None if tera is None else tera * 1e12)
