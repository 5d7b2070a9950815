"""albumentations as backend: the same presets, from the generator alone, each transform with numbers of its own."""

from __future__ import annotations

import importlib.util
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_med.config import validate
from clip_med.data.augment import AugmentConfig, train_image
from clip_med.data.images import Preprocess
from clip_med.data.loader import LoaderConfig
from clip_med.data.presets import PRESETS, preset_for
from tests.data.test_augment import FREE, SIDED, STILL, UPRIGHT, WHOLE, arrangements, generator, photograph
from tests.data.test_loader import SAMPLES, joined, loader, sample, take, write

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("albumentations") is None,
    reason="albumentations is not installed (pip install 'clip-med[aug]')",
)
THEIRS = AugmentConfig(backend="albumentations")


@needs_package
@pytest.mark.parametrize("modality", [*PRESETS, "unknown"])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_depend_on_the_generator_alone(modality: str, channels: int) -> None:
    image, preprocess = photograph(120, 90, channels), Preprocess(size=48)
    kept = image.copy()
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = train_image(image, preprocess, THEIRS, generator(1), modality)
    train_image(image, preprocess, THEIRS, generator(3), modality)
    random.seed(1)
    again = train_image(image, preprocess, THEIRS, generator(1), modality)
    assert torch.equal(first, again)
    assert not torch.equal(first, train_image(image, preprocess, THEIRS, generator(2), modality))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    np.testing.assert_array_equal(image, kept)
    assert first.shape == (3, 48, 48)
    if channels == 1:
        assert torch.equal(first[0], first[1])
        assert torch.equal(first[0], first[2])


@needs_package
def test_without_changes_both_backends_give_the_same_crop() -> None:
    still = AugmentConfig(**STILL)
    for mode in ("shortest", "longest", "squash"):
        preprocess = Preprocess(size=48, resize_mode=mode, fill_color=9)  # type: ignore[arg-type]
        for channels in (1, 3):
            images = [
                train_image(photograph(120, 90, channels), preprocess, config, generator(4), "xray")
                for config in (still, replace(still, backend="albumentations"))
            ]
            assert torch.equal(*images)


@needs_package
@pytest.mark.parametrize("modality", SIDED)
def test_sided_modalities_are_never_mirrored_or_turned(modality: str) -> None:
    assert arrangements(modality, THEIRS) == {UPRIGHT}


@needs_package
@pytest.mark.parametrize("modality", FREE)
def test_free_modalities_show_all_eight_arrangements_unless_a_side_is_named(modality: str) -> None:
    still = AugmentConfig(backend="albumentations", **STILL, **WHOLE)
    assert len(arrangements(modality, still)) == 8
    assert arrangements(modality, still, caption="Naevus on the left forearm.") == {UPRIGHT}


@needs_package
@pytest.mark.parametrize("modality", [*PRESETS, "unknown"])
def test_intensities_stay_within_the_preset_and_reach_its_edges(modality: str) -> None:
    """Two greys, half of the image each: their mean moves with brightness and gamma, their distance with contrast."""
    preset = preset_for(modality)
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:16] = 156
    off = {"horizontal_flip": "off", "vertical_flip": "off", "quarter_turns": "off"}
    only = dict.fromkeys(STILL, 0.0) | WHOLE | off
    for name, moved in (("brightness", lambda v: v.mean() / 128), ("contrast", lambda v: np.ptp(v) / 56)):
        config = AugmentConfig(backend="albumentations", **{**only, name: None})  # type: ignore[arg-type]
        factors = [
            moved(train_image(image, Preprocess(size=32), config, generator(seed), modality)[0].numpy().astype(float))
            for seed in range(60)
        ]
        limit = getattr(preset, name)
        assert 1 - limit - 0.03 < min(factors) < 1 - 0.8 * limit
        assert 1 + 0.8 * limit < max(factors) < 1 + limit + 0.03
    gamma = AugmentConfig(backend="albumentations", **{**only, "gamma": None})  # type: ignore[arg-type]
    exponents = [
        np.log(float(train_image(image, Preprocess(size=32), gamma, generator(seed), modality)[0, 20, 0]) / 255)
        / np.log(100 / 255)
        for seed in range(60)
    ]
    assert np.exp(-preset.gamma) - 0.02 < min(exponents) < 1 - 0.7 * preset.gamma
    assert 1 + 0.8 * preset.gamma < max(exponents) < np.exp(preset.gamma) + 0.02


@needs_package
def test_colour_moves_only_where_allowed_and_grey_levels_keep_their_order() -> None:
    grey = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    for modality in [*PRESETS, "unknown"]:
        spread = 0
        for seed in range(20):
            config = replace(THEIRS, rotation=0.0, horizontal_flip="off", vertical_flip="off", quarter_turns="off")
            image = train_image(grey, Preprocess(size=32), replace(config, **WHOLE), generator(seed), modality).int()
            spread = max(spread, int((image.amax(0) - image.amin(0)).max()))
            assert (image.diff(dim=-1) >= 0).all()
        assert (spread > 0) == (preset_for(modality).color > 0), modality
        assert spread <= 2 * 255 * preset_for(modality).color + 1


@needs_package
def test_transforms_do_not_share_their_numbers() -> None:
    """Seeded by one number for all, as `Compose` does it, every bright image would be mirrored and turned left."""
    image = np.zeros((64, 64, 1), np.uint8)
    image[8:56, 16:24] = 100  # a bar left of the middle
    config = AugmentConfig(
        backend="albumentations", **{**STILL, "rotation": 15.0, "brightness": 0.5}, **WHOLE, horizontal_flip="on"
    )
    found = []
    for seed in range(200):
        view = train_image(image, Preprocess(size=64), config, generator(seed), "xray")[0].double()
        _, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        upper, lower = ((half * columns[:32]).sum() / half.sum() for half in (view[:32], view[32:]))
        found.append((view.amax(), (view * columns).sum() / view.sum(), upper - lower))
    table = np.corrcoef(np.asarray([[float(value) for value in row] for row in found]).T)
    # Brightness, side and tilt; 200 draws have a standard error of 0.07.
    assert np.abs(table[0, 1:]).max() < 0.25
    # A flip after the rotation does turn the tilt round, half of the time.
    assert abs(table[1, 2]) < 0.25


@needs_package
def test_batches_are_the_same_with_any_ranks_and_workers_and_after_a_resume(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", [sample(i) for i in range(SAMPLES)])
    config = LoaderConfig(augment=THEIRS)
    expected = [joined([batch]) for batch in take(loader(shards, config=config), 5)]
    ranks = [loader(shards, config=config, workers=2, rank=rank, world_size=2, start=16) for rank in range(2)]
    parts = [take(rank, 3) for rank in ranks]
    for rank in ranks:
        rank.close()
    assert [joined(pair) for pair in zip(*parts, strict=True)] == expected[2:]
    assert expected[0]["images"] != joined(take(loader(shards), 1))["images"]


@needs_package
def test_no_server_is_asked_at_import() -> None:
    train_image(photograph(40, 40, 3), Preprocess(size=32), THEIRS, generator(0), "ct")
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_a_missing_package_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write(tmp_path / "s", [sample(i) for i in range(8)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'clip-med\[aug\]', or choose 'builtin'"):
        loader(shards, config=LoaderConfig(augment=THEIRS))
    loader(shards, config=LoaderConfig(augment=replace(THEIRS, enabled=False)))
    loader(shards)
    with pytest.raises(ValueError, match="did you mean 'albumentations'"):
        validate(LoaderConfig, {"augment": {"backend": "albumentation"}})
