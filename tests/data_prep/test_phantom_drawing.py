"""Drawings: every combination of every modality draws, repeats by seed, and shows what its name says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import pytest

from data_prep.phantoms import dermoscopy, fundus, histology, ultrasound, xray
from data_prep.phantoms.draw import Array, Rendered
from data_prep.phantoms.tables import KINDS, MODALITIES, Kind

DRAW: Final[Mapping[str, Callable[[np.random.Generator, int, str, Mapping[str, str]], Rendered]]] = {
    "X-ray": xray.draw,
    "fundus": fundus.draw,
    "dermoscopy": dermoscopy.draw,
    "ultrasound": ultrasound.draw,
    "histology": histology.draw,
}
GREY: Final = ("X-ray", "ultrasound")
SEEDS: Final = range(5)
SIZE: Final = 96
# A finding moves the generator on, so that its speckle is not that of the normal drawing of the same seed: means of
# blocks differ by about 0.1 in ultrasound. A change counts from here.
NOTABLE: Final = 0.15
SIZED: Final = [(m, kind) for m in MODALITIES for kind in KINDS[m] if "size" in kind.axes]


def _image(modality: str, name: str, attributes: Mapping[str, str], seed: int) -> Array:
    return DRAW[modality](np.random.default_rng(seed), SIZE, name, attributes).image


def _blocks(image: Array) -> Array:
    """Grey means of blocks of 4 x 4 pixels [24, 24]: noise and speckle average out, findings stay."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    return grey.reshape(SIZE // 4, 4, SIZE // 4, 4).mean(axis=(1, 3))


def _change(modality: str, name: str, attributes: Mapping[str, str], seed: int) -> Array:
    """The drawing less the normal one of the same seed, [24, 24]: the finding, and a little noise."""
    normal = _image(modality, KINDS[modality][0].name, {}, seed)
    return _blocks(_image(modality, name, attributes, seed)) - _blocks(normal)


def _patches(mask: Array) -> list[int]:
    """Sizes of the 4-connected parts of a mask."""
    left, sizes = {(int(i), int(j)) for i, j in np.argwhere(mask)}, list[int]()
    while left:
        edge, size = [left.pop()], 0
        while edge:
            i, j = edge.pop()
            size += 1
            for place in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if place in left:
                    left.remove(place)
                    edge.append(place)
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_combination_draws_finite_pixels_that_the_seed_alone_decides(modality: str) -> None:
    shape = (SIZE, SIZE) if modality in GREY else (SIZE, SIZE, 3)
    for kind in KINDS[modality]:
        for attributes in kind.all():
            first, again, other = (_image(modality, kind.name, attributes, seed) for seed in (3, 3, 4))
            assert first.shape == shape, kind.named(attributes)
            assert first.dtype == np.float32, kind.named(attributes)
            assert np.isfinite(first).all(), kind.named(attributes)
            assert np.array_equal(first, again), kind.named(attributes)
            assert np.abs(first - other).mean() > 0.01, kind.named(attributes)


@pytest.mark.parametrize(("modality", "kind"), SIZED, ids=[kind.name for _, kind in SIZED])
def test_large_covers_more_than_small(modality: str, kind: Kind) -> None:
    for attributes in kind.all():
        if attributes["size"] == "small":
            shares = [
                np.mean([(np.abs(_change(modality, kind.name, a, seed)) > NOTABLE).mean() for seed in SEEDS])
                for a in (attributes, {**attributes, "size": "large"})
            ]
            assert shares[1] > 1.3 * shares[0], (kind.named(attributes), shares)


@pytest.mark.parametrize("kind", KINDS["ultrasound"][1:], ids=lambda kind: kind.name)
@pytest.mark.parametrize("size", ["small", "large"])
def test_superficial_lies_above_deep(kind: Kind, size: str) -> None:
    rows = np.arange(SIZE // 4)[:, None]
    heights: dict[str, float] = {}
    for depth in ("superficial", "deep"):
        attributes = {"size": size, "depth": depth}
        changes = [np.abs(_change("ultrasound", kind.name, attributes, seed)) - NOTABLE for seed in SEEDS]
        found = [np.maximum(change, 0.0) for change in changes]
        heights[depth] = float(np.mean([(rows * change).sum() / change.sum() for change in found]))
    assert heights["deep"] > heights["superficial"] + 1.0, heights


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("depth", ["superficial", "deep"])
def test_a_cyst_is_darker_than_its_surroundings_and_brightens_what_is_below(size: str, depth: str) -> None:
    for seed in SEEDS:
        blocks = _blocks(_image("ultrasound", "simple cyst", {"size": size, "depth": depth}, seed))
        row, column = (int(i) for i in np.unravel_index(blocks.argmin(), blocks.shape))
        assert blocks[row, column] < 0.5 * np.median(blocks), seed
        # The lowest of the dark blocks of this column: what is under it lies in the enhanced beam.
        dark = np.flatnonzero(blocks[:, column] < 0.6 * np.median(blocks))
        under = slice(int(dark.max()) + 2, int(dark.max()) + 5)
        beside = np.abs(np.arange(SIZE // 4) - column) > 7
        assert blocks[under, column].mean() > blocks[under, beside].mean(), seed


@pytest.mark.parametrize("name", ["carcinoma", "coarse calcification"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_what_stops_sound_darkens_what_is_below(name: str, size: str) -> None:
    for depth, below in (("superficial", slice(14, 20)), ("deep", slice(20, 24))):
        darkest: dict[str, float] = {}
        for drawn in (name, "lipoma"):  # a lipoma lets sound through: its darkest column is noise
            changes = [_change("ultrasound", drawn, {"size": size, "depth": depth}, seed) for seed in range(10)]
            darkest[drawn] = float(np.mean([change[below].mean(axis=0).min() for change in changes]))
        assert darkest[name] < darkest["lipoma"] - 0.04, (depth, darkest)


@pytest.mark.parametrize("name", ["necrosis", "haemorrhage"])
def test_focal_is_one_patch_multifocal_several_and_diffuse_nearly_everything(name: str) -> None:
    """Measured by colour: what these two put in the place of glands has far less blue than red."""
    shares: dict[str, list[float]] = {"focal": [], "multifocal": [], "diffuse": []}
    counts: dict[str, list[int]] = {"focal": [], "multifocal": [], "diffuse": []}
    for extent in shares:
        for seed in SEEDS:
            image = _image("histology", name, {"extent": extent}, seed)
            excess = _blocks(image[:, :, 0]) - _blocks(image[:, :, 2])
            mask = excess > 0.5 * np.percentile(excess, 95)
            shares[extent].append(float(mask.mean()))
            counts[extent].append(sum(size >= 6 for size in _patches(mask)))
    assert 0.1 < np.mean(shares["focal"]) < 0.3, shares
    assert 0.1 < np.mean(shares["multifocal"]) < 0.35, shares
    assert np.mean(shares["diffuse"]) > 0.75, shares
    assert set(counts["focal"]) == {1}, counts
    assert 3.5 <= np.mean(counts["multifocal"]) <= 6, counts


def test_an_effusion_on_the_left_whitens_the_base_on_the_right_of_the_image() -> None:
    """Against the effusion of the same seed on the other side, so that heart and liver are in both."""
    for size in ("small", "large"):
        for seed in SEEDS:
            left, right = (
                _blocks(_image("X-ray", "pleural effusion", {"size": size, "side": side}, seed))[15:19]
                for side in ("left", "right")
            )
            assert (left - right)[:, 15:21].mean() > 0.05, (size, seed)
            assert (right - left)[:, 3:9].mean() > 0.05, (size, seed)
