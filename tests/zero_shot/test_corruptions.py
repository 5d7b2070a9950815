"""Corruptions: what they depend on, that levels rise, and that each is what its name says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from zero_shot.corruptions import CORRUPTIONS, LEVELS, STRENGTHS, Corruption, corrupt

Y, X = np.mgrid[:96, :80]
# Waves with grain, as tissue has it.
GRAIN = np.random.default_rng(0).uniform(-30, 30, X.shape)
GREY = (128 + 80 * np.sin(X / 5) * np.cos(Y / 7) + GRAIN).astype(np.uint8)[:, :, None]
COLOUR = np.concatenate([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_damage_depends_on_seed_index_and_kind_and_rises_with_the_level(kind: Corruption, image: np.ndarray) -> None:
    before = image.copy()
    assert corrupt(image, kind, 0, seed=1, index=2) is image
    done = [corrupt(image, kind, level, seed=1, index=2) for level in LEVELS]
    assert np.array_equal(image, before)
    for found, again in zip(done, [corrupt(image, kind, level, seed=1, index=2) for level in LEVELS], strict=True):
        assert found.dtype == np.uint8
        assert found.shape[2] == image.shape[2]
        assert np.array_equal(found, again)
    if kind == "crop":
        areas = [found.shape[0] * found.shape[1] for found in done]
        assert areas == sorted(areas, reverse=True)
        assert areas[0] < 96 * 80
    else:
        away = [np.abs(found.astype(float) - image).mean() for found in done]
        assert away == sorted(away)
        assert 0 < away[0] < away[-1]
    others = [corrupt(image, kind, 5, seed=seed, index=index) for seed, index in [(1, i) for i in range(9)] + [(2, 2)]]
    differs = [other.shape != done[4].shape or not np.array_equal(other, done[4]) for other in others]
    assert not differs[2]
    # Blur, contrast and JPEG draw nothing.
    assert any(differs) == (kind not in ("blur", "contrast", "jpeg"))


def test_each_is_what_its_name_says() -> None:
    flat = np.full((200, 200, 1), 128, dtype=np.uint8)
    for level, deviation in zip(LEVELS, STRENGTHS["noise"], strict=True):
        assert corrupt(flat, "noise", level, seed=0, index=0).std() == pytest.approx(deviation, rel=0.03)
        left = corrupt(COLOUR, "contrast", level, seed=0, index=0)
        assert left.std() / COLOUR.std() == pytest.approx(STRENGTHS["contrast"][level - 1], rel=0.02)
    spot = np.zeros((101, 101, 1), dtype=np.uint8)
    spot[40:60, 40:60] = 255
    blurred = corrupt(spot, "blur", 5, seed=0, index=0)[:, :, 0].astype(float)
    assert np.abs(blurred - gaussian_filter(spot[:, :, 0].astype(float), 0.03 * 101)).mean() < 0.5
    # A bar that is upright is turned by the stated angle, about the centre.
    bar = np.zeros((201, 201, 1), dtype=np.uint8)
    bar[20:181, 98:103] = 255
    y, x = np.nonzero(corrupt(bar, "rotation", 4, seed=0, index=0)[:, :, 0] > 128)
    slope = np.polyfit(y, x, 1)[0]
    assert abs(np.degrees(np.arctan(slope))) == pytest.approx(16, abs=0.5)
    assert (y.mean(), x.mean()) == pytest.approx((100, 100), abs=0.5)
    numbered = np.arange(100 * 60, dtype=np.int64).reshape(100, 60, 1)
    part = corrupt((numbered // 60).astype(np.uint8), "crop", 3, seed=0, index=5)
    assert part.shape == (83, 50, 1)
    assert (np.diff(part[:, 0, 0].astype(int)) == 1).all()
    marked = corrupt(np.zeros_like(flat), "marker", 5, seed=0, index=0)[:, :, 0]
    rows, columns = np.nonzero(marked)
    # Letters lie away from the middle.
    assert (np.maximum(np.abs(rows - 100), np.abs(columns - 100)) > 20).all()
    assert 0.005 < (marked > 128).mean() < 0.2


def test_tiny_images_and_refusals() -> None:
    tiny = np.full((2, 3, 1), 9, dtype=np.uint8)
    for kind in CORRUPTIONS:
        assert min(corrupt(tiny, kind, 5, seed=0, index=0).shape) >= 1
    with pytest.raises(ValueError, match=r"0 \.\. 5, got 6"):
        corrupt(tiny, "noise", 6, seed=0, index=0)
