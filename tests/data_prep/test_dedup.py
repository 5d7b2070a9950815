"""Duplicates: bands find what comparing all pairs finds, copies survive re-compression, leaks are an error."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.sample import Sample
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from data_prep.dedup import find_duplicates
from data_prep.duplicates import difference_hash, near_pairs, pixel_digest


def picture(seed: int, side: int = 96) -> np.ndarray:
    """Smooth noise: another picture for another seed."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (9, 9), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC))[:, :, None]


def sample(key: str, pixels: np.ndarray, *, group: str = "", quality: int = 0) -> Sample:
    file = BytesIO()
    image = Image.fromarray(pixels[:, :, 0])
    image.save(file, "JPEG", quality=quality) if quality else image.save(file, "PNG")
    return Sample(
        key=key,
        image=file.getvalue(),
        image_suffix="jpg" if quality else "png",
        captions=(key,),
        modality="CT",
        dataset="d",
        group=group or key,
        split="train",
    )


def write(folder: Path, samples: list[Sample]) -> Path:
    with ShardWriter(folder, sources={"d": {"licence": "CC0"}}) as writer:
        for each in samples:
            writer.add(each)
    return folder


@pytest.mark.parametrize("distance", [0, 3, 10, 31])
def test_bands_find_what_comparing_all_pairs_finds(distance: int) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (60, 256), dtype=np.uint8)
    copies = bits[rng.integers(0, 60, 200)].copy()
    for row in copies:
        row[rng.choice(256, rng.integers(0, 40), replace=False)] ^= 1
    hashes = np.packbits(np.concatenate([bits, copies]), axis=1).view(np.uint64)
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2)
    expected = [(i, j) for i in range(260) for j in range(i + 1, 260) if differing[i, j] <= distance]
    found = [tuple(pair) for pair in near_pairs(hashes, distance).tolist()]
    if distance == 0:
        # Of equal hashes the first is named with each of the others.
        assert {j for _, j in found} == {j for _, j in expected}
    else:
        missing = set(expected) - set(found)
        assert set(found) <= set(expected)
        assert all(
            differing[i, j] == 0 or (hashes[:i] == hashes[i]).all(1).any() or (hashes[:j] == hashes[j]).all(1).any()
            for i, j in missing
        )
        assert {j for _, j in expected} == {j for _, j in found}


def test_hashes_survive_compression_scaling_and_brightness() -> None:
    original = picture(1)
    base = difference_hash(original)

    def distance(pixels: np.ndarray) -> int:
        return int(np.bitwise_count(base ^ difference_hash(pixels)).sum())

    file = BytesIO()
    Image.fromarray(original[:, :, 0]).save(file, "JPEG", quality=40)
    compressed = np.asarray(Image.open(file))[:, :, None]
    smaller = np.asarray(Image.fromarray(original[:, :, 0]).resize((61, 61), Image.Resampling.LANCZOS))[:, :, None]
    darker = (original * 0.8).astype(np.uint8)
    assert max(distance(compressed), distance(smaller), distance(darker)) <= 10
    assert min(distance(picture(seed)) for seed in range(2, 30)) > 40
    assert pixel_digest(original) != pixel_digest(original.reshape(48, 192, 1))


def test_a_set_is_cleaned_of_itself_and_of_the_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blank = np.zeros((32, 32, 1), np.uint8)
    train = write(
        tmp_path / "train",
        [
            sample("a", picture(1)),
            sample("b", picture(2)),
            sample("a-again", picture(1)),
            sample("b-jpeg", picture(2), quality=60),
            sample("test-copy", picture(9), quality=50),
            sample("c", picture(3)),
            sample("blank-1", blank),
            sample("blank-2", blank + 1),
        ],
    )
    test = write(tmp_path / "test", [sample("t", picture(9)), sample("u", picture(10))])
    command = ["data", "dedup", str(train), "--against", str(test), "--out", str(tmp_path / "clean"), "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["duplicates"] == {"exact within": 1, "near against": 1, "near within": 1}
    assert (report["kept"], report["compared exactly only"], report["shared groups"]) == (5, 2, 0)
    clean = ShardSet.open(tmp_path / "clean")
    assert [clean.key(i) for i in range(len(clean))] == ["a", "b", "c", "blank-1", "blank-2"]
    assert clean.verify() == ()
    assert json.loads((tmp_path / "clean/dataset.json").read_text())["sources"] == {"d": {"licence": "CC0"}}
    removed = [json.loads(line) for line in (tmp_path / "clean.removed.jsonl").read_text().splitlines()]
    assert [(line["key"], line["kind"], line["of"]) for line in removed] == [
        ("a-again", "exact", "a"),
        ("b-jpeg", "near", "b"),
        ("test-copy", "near", "t"),
    ]


def test_a_patient_in_both_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train", [sample("a", picture(1), group="p1"), sample("b", picture(2), group="p2")])
    test = write(tmp_path / "test", [sample("t", picture(3), group="p2")])
    command = ["data", "dedup", str(train), "--against", str(test), "--out", str(tmp_path / "clean")]
    assert main(command) == 1
    assert "1 patients or cases" in capsys.readouterr().err
    assert not (tmp_path / "clean").exists()
    assert main([*command, "--drop-groups"]) == 0
    assert [ShardSet.open(tmp_path / "clean").key(0)] == ["a"]
    assert main(["data", "dedup", str(train), "--distance", "99"]) == 2


def test_every_image_of_one_hash_goes_with_the_first(tmp_path: Path) -> None:
    """Only the first of equal hashes is compared with the evaluation set; its twins repeat the same image."""
    test = picture(1)
    first = test.copy()
    first[12:24, 12:24] = 255 - first[12:24, 12:24]
    twin = first.copy()
    twin[0, 0] ^= 1
    hashes = [difference_hash(pixels) for pixels in (test, first, twin)]
    assert 0 < np.bitwise_count(hashes[0] ^ hashes[1]).sum() <= 10
    assert np.array_equal(hashes[1], hashes[2])
    train = ShardSet.open(write(tmp_path / "train", [sample("first", first), sample("twin", twin)]))
    report = find_duplicates(train, [ShardSet.open(write(tmp_path / "test", [sample("test", test)]))])
    assert [(found.key, found.kind, found.of) for found in report.duplicates] == [
        ("first", "near", "test"),
        ("twin", "near", "test"),
    ]
