"""Splits: shares of every label, groups whole, nothing moves when data is added, and overlap is an error everywhere."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_med.cli import main
from clip_med.data.shards import ShardSet
from data_prep.splits import stratified

SPLITS = ("train", "val", "test")


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=6), st.sampled_from(["x", "y", "z"]), max_size=60),
    st.sampled_from([(0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (1.0, 0.0, 0.0)]),
)
@settings(deadline=None)
def test_every_stratum_has_the_shares_and_added_groups_move_none(
    stratum_of: dict[str, str], fractions: tuple[float, float, float]
) -> None:
    half = dict(list(stratum_of.items())[::2])
    earlier = stratified(half, b"secret", fractions, {})
    later = stratified(stratum_of, b"secret", fractions, earlier)
    assert later.keys() == stratum_of.keys()
    assert all(later[group] == split for group, split in earlier.items())
    assert stratified(dict(reversed(stratum_of.items())), b"secret", fractions, earlier) == later
    for stratum in set(stratum_of.values()):
        counts = Counter(split for group, split in later.items() if stratum_of[group] == stratum)
        total = sum(counts.values())
        for name, share in zip(SPLITS, fractions, strict=True):
            assert abs(counts[name] - share * total) <= 1


def folder(root: Path, groups: range) -> None:
    """Two images of each patient: nine of ten have a cyst, the others a mass."""
    for group in groups:
        for image in range(2):
            file = root / ("mass" if group % 10 == 0 else "cyst") / f"P{group:03d}_{image}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), group, np.uint8)).save(file)


def split_by_group(out: Path) -> tuple[dict[str, str], Counter[tuple[str, str]]]:
    found: dict[str, str] = {}
    labels: Counter[tuple[str, str]] = Counter()
    for path in out.glob("*/dataset.json"):
        shards = ShardSet.open(path.parent)
        for i in range(len(shards)):
            sample = shards.metadata(i)
            assert found.setdefault(sample.group, sample.split) == sample.split
            labels[sample.labels[0], sample.split] += 1
    return found, labels


def test_a_folder_is_stratified_and_grows_without_moving_anybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, secret = tmp_path / "images", ["--secret", str(tmp_path / "key"), "--group-pattern", r"(P\d+)_"]
    folder(root, range(100))
    command = ["data", "folder", str(root), *secret, "--stratify", "--out"]
    assert main([*command, str(tmp_path / "first")]) == 0
    before, labels = split_by_group(tmp_path / "first")
    assert labels == {
        ("cyst", "train"): 144,
        ("cyst", "val"): 18,
        ("cyst", "test"): 18,
        ("mass", "train"): 16,
        ("mass", "val"): 2,
        ("mass", "test"): 2,
    }
    folder(root, range(100, 140))
    words = ["--splits-from", str(tmp_path / "first")]
    assert main([*command, str(tmp_path / "second"), *words]) == 0
    after, labels = split_by_group(tmp_path / "second")
    assert len(after) == 140
    assert all(after[group] == split for group, split in before.items())
    assert (labels["mass", "train"], labels["cyst", "train"]) == (22, 202)
    other = ["data", "folder", str(root), "--group-pattern", r"(P\d+)_", *words, "--out", str(tmp_path / "third")]
    assert main(other) == 2
    assert "is its --secret another?" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "fourth"), "--splits-from", str(tmp_path)]) == 2
    assert "holds no complete split" in capsys.readouterr().err


def test_overlap_of_patients_is_an_error_for_every_source_that_names_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        for place in ("", "reports/"):
            (tmp_path / f"{place}{split}/cyst").mkdir(parents=True)
            Image.fromarray(np.full((4, 4), len(split), np.uint8)).save(
                tmp_path / f"{place}{split}/cyst/P1_{split}.png"
            )
        (tmp_path / f"reports/{split}/cyst/P1_{split}.txt").write_text("IMPRESSION: A cyst.")
    names = {split: f"{split}/cyst/P1_{split}.png" for split in ("train", "test")}
    (tmp_path / "t.csv").write_text(
        "path,label,split,patient\n" + "".join(f"{path},cyst,{split},P1\n" for split, path in names.items())
    )
    (tmp_path / "s.json").write_text(json.dumps({split: [[path, 0, "cyst"]] for split, path in names.items()}))
    (tmp_path / "views.csv").write_text("image,split\nP1_train,train\nP1_test,test\n")
    images = ["--images-root", str(tmp_path)]
    for number, words in enumerate(
        (
            ["table", str(tmp_path / "t.csv"), *images],
            ["few-shot", str(tmp_path / "s.json"), *images, "--group-pattern", "(P1)_"],
            ["folder", str(tmp_path), "--group-pattern", "(P1)_"],
            ["reports", str(tmp_path / "reports"), "--group-pattern", "(P1)_", "--table", str(tmp_path / "views.csv")],
        )
    ):
        out = tmp_path.parent / f"{tmp_path.name}-out-{number}"
        assert main(["data", *words, "--out", str(out)]) == 2, words
        assert "1 group(s) (patients or cases) are in several splits" in capsys.readouterr().err
        assert not out.exists()
        assert main(["data", *words, "--out", str(out), "--overlap", "drop"]) == 0
        assert [path.parent.name for path in out.glob("*/dataset.json")] == ["test"]
        capsys.readouterr()
