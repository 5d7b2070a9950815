"""Evaluation agrees with open_clip; training draws only from its generator and never mirrors what has sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from clip_med.config import validate
from clip_med.data import augment as module
from clip_med.data.augment import AugmentConfig, changes_for, eval_image, train_image
from clip_med.data.images import Preprocess
from clip_med.data.presets import PRESETS

STILL = {"rotation": 0.0, "brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "color": 0.0}
WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
SIDED = ("xray", "mammography", "ct", "mri", "ultrasound", "fundus", "oct", "endoscopy", "something new")
FREE = ("histology", "dermoscopy", "microscopy")


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def photograph(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with some grain: what resizing meets in practice."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    grain = rng.integers(-12, 13, (height, width, 3))
    image = np.clip(np.asarray(coarse).astype(int) + grain, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image[:, :, :channels])


def open_clip_eval(image: np.ndarray, preprocess: Preprocess) -> torch.Tensor:
    """open_clip's own evaluation transform, its normalisation undone: float grey levels [3, S, S]."""
    transform = image_transform_v2(PreprocessCfg(**preprocess.to_open_clip()), is_train=False)
    normalised = transform(Image.fromarray(image.squeeze()))
    mean, std = torch.tensor(preprocess.mean)[:, None, None], torch.tensor(preprocess.std)[:, None, None]
    return (normalised * std + mean) * 255.0


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(300, 421), (421, 300), (96, 96), (50, 81), (97, 96), (700, 233)])
def test_eval_agrees_with_open_clip(mode: str, interpolation: str, channels: int, shape: tuple[int, int]) -> None:
    preprocess = Preprocess(size=96, resize_mode=mode, interpolation=interpolation, fill_color=77)  # type: ignore[arg-type]
    image = photograph(*shape, channels)
    difference = (eval_image(image, preprocess).float() - open_clip_eval(image, preprocess)).abs()
    assert difference.mean() < 0.25  # of 255; both round after each of two passes, 700 -> 96 differs most
    assert difference.max() < 2.01


def test_eval_agrees_with_open_clip_on_real_images(shared_corpus: Path) -> None:
    paths = sorted((shared_corpus / "images").rglob("*.jp*g"))
    chosen = paths[:: max(1, len(paths) // 12)][:12]
    assert len(chosen) == 12
    for path in chosen:
        with Image.open(path) as opened:
            image = np.array(opened.convert("RGB"))
        difference = (eval_image(image, Preprocess()).float() - open_clip_eval(image, Preprocess())).abs()
        assert difference.mean() < 0.1
        assert difference.max() < 2.01


def test_padding_has_the_fill_colour() -> None:
    preprocess = Preprocess(size=32, resize_mode="longest", fill_color=77)
    image = eval_image(np.full((20, 80, 1), 200, np.uint8), preprocess)
    assert image[:, :12].unique().tolist() == [77]
    assert image[:, 12:20].unique().tolist() == [200]
    assert image[:, 20:].unique().tolist() == [77]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (3, 50_000)])
def test_extreme_shapes(mode: str, shape: tuple[int, int]) -> None:
    preprocess = Preprocess(size=32, resize_mode=mode)  # type: ignore[arg-type]
    image = np.full((*shape, 1), 90, np.uint8)
    assert eval_image(image, preprocess).shape == (3, 32, 32)
    assert eval_image(image, preprocess).amax() == 90
    assert train_image(image, preprocess, AugmentConfig(), generator(0), "xray").shape == (3, 32, 32)


def test_read_only_and_turned_arrays_are_accepted() -> None:
    image = photograph(40, 50, 3)
    frozen = image.copy()
    frozen.flags.writeable = False
    expected = eval_image(image, Preprocess(size=32))
    assert torch.equal(eval_image(frozen, Preprocess(size=32)), expected)
    assert torch.equal(eval_image(image[:, ::-1][:, ::-1], Preprocess(size=32)), expected)


@pytest.mark.parametrize("modality", [*PRESETS, "unknown"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_depends_on_the_generator_alone(modality: str, channels: int) -> None:
    image, preprocess = photograph(120, 90, channels), Preprocess(size=48)
    kept = image.copy()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state()
    first = train_image(image, preprocess, AugmentConfig(), generator(1), modality)
    np.random.seed(1)  # noqa: NPY002
    again = train_image(image, preprocess, AugmentConfig(), generator(1), modality)
    other = train_image(image, preprocess, AugmentConfig(), generator(2), modality)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(image, kept)
    assert first.shape == (3, 48, 48)
    assert first.is_contiguous()
    if channels == 1:
        assert torch.equal(first[0], first[1])
        assert torch.equal(first[0], first[2])


def test_threads_change_nothing() -> None:
    image = photograph(600, 500, 3)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            results.append(train_image(image, Preprocess(), AugmentConfig(), generator(5), "fundus"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("config", [AugmentConfig(), AugmentConfig(rotation=0.0), AugmentConfig(horizontal_flip="on")])
def test_the_number_of_draws_is_fixed(config: AugmentConfig) -> None:
    rng, reference = generator(3), generator(3)
    train_image(photograph(60, 60, 3), Preprocess(size=32), config, rng, "histology", caption="left")
    reference.random(13)
    assert rng.random() == reference.random()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_disabled_is_evaluation(mode: str) -> None:
    image, preprocess = photograph(70, 100, 3), Preprocess(size=48, resize_mode=mode)  # type: ignore[arg-type]
    rng = generator(0)
    plain = train_image(image, preprocess, AugmentConfig(enabled=False), rng, "histology")
    assert torch.equal(plain, eval_image(image, preprocess))
    assert rng.random() == generator(0).random()


@pytest.mark.parametrize("mode", ["longest", "squash", "shortest"])
def test_without_jitter_the_crop_is_what_evaluation_shows(mode: str) -> None:
    preprocess = Preprocess(size=48, resize_mode=mode)  # type: ignore[arg-type]
    image = photograph(100, 100 if mode == "shortest" else 70, 3)
    still = train_image(image, preprocess, AugmentConfig(**STILL, **WHOLE), generator(0), "xray")
    assert torch.equal(still, eval_image(image, preprocess))


def test_crops_cover_the_asked_area_and_the_whole_image() -> None:
    # Each pixel holds its own coordinate, so that a crop tells where it was: rows in channel 0, columns in 1.
    y, x = np.mgrid[0:200, 0:200]
    image = np.stack([y, x, np.zeros_like(y)], axis=-1).astype(np.uint8)
    config = AugmentConfig(scale=(0.4, 0.8), ratio=(0.9, 1.11), **STILL)
    areas, ratios, tops = [], [], []
    for seed in range(300):
        crop = train_image(image, Preprocess(size=50), config, generator(seed), "xray").float()
        step = 50 / 49  # from the centres of the outer pixels to the edges of the crop
        height = float(crop[0, 40, 25] - crop[0, 9, 25]) / 31 * 49 * step
        width = float(crop[1, 25, 40] - crop[1, 25, 9]) / 31 * 49 * step
        areas.append(height * width / 200**2)
        ratios.append(width / height)
        tops.append(float(crop[0, 0].mean()))
    assert 0.36 < min(areas) < 0.45
    assert 0.75 < max(areas) < 0.86
    assert abs(np.mean(areas) - 0.6) < 0.03
    assert 0.85 < min(ratios) < 0.93
    assert 1.07 < max(ratios) < 1.18
    assert min(tops) < 6
    assert max(tops) > 50


@pytest.mark.parametrize("shape", [(480, 480), (301, 402), (333, 211), (170, 499)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_grey_crops_are_resized_as_exactly_as_by_torch(shape: tuple[int, int], interpolation: str) -> None:
    """Against double precision: torch's own uint8 code is 0.3 grey levels away on average, 3 at most."""
    preprocess = Preprocess(size=148, interpolation=interpolation)  # type: ignore[arg-type]
    whole = torch.as_tensor(photograph(520, 530, 1)).permute(2, 0, 1)
    crop = whole[:, 7 : 7 + shape[0], 5 : 5 + shape[1]]
    exact = torch.nn.functional.interpolate(crop[None].double(), size=(148, 148), mode=interpolation, antialias=True)
    ours, theirs = (
        (resized - exact[0].clamp(0, 255)).abs()
        for resized in (module._resize_crop(crop, preprocess), module._interpolate(crop, [148, 148], preprocess))
    )
    assert ours.shape == (1, 148, 148)
    assert float(ours.mean()) < float(theirs.mean()) + 0.02 < 0.4
    assert float(ours.max()) < 4


def sided_image(channels: int = 3) -> np.ndarray:
    """Four corners of different brightness: every flip and turn can be told."""
    image = np.zeros((64, 64, channels), np.uint8)
    image[:32, :32], image[:32, 32:], image[32:, :32], image[32:, 32:] = 20, 90, 160, 230
    return image


def arrangements(modality: str, config: AugmentConfig | None = None, caption: str = "") -> set[tuple[int, ...]]:
    """Which of the 8 arrangements of the corners occur in 96 draws: ranks of the corners' brightness."""
    config = config or AugmentConfig(**STILL, **WHOLE)
    seen = set()
    for seed in range(96):
        image = train_image(sided_image(), Preprocess(size=32), config, generator(seed), modality, caption=caption)
        corners = image[0, [4, 4, 27, 27], [4, 27, 4, 27]]
        seen.add(tuple(corners.argsort().argsort().tolist()))
    return seen


UPRIGHT, MIRRORED, UPSIDE_DOWN = (0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1)


@pytest.mark.parametrize("modality", SIDED)
def test_sided_modalities_are_never_mirrored_or_turned(modality: str) -> None:
    assert arrangements(modality) == {UPRIGHT}
    assert arrangements(modality, AugmentConfig()) == {UPRIGHT}  # nor by rotation, crop and contrast together


@pytest.mark.parametrize("modality", FREE)
def test_free_modalities_show_all_eight_arrangements(modality: str) -> None:
    assert len(arrangements(modality)) == 8


@pytest.mark.parametrize("modality", FREE)
def test_a_side_in_the_caption_stops_every_flip(modality: str) -> None:
    assert arrangements(modality, caption="Naevus on the left forearm.") == {UPRIGHT}
    assert len(arrangements(modality, caption="Naevus on the forearm.")) == 8


def test_policies_override_the_modality() -> None:
    on = AugmentConfig(horizontal_flip="on", **STILL, **WHOLE)
    assert arrangements("xray", on, caption="left effusion") == {UPRIGHT, MIRRORED}
    off = AugmentConfig(horizontal_flip="off", vertical_flip="off", quarter_turns="off", **STILL, **WHOLE)
    assert arrangements("histology", off) == {UPRIGHT}
    vertical = AugmentConfig(vertical_flip="on", **STILL, **WHOLE)
    assert arrangements("xray", vertical) == {UPRIGHT, UPSIDE_DOWN}
    turns = AugmentConfig(quarter_turns="on", **STILL, **WHOLE)
    assert len(arrangements("xray", turns)) == 4


def test_flips_are_as_frequent_as_not() -> None:
    config = AugmentConfig(horizontal_flip="on", **STILL, **WHOLE)
    flips = 0
    for seed in range(400):
        image = train_image(sided_image(1), Preprocess(size=16), config, generator(seed), "xray")
        flips += int(image[0, 2, 2] > image[0, 2, 13])
    assert abs(flips - 200) < 5 * 10  # standard deviation 10


@pytest.mark.parametrize("degrees", [7.0, -12.5, 30.0])
@pytest.mark.parametrize("fill", [0, 90])
@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_equals_torchvisions(degrees: float, fill: int, channels: int) -> None:
    pixels = torch.as_tensor(photograph(96, 96, channels)).permute(2, 0, 1).contiguous()
    ours = module._rotate(pixels, degrees, Preprocess(size=96, fill_color=fill))
    theirs = F.rotate(pixels, degrees, InterpolationMode.BILINEAR, fill=[float(fill)] * channels)
    difference = (ours.int() - theirs.int()).abs()
    # Inside the largest circle all samples lie in the image; at its border the two blend with the fill differently.
    y, x = torch.meshgrid(torch.arange(96) - 47.5, torch.arange(96) - 47.5, indexing="ij")
    assert difference[:, (y**2 + x**2) < 45**2].max() <= 1
    assert (difference > 1).float().mean() < 0.02
    assert ours[:, 0, 0].tolist() == [fill] * channels or abs(degrees) < 10


def test_intensity_follows_its_formula() -> None:
    image = photograph(40, 40, 3)
    draws = np.array([0.9, 0.2, 0.7, 0.1, 0.5, 1.0])
    config = AugmentConfig(brightness=0.2, contrast=0.3, gamma=0.1, color=0.05)
    ours = module._jitter(torch.as_tensor(image).permute(2, 0, 1), changes_for(config, "", ""), draws)
    gamma = np.exp(0.1 * 0.4)
    values = (image / 255.0) ** gamma
    mean = (image.mean() / 255.0) ** gamma
    expected = ((values - mean) * (1 - 0.3 * 0.6) + mean) * (1 + 0.2 * 0.8) * np.array([0.96, 1.0, 1.05])
    expected = np.clip(np.round(expected * 255), 0, 255)
    np.testing.assert_allclose(expected[:, :, 1], ours[1].numpy(), atol=0)
    expected[:, :, 0] = np.clip(np.round(((values - mean) * 0.82 + mean)[:, :, 0] * 1.16 * 0.96 * 255), 0, 255)
    np.testing.assert_allclose(expected.transpose(2, 0, 1), ours.numpy(), atol=0)


def test_order_of_grey_levels_survives() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, axis=0)
    for modality in PRESETS:
        config = AugmentConfig(rotation=0.0, horizontal_flip="off", vertical_flip="off", quarter_turns="off", **WHOLE)
        for seed in range(10):
            row = train_image(ramp, Preprocess(size=64), config, generator(seed), modality)[0, 32].int()
            assert (row.diff() >= 0).all(), modality
            assert row[-1] - row[0] > 130


def test_colour_moves_only_where_allowed() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    for modality in [*PRESETS, "unknown"]:
        spread = 0
        for seed in range(20):
            image = train_image(grey, Preprocess(size=16), AugmentConfig(rotation=0.0), generator(seed), modality)
            spread = max(spread, int(image.amax() - image.amin()))
        assert (spread > 0) == (modality in ("histology", "dermoscopy")), modality
        assert spread <= 16


def test_config_checks_its_ranges() -> None:
    parsed = validate(AugmentConfig, {"scale": [0.8, 1.0], "horizontal_flip": "off", "rotation": 3})
    assert parsed == AugmentConfig(scale=(0.8, 1.0), horizontal_flip="off", rotation=3.0)
    for values, message in [
        ({"scale": [0.9, 0.5]}, "augment.scale"),
        ({"scale": [0.0, 1.0]}, "augment.scale"),
        ({"ratio": [0.0, 1.0]}, "augment.ratio"),
        ({"brightness": 0.95}, "brightness"),
        ({"horizontal_flip": "sometimes"}, "horizontal_flip"),
        ({"hflip": "on"}, "hflip"),
    ]:
        with pytest.raises(ValueError, match=message):
            validate(AugmentConfig, values)
