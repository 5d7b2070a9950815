"""Parameter groups and the schedule, against a list by hand and a formula by hand."""

from __future__ import annotations

import math

import pytest

from clip_med.models.config import ViTModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.training.config import OptimConfig, ScheduleConfig, TrainConfig
from clip_med.training.optim import build_optimizer, learning_rate, parameter_groups, set_learning_rate


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return build_model(
        ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=1, text_width=32, text_layers=1)
    )


def test_each_trainable_parameter_is_in_one_group_and_only_matrices_decay(encoder: DualEncoder) -> None:
    encoder.lock()
    groups = parameter_groups(encoder, OptimConfig(weight_decay=0.1))
    names = {id(p): name for name, p in encoder.clip.named_parameters()}
    placed = {str(g["name"]): sorted(names[id(p)] for p in g["params"]) for g in groups}  # type: ignore[attr-defined]
    everything = [name for members in placed.values() for name in members]
    assert sorted(everything) == sorted(names.values())
    assert set(placed) == {"image decay", "image no decay", "text decay", "text no decay", "scale no decay"}
    assert placed["scale no decay"] == ["logit_scale"]
    assert {"text_projection", "token_embedding.weight"} <= set(placed["text decay"])
    assert {"positional_embedding", "ln_final.weight"} <= set(placed["text no decay"])
    assert {"visual.class_embedding", "visual.positional_embedding"} <= set(placed["image no decay"])
    assert {g["name"]: g["weight_decay"] for g in groups} == {n: 0.0 if "no" in n else 0.1 for n in placed}


def test_locked_towers_are_in_no_group(encoder: DualEncoder) -> None:
    encoder.lock(text="all", image="trunk")
    groups = parameter_groups(encoder, OptimConfig())
    assert [(g["name"], len(g["params"])) for g in groups] == [("image decay", 1), ("scale no decay", 1)]  # type: ignore[arg-type]
    encoder.lock(text="all", image="all")
    encoder.logit_scale.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is trainable"):
        parameter_groups(encoder, OptimConfig())
    encoder.logit_scale.requires_grad_(True)


def test_towers_have_their_own_rates(encoder: DualEncoder) -> None:
    encoder.lock()
    optimizer = build_optimizer(encoder, OptimConfig(lr=1e-3, text_lr_scale=0.1))
    set_learning_rate(optimizer, 5e-4)
    rates = {group["name"].split()[0]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"image": 5e-4, "text": 5e-5, "scale": 5e-4})


def test_schedule_against_the_formula() -> None:
    optim, schedule = OptimConfig(lr=2.0), ScheduleConfig(warmup_samples=100, floor=0.1)
    expected = {
        0: 0.0,
        25: 0.5,
        100: 2.0,
        550: 2.0 * (0.1 + 0.9 * 0.5),
        325: 2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
        1000: 0.2,
        2000: 0.2,
    }
    for seen, rate in expected.items():
        assert learning_rate(seen, 1000, optim, schedule) == pytest.approx(rate, abs=1e-12), seen
    assert learning_rate(0, 10, optim, ScheduleConfig()) == 2.0
    with pytest.raises(ValueError, match="warmup_samples 100 must be below"):
        learning_rate(0, 100, optim, schedule)


def test_layer_decay_gives_each_depth_its_rate(encoder: DualEncoder) -> None:
    encoder.lock()
    optimizer = build_optimizer(encoder, OptimConfig(lr=1e-3, layer_decay=0.5, text_lr_scale=0.1))
    names = {id(p): name for name, p in encoder.clip.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    # One block in each tower.
    expected = {"visual.proj": 1e-3, "visual.ln_post.weight": 5e-4, "visual.class_embedding": 2.5e-4}
    expected |= {"text_projection": 1e-4, "ln_final.weight": 5e-5, "transformer.resblocks.0.ln_1.bias": 5e-5}
    expected |= {"token_embedding.weight": 2.5e-5, "logit_scale": 1e-3}
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    set_learning_rate(optimizer, 2e-3)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups}["image x0.25 decay"] == pytest.approx(5e-4)
    with pytest.raises(ValueError, match="layer_decay must lie above 0"):
        OptimConfig(layer_decay=0.0)


def test_unlocked_layers_need_a_locked_tower() -> None:
    with pytest.raises(ValueError, match="unlock_image: 2 needs lock_image: trunk or all"):
        TrainConfig(samples=8, unlock_image=2)
    with pytest.raises(ValueError, match="cache_text needs unlock_text: 0, got 1"):
        TrainConfig(samples=8, lock_text="trunk", unlock_text=1, cache_text=True)
