"""`clip-med data table` as a whole: rows in are rows written plus rows listed, whatever happens on the way."""

from __future__ import annotations

import csv
import json
import os
import signal
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.shards import ShardSet

ROWS = 24


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A table of 24 good images with patients, and their folder; the JPEGs carry EXIF with a name in it."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows: list[dict[str, str]] = []
    for i in range(ROWS):
        name = f"MUELLER_{i:02d}.jpg"
        image = Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x010E] = "MUELLER HANS 1950"
        image.save(folder / name, "JPEG", exif=exif, comment=b"MUELLER comment")
        rows.append(
            {
                "path": name,
                "caption": f"Finding {i}." if i % 2 else "",
                "label": "" if i % 2 else "cyst",
                "patient_id": f"PAT{i // 2}",
                "modality": "ultrasound",
                "split": ("train", "train", "test")[i // 2 % 3],
            }
        )
    write(tmp_path / "study.csv", rows)
    return tmp_path


def write(file: Path, rows: list[dict[str, str]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows_of(study: Path) -> list[dict[str, str]]:
    with (study / "study.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def table(study: Path, *words: str, out: str = "out") -> int:
    images, shards = study / "images", study / out
    return main(["data", "table", str(study / "study.csv"), "--images-root", str(images), "--out", str(shards), *words])


def digests(study: Path, out: str = "out") -> dict[str, str]:
    return {path.parent.name: ShardSet.open(path.parent).digest for path in (study / out).glob("*/dataset.json")}


def test_every_good_row_becomes_a_sample_with_what_the_table_says(study: Path) -> None:
    assert table(study) == 0
    train, test = (ShardSet.open(study / "out" / split) for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 8)
    samples = [train.read(i) for i in range(16)]
    assert samples[1].captions == ("Finding 1.",)
    assert samples[0].labels == ("cyst",)
    assert samples[0].captions[0] == "An ultrasound image of cyst."
    assert len({sample.group for sample in samples}) == 8
    assert samples[0].group == samples[1].group
    assert {sample.modality for sample in samples} == {"ultrasound"}
    original = np.asarray(Image.open(study / "images/MUELLER_00.jpg"))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(samples[0].image))), original)


def test_nothing_that_names_a_patient_is_in_the_shards(study: Path) -> None:
    assert table(study) == 0
    for file in (study / "out").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"MUELLER" not in content, file
            assert b"PAT1" not in content, file
    secret = study / "out.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert table(study, "--secret", str(study / "other/inside.secret"), out="other") == 2


def test_bad_rows_are_counted_by_reason_listed_and_cost_nothing_else(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(study)
    (study / "images/MUELLER_03.jpg").write_bytes((study / "images/MUELLER_03.jpg").read_bytes()[:300])
    rows[5]["path"] = "nowhere.jpg"
    rows[7]["caption"] = "  "
    rows[9]["path"] = "../out.secret"
    rows.append(dict(rows[1]))
    write(study / "study.csv", rows)
    assert table(study, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == ROWS + 1 == sum(report["written"].values()) + report["rejected"]
    listed = [json.loads(line) for line in (study / "out/rejected.jsonl").read_text().splitlines()]
    assert [line["row"] for line in listed] == [4, 6, 8, 10, 25]
    assert sum(report["reasons"].values()) == 5
    assert len(report["reasons"]) == 5


def test_strict_writes_no_split_and_says_which_row(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "images/MUELLER_20.jpg").write_bytes(b"\xff\xd8broken")
    assert table(study, "--strict") == 2
    assert "row" in (message := capsys.readouterr().err)
    assert "MUELLER_20.jpg" in message
    assert digests(study) == {}


def test_a_killed_run_is_continued_to_the_same_bytes(study: Path) -> None:
    assert table(study, "--secret", str(study / "key"), out="whole") == 0
    child = os.fork()
    if child == 0:
        from clip_med.data import shard_writer

        def die(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        shard_writer.write_dataset = die  # type: ignore[assignment]  # killed before the first commit
        try:
            table(study, "--secret", str(study / "key"))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert digests(study) == {}
    assert table(study, "--secret", str(study / "key")) == 0
    assert digests(study) == digests(study, "whole")
    kept = (study / "out/train/000000.tar").stat().st_mtime_ns
    assert table(study, "--secret", str(study / "key")) == 0
    assert (study / "out/train/000000.tar").stat().st_mtime_ns == kept


def test_workers_and_the_kind_of_table_change_no_byte(study: Path) -> None:
    assert table(study, "--secret", str(study / "key")) == 0
    assert table(study, "--secret", str(study / "key"), "--workers", "2", out="parallel") == 0
    assert digests(study) == digests(study, "parallel")
    rows = rows_of(study)
    (study / "study.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--images-root", str(study / "images"), "--secret", str(study / "key")]
    assert main(["data", "table", str(study / "study.jsonl"), "--out", str(study / "lines"), *words]) == 0
    assert digests(study) == digests(study, "lines")


def test_another_table_or_secret_under_the_same_folder_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table(study) == 0
    assert table(study, "--modality", "CT") == 2
    assert "modality" in capsys.readouterr().err
    (study / "second").write_text("another secret of sufficient length")
    assert table(study, "--secret", str(study / "second")) == 2
    assert "secret" in capsys.readouterr().err


def test_a_drawn_split_never_divides_a_patient(study: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "split"} for row in rows_of(study)]
    write(study / "study.csv", rows)
    assert table(study, "--fractions", "0.5", "0.2", "0.3") == 0
    groups: dict[str, set[str]] = {}
    for path in (study / "out").glob("*/dataset.json"):
        shards = ShardSet.open(path.parent)
        groups[path.parent.name] = {shards.metadata(i).group for i in range(len(shards))}
    assert len(groups) >= 2
    assert sum(len(members) for members in groups.values()) == len(set.union(*groups.values())) == ROWS // 2


def test_the_real_corpus_begins_without_a_loss(shared_corpus: Path, tmp_path: Path) -> None:
    with (shared_corpus / "manifest.csv").open(encoding="utf-8") as file:
        (tmp_path / "study.csv").write_text("".join(file.readline() for _ in range(201)), encoding="utf-8")
    out = tmp_path / "out"
    words = ["--images-root", str(shared_corpus), "--out", str(out), "--json"]
    assert main(["data", "table", str(tmp_path / "study.csv"), *words]) == 0
    assert sum(len(ShardSet.open(path.parent)) for path in out.glob("*/dataset.json")) == 200
    assert (out / "rejected.jsonl").read_text() == ""
