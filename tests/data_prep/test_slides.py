"""Whole slides: tiles lie where the tissue is, at the resolution that was asked for, and bad slides are named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tifffile
from PIL import Image

from clip_med.cli import main
from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from data_prep import slide_reading, slides
from data_prep.record import RejectedImageError
from data_prep.slide_reading import Level, Slide, otsu, tissue_mask
from data_prep.slides import SlideConfig

WIDTH, HEIGHT = 1536, 1024
TISSUE = (slice(128, 640), slice(256, 1024))  # rows, columns


def drawn() -> np.ndarray:
    """Glass with one rectangle of tissue in which red and green say where a pixel lies."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(238, 246, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    tissue = np.stack([100 + columns // 16, 20 + rows // 16, np.full_like(rows, 220)], 2).astype(np.uint8)
    pixels[TISSUE] = tissue[TISSUE]
    return pixels


def slide(
    path: Path, *, pixels: np.ndarray | None = None, mpp: float | None = 0.5, levels: int = 3, **options: Any
) -> None:
    """A tiled TIFF with a pyramid, each level a quarter of the one before, as scanners write them."""
    pixels = drawn() if pixels is None else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", **options}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            factor = 4**level
            small = Image.fromarray(pixels).resize(
                (pixels.shape[1] // factor, pixels.shape[0] // factor), Image.Resampling.BOX
            )
            if mpp is not None:
                options |= {"resolution": (1e4 / mpp / factor,) * 2, "resolutionunit": "CENTIMETER"}
            writer.write(np.asarray(small), subfiletype=1 if level else 0, **options)


def run(root: Path, out: Path, *words: str) -> int:
    command = ["data", "slides", str(root), "--out", str(out), "--split", "train", "--image-format", "png"]
    overviews = [] if "--overviews" in words else ["--no-overviews"]
    words = tuple(word for word in words if word != "--overviews")
    return main([*command, "--secret", str(out.parent / "secret"), "--json", *overviews, *words])


def read(out: Path) -> list[Sample]:
    shards = ShardSet.open(out / "train")
    return [shards.read(i) for i in range(len(shards))]


def places(samples: list[Sample]) -> list[tuple[int, int]]:
    return [(int((s.provenance or {})["x"]), int((s.provenance or {})["y"])) for s in samples]


def rejected(out: Path) -> dict[str, tuple[str, str]]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {line["path"]: (line["reason"], line["detail"]) for line in lines}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides")
    slide(root / "ward/MUELLER-4711.svs.tif")
    return root


def test_tiles_lie_on_the_tissue_and_show_what_lies_there(one: Path, tmp_path: Path) -> None:
    assert run(one, tmp_path / "out", "--tile", "128", "--overviews") == 0
    samples = read(tmp_path / "out")
    expected = [(x, y) for y in range(128, 640, 128) for x in range(256, 1024, 128)]
    assert places(samples) == expected
    pixels = drawn()
    for sample, (x, y) in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(decode_image(sample.image), pixels[y : y + 128, x : x + 128])
    first = samples[0]
    assert first.spacing_mm == (0.0005, 0.0005)
    assert first.provenance == {"x": "256", "y": "128", "mpp": "0.5", "tissue": "1.00"}
    assert (first.modality, first.captions) == ("histology", ("A histology tile at 0.5 micrometres per pixel.",))
    assert len({sample.group for sample in samples}) == len({sample.study for sample in samples}) == 1
    reason, detail = rejected(tmp_path / "out")["ward/MUELLER-4711.svs.tif"]
    assert (reason, detail) == ("background tiles", "72 of 96 tiles have less than 0.5 tissue")
    assert main(["data", "verify", str(tmp_path / "out/train")]) == 0
    # The name stands in the list for people and beside the output, never in a shard.
    assert not any(b"MUELLER" in file.read_bytes() for file in (tmp_path / "out/train").iterdir())
    with Image.open(tmp_path / "out.overviews/ward/MUELLER-4711.svs.tif.png") as overview:
        drawing = np.asarray(overview)
    assert drawing.shape == (HEIGHT, WIDTH, 3)
    assert drawing[128, 256].tolist() == [0, 140, 60]
    assert drawing[128, 100].min() > 230


@pytest.mark.parametrize(
    ("words", "read_from", "side"),
    [
        (["--mpp", "2", "--tile", "32"], 128, 128),  # the second level as it is
        (["--mpp", "1", "--tile", "64"], 128, 128),  # twice as coarse as the first level
        (["--magnification", "5", "--tile", "32"], 128, 128),
    ],
)
def test_resolution_is_what_was_asked_for(
    one: Path, tmp_path: Path, words: list[str], read_from: int, side: int
) -> None:
    assert run(one, tmp_path / "out", *words) == 0
    samples = read(tmp_path / "out")
    assert places(samples) == [(x, y) for y in range(128, 640, read_from) for x in range(256, 1024, read_from)]
    pixels, tile = drawn(), int(words[-1])
    for sample, (x, y) in zip(samples, places(samples), strict=True):
        whole = Image.fromarray(pixels[y : y + side, x : x + side])
        expected = np.asarray(whole.resize((tile, tile), Image.Resampling.BOX)).astype(int)
        found = decode_image(sample.image)
        assert found.shape == (tile, tile, 3)
        assert np.abs(found[2:-2, 2:-2] - expected[2:-2, 2:-2]).max() <= 2


def test_overlap_and_the_least_share_of_tissue(one: Path, tmp_path: Path) -> None:
    assert run(one, tmp_path / "a", "--tile", "128", "--tile-overlap", "64", "--min-tissue", "1") == 0
    assert places(read(tmp_path / "a")) == [(x, y) for y in range(128, 513, 64) for x in range(256, 897, 64)]
    assert run(one, tmp_path / "b", "--tile", "96", "--min-tissue", "0.1") == 0
    samples = read(tmp_path / "b")
    mask = np.zeros((HEIGHT, WIDTH))
    mask[TISSUE] = 1
    grid = [(x, y) for y in range(0, HEIGHT - 95, 96) for x in range(0, WIDTH - 95, 96)]
    shares = {(x, y): float(mask[y : y + 96, x : x + 96].mean()) for x, y in grid}
    assert places(samples) == [place for place, share in shares.items() if share >= 0.1]
    said = [float((s.provenance or {})["tissue"]) for s in samples]
    np.testing.assert_allclose(said, [shares[place] for place in places(samples)], atol=0.006)


def test_processes_and_repeats_change_no_byte(one: Path, tmp_path: Path) -> None:
    for name, words in {"a": (), "b": ("--workers", "1")}.items():
        assert run(one, tmp_path / name, "--tile", "128", *words) == 0
    assert ShardSet.open(tmp_path / "a/train").digest == ShardSet.open(tmp_path / "b/train").digest
    assert not (tmp_path / "a.overviews").exists()


def test_classes_patients_and_magnification_from_paths_and_headers(tmp_path: Path) -> None:
    slide(tmp_path / "in/lobular_carcinoma/P1_a.tif", mpp=None)
    slide(tmp_path / "in/normal/P1_b.tif", mpp=None)
    words = ["--tile", "256", "--slide-mpp", "0.5", "--class-folders", "--group-pattern", "/(P[0-9]+)_"]
    assert run(tmp_path / "in", tmp_path / "out", *words) == 0
    samples = read(tmp_path / "out")
    assert {sample.labels for sample in samples} == {("lobular carcinoma",), ("normal",)}
    assert "lobular carcinoma" in samples[0].captions[0]
    assert len({sample.group for sample in samples}) == 1
    assert len({sample.study for sample in samples}) == 2


def test_an_aperio_slide_is_read_by_its_magnification_and_without_its_label(tmp_path: Path) -> None:
    path, pixels = tmp_path / "in/a.svs", drawn()
    path.parent.mkdir()
    words = "Aperio Image Library v11.2.1\r\n1536x1024 JPEG/RGB Q=30|AppMag = 40|Filename = 4711|User = MUELLER"
    tiled: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, description=words, **tiled)
        writer.write(pixels[::8, ::8], photometric="rgb", description=words, metadata=None)
        writer.write(pixels[::4, ::4], description=words, **tiled)
        for kind, name in ((1, "label 387x463"), (9, "macro 1280x431")):
            red = np.full((60, 80, 3), (255, 0, 0), np.uint8)
            description = f"Aperio Image Library v11.2.1\r\n{name}"
            writer.write(red, photometric="rgb", description=description, metadata=None, subfiletype=kind)
    # 40x is 0.25 micrometres per pixel: a tile at 0.5 has twice its side.
    assert run(tmp_path / "in", tmp_path / "out", "--tile", "64", "--overviews") == 0
    assert places(read(tmp_path / "out")) == [(x, y) for y in range(128, 640, 128) for x in range(256, 1024, 128)]
    assert not any(b"MUELLER" in file.read_bytes() for file in (tmp_path / "out/train").iterdir())
    with Image.open(tmp_path / "out.overviews/a.svs.png") as overview:
        assert overview.size == (WIDTH, HEIGHT)


def test_bad_slides_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    slide(root / "good.tif")
    slide(root / "plain.tif", mpp=None)
    slide(root / "coarse.tif", mpp=2.0)
    slide(root / "glass.tif", pixels=np.random.default_rng(1).integers(238, 246, (600, 600, 3), dtype=np.uint8))
    slide(root / "small.tif", pixels=drawn()[:90, :90], levels=1)
    whole = (root / "good.tif").read_bytes()
    (root / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (root / "empty.tif").write_bytes(b"")
    (root / "header.tif").write_bytes(b"II*\0\x08\0\0\0")
    (root / "text.svs").write_text("no slide")
    (root / "notes.txt").write_text("x")
    tifffile.imwrite(root / "grey.tif", drawn()[:, :, 0], tile=(128, 128))
    tifffile.imwrite(root / "deep.tif", drawn().astype(np.uint16), tile=(128, 128), photometric="rgb")
    (root / "link.tif").symlink_to(tmp_path / "outside.tif")
    slide(tmp_path / "outside.tif")
    assert run(root, tmp_path / "out", "--tile", "128") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == {"train": 24}
    reasons = {path: reason for path, (reason, _) in rejected(tmp_path / "out").items()}
    assert reasons.pop("cut.tif") in ("damaged slide", "unreadable file", "background tiles")
    assert reasons == {
        "coarse.tif": "too coarse",
        "deep.tif": "not RGB",
        "empty.tif": "damaged slide",
        "glass.tif": "no tissue",
        "good.tif": "background tiles",
        "grey.tif": "not RGB",
        "header.tif": "damaged slide",
        "link.tif": "outside the folder",
        "notes.txt": "not a slide",
        "plain.tif": "no resolution",
        "small.tif": "too small",
        "text.svs": "damaged slide",
    }
    assert sum(report["written"].values()) + report["rejected"] == report["rows"]


def test_a_header_that_claims_more_tiles_than_any_slide_has_is_refused_before_they_are_counted_out() -> None:
    level = Level(number=0, width=10**7, height=10**7, down_x=1.0, down_y=1.0)
    claiming = cast(Slide, SimpleNamespace(levels=(level,), mpp=(0.5, 0.5)))
    with pytest.raises(RejectedImageError, match="39062 x 39062 tiles"):
        slides._grid(claiming, SlideConfig())


def test_a_damaged_block_costs_its_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slide_reading, "OVERVIEW_SIDE", 384)  # tissue is looked for in the second level
    path = tmp_path / "in/a.tif"
    slide(path)
    with tifffile.TiffFile(path) as file:
        block = (256 // 128) * (WIDTH // 128) + 512 // 128
        start, size = file.pages[0].dataoffsets[block], file.pages[0].databytecounts[block]
    data = bytearray(path.read_bytes())
    data[start : start + size] = bytes(size)
    path.write_bytes(bytes(data))
    assert run(tmp_path / "in", tmp_path / "out", "--tile", "128") == 0
    found = places(read(tmp_path / "out"))
    assert len(found) == 23
    assert (512, 256) not in found
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert sorted(line["reason"] for line in lines) == ["background tiles", "damaged slide"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tile", "64", "--tile-overlap", "64"], "tile_overlap must be less than tile 64"),
        (["--max-side", "64"], "max_side has no meaning for tiles"),
        (["--magnification", "0"], "--magnification must be positive"),
        (["--group-pattern", "a"], "must have one group"),
        (["--min-tissue", "1.5"], "min_tissue"),
    ],
)
def test_settings_are_checked(
    one: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(one, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_the_threshold_that_parts_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(40, 12, 700), rng.normal(150, 30, 300)]).clip(0, 255).astype(int)

    def between(threshold: int) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return 0.0 if not len(low) or not len(high) else len(low) * len(high) * (low.mean() - high.mean()) ** 2

    found = otsu(np.bincount(values, minlength=256).astype(float))
    assert between(found) == pytest.approx(max(between(t) for t in range(256)))
    assert otsu(np.zeros(256)) == 0


def test_black_padding_and_glass_are_no_tissue() -> None:
    pixels = np.full((40, 40, 3), 240, np.uint8)
    pixels[:10] = (3, 0, 0)  # saturated, but black
    pixels[10:20] = (180, 90, 160)
    mask, threshold = tissue_mask(pixels)
    assert mask[10:20].all()
    assert not mask[:10].any()
    assert not mask[20:].any()
    assert 0 <= threshold < 128
