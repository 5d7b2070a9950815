"""Duplicates: bands find what comparing all pairs finds, copies survive re-compression, leaks are an error."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_med.cli import main
from clip_med.data.sample import Sample
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from clip_med.data.volume import encode_volume
from clip_med.models.folder import build_model, save_folder
from data_prep import staying
from data_prep.dedup import DedupReport, Features, find_duplicates
from data_prep.duplicates import difference_hash, near_pairs, pixel_digest
from tests.tiny_run import TINY


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


def study(key: str, *pictures: np.ndarray, quality: int = 0) -> Sample:
    first, *more = (sample(key, pixels, quality=quality) for pixels in pictures)
    return replace(first, more_images=tuple((each.image_suffix, each.image) for each in more))


def volume(key: str, seed: int, scale: float = 1.0) -> Sample:
    values = (scale * np.stack([picture(seed + place, 24)[:, :, 0] for place in range(5)], 2)).astype(np.int16)
    return replace(sample(key, picture(1)), image=encode_volume(values), image_suffix="npy")


def found(report: DedupReport) -> list[tuple[str, str, str]]:
    return [(each.key, f"{each.kind} {'against' if each.against else 'within'}", each.of) for each in report.duplicates]


def test_studies_go_if_all_is_repeated_or_anything_is_held_out_and_volumes_by_their_values(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train",
        [
            study("ab", picture(1), picture(2)),
            study("ac", picture(1), picture(3)),
            study("ba", picture(2), picture(1), quality=60),
            sample("c", picture(3)),
            study("dt", picture(4), picture(9)),
            sample("d", picture(4)),
            study("ee", picture(5), picture(5)),
            volume("v", 20),
            volume("v-again", 20),
            volume("v-scaled", 20, 3.0),
            volume("w", 30),
        ],
    )
    test = write(tmp_path / "test", [study("tu", picture(8), picture(9))])
    report = find_duplicates(ShardSet.open(train), [ShardSet.open(test)])
    assert find_duplicates(ShardSet.open(train), [ShardSet.open(test)], workers=1) == report
    assert found(report) == [
        ("ba", "near within", "ab"),
        ("c", "exact within", "ac"),
        ("dt", "exact against", "tu"),
        ("v-again", "exact within", "v"),
        ("v-scaled", "near within", "v"),
    ]
    assert report.samples == 11


def greedy(rows: np.ndarray, staying_first: int, threshold: float) -> list[tuple[int, int]]:
    """Every pair in double precision: (row that goes, nearest row that stays)."""
    rows = rows.astype(np.float64)
    stay, gone = list(range(staying_first)), []
    for row in range(staying_first, len(rows)):
        cosines = rows[stay] @ rows[row] if stay else np.zeros(1)
        if cosines.max() >= threshold:
            gone.append((row, stay[int(cosines.argmax())]))
        else:
            stay.append(row)
    return gone


def test_features_are_compared_with_all_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staying, "_BLOCK", 7)
    monkeypatch.setattr(staying, "_CHUNK", 5)
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.standard_normal((20, 8)), 3, axis=0) + 0.25 * rng.standard_normal((60, 8))
    rows = (rows[rng.permutation(60)] / np.linalg.norm(rows, axis=1, keepdims=True).mean()).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[50] = 0
    test = ShardSet.open(write(tmp_path / "test", [sample(f"{i}", picture(100 + i, 16)) for i in range(12)]))
    train = ShardSet.open(write(tmp_path / "train", [sample(f"{i}", picture(100 + i, 16)) for i in range(12, 60)]))
    report = find_duplicates(train, [test], features=Features([rows[:12], rows[12:]], 0.9))
    expected = greedy(rows, 12, 0.9)
    assert 15 < len(expected) < 45
    assert [(int(each.key), int(each.of)) for each in report.duplicates] == expected
    assert {each.kind for each in report.duplicates} == {"embedding"}
    for each in report.duplicates:
        assert each.cosine == pytest.approx(rows[int(each.key)] @ rows[int(each.of)], abs=1e-4)
    with pytest.raises(ValueError, match="must be above 0"):
        Features([rows], 0.0)


def test_a_model_finds_what_hashes_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_folder(build_model(TINY), tmp_path / "model")
    mirrored = np.ascontiguousarray(picture(1, 32)[:, ::-1])
    samples = [sample("a", picture(1, 32)), volume("v", 20), sample("mirrored", mirrored)]
    command = ["data", "dedup", str(write(tmp_path / "train", samples)), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["duplicates"] == {}
    command += ["--model", str(tmp_path / "model"), "--cosine", "0.5", "--out", str(tmp_path / "clean")]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["duplicates"] == {"embedding within": 1}
    (line,) = [json.loads(text) for text in (tmp_path / "clean.removed.jsonl").read_text().splitlines()]
    assert (line["key"], line["of"], line["kind"]) == ("mirrored", "a", "embedding")
    assert 0.5 <= line["cosine"] < 1
    # What is wrong is said before anything is read: no model is there.
    for words, message in (
        (["--model", "none"], "--cosine"),
        (["--model", "none", "--cosine", "0"], "the cosine of a duplicate must be above 0"),
        (["--model", "none", "--cosine", "0.9", "--distance", "40"], "distance must be between 0 and 31"),
        (["--model", "none", "--cosine", "0.9", "--out", str(tmp_path / "clean")], "holds a complete shard set"),
    ):
        assert main([*command[:3], *words]) == 2
        assert message in capsys.readouterr().err
    tar = next((tmp_path / "train").glob("*.tar"))
    assert main([*command[:2], str(tar), "--out", str(tmp_path / "other")]) == 2
    assert "--out needs a folder with dataset.json" in capsys.readouterr().err
