"""Tables to shards: every row is written or listed, nothing of the source travels, repeating and killing are safe."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from data_prep.table import RejectedRowError, TableConfig, table_to_shards
from data_prep.writing import WriteReport

COLUMNS = (
    "path",
    "caption",
    "label",
    "modality",
    "dataset",
    "split",
    "patient_id",
    "study_id",
    "view",
    "licence",
    "mrn",
)
SPLITS = ("train", "val", "test")


def jpeg(i: int, *, orientation: int = 1) -> bytes:
    pixels = np.full((20, 30, 3), i * 37 % 200, np.uint8)
    pixels[:8, :8] = (250, 20, 20)  # the upper left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x013B] = "Dr Geheim"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif, comment=b"MUSTERMANN-comment")
    return file.getvalue()


def good_row(i: int, **values: str) -> dict[str, str]:
    row = {
        "path": f"MUSTERMANN_{i // 2:03d}/scan-{i:04d}.jpg",
        "caption": f"Größe {i} mm, rechts.",
        "label": "cyst",
        "modality": "CT",
        "dataset": "clinic",
        "split": SPLITS[i // 2 % 3],
        "patient_id": f"PATIENT-{i // 2:05d}",
        "study_id": f"STUDY-{i // 2:05d}",
        "view": "axial",
        "licence": "CC BY 4.0",
        "mrn": f"MRN-{i:06d}",
    }
    return row | values


def write_csv(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images of six patients."""
    root = tmp_path / "images"
    for i in range(12):
        file = root / good_row(i)["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(i))
    return root


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("a secret of enough characters")
    return file


def rejected(out: Path) -> list[dict[str, Any]]:
    with (out / "rejected.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def check_sum(report: WriteReport, out: Path) -> None:
    """Rows read are rows in shards and rows listed: counted from the files, not from the report."""
    in_shards = {s.parent.name: len(ShardSet.open(s.parent)) for s in out.glob("*/dataset.json")}
    assert in_shards == {split: count for split, count in report.written.items() if count}
    assert report.rows == sum(in_shards.values()) + len(rejected(out))
    assert report.reasons == dict(Counter(line["reason"] for line in rejected(out)))


def digests(out: Path) -> dict[str, str]:
    return {path.parent.name: ShardSet.open(path.parent).digest for path in sorted(out.glob("*/dataset.json"))}


def samples(out: Path, split: str) -> list[Sample]:
    shards = ShardSet.open(out / split)
    return [shards.read(i) for i in range(len(shards))]


def test_rows_become_samples_in_the_order_of_the_table(tmp_path: Path, images: Path) -> None:
    rows = [good_row(i) for i in range(12)]
    rows[1] |= {"caption": "", "label": "cyst|nodule", "licence": "CC0"}
    rows[7] |= {"caption": '["one", "two"]', "label": "", "view": "", "study_id": ""}
    out = tmp_path / "out"
    report = table_to_shards(
        write_csv(tmp_path / "t.csv", rows), images, out, TableConfig(samples_per_shard=3), workers=0
    )
    assert report.written == {"train": 4, "val": 4, "test": 4}
    assert (report.rows, report.rejected, report.groups_in_several_splits) == (12, 0, 0)
    check_sum(report, out)
    train = samples(out, "train")
    assert [sample.captions[0] for sample in train] == [
        "Größe 0 mm, rechts.",
        "A CT image showing cyst and nodule.",
        "Größe 6 mm, rechts.",
        "one",
    ]
    assert len(train[1].captions) == 3
    assert train[1].labels == ("cyst", "nodule")
    assert train[3].captions == ("one", "two")
    assert (train[0].view, train[3].view, train[3].study) == ("axial", None, None)
    assert train[0].group == train[1].group != train[2].group
    assert train[0].study == train[1].study != train[2].study
    document = json.loads((out / "train/dataset.json").read_text())
    assert [shard["samples"] for shard in document["shards"]] == [3, 1]
    said = {"licence": "CC BY 4.0; CC0", "captions": "scrubbed by rules", "pixels": "not looked at for text"}
    assert document["sources"] == {"clinic": said}
    assert document["counts"]["label"] == {"cyst": 3, "nodule": 1}
    assert document["counts"]["modality"] == {"CT": 4}


def test_nothing_of_the_source_travels_with_the_shards(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "out"
    report = table_to_shards(
        write_csv(tmp_path / "t.csv", [good_row(i) for i in range(12)]), images, out, TableConfig()
    )
    names = ("MUSTERMANN", "PATIENT-", "STUDY-", "MRN-", "scan-", "Geheim", "Exif", str(tmp_path), "t.csv")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) == 3 * 3 + 2  # tar, index and dataset.json per split; table.json and rejected.jsonl
    for file in files:
        for name in names:
            assert name.encode() not in file.read_bytes(), (file, name)
    assert report.secret == tmp_path / "out.secret"
    assert report.secret.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("out.secret.*"))


def test_hashes_depend_on_the_secret_alone(tmp_path: Path, images: Path) -> None:
    manifest = write_csv(tmp_path / "t.csv", [good_row(i) for i in range(12)])
    keys: list[set[str]] = []
    for name, text in (("a", "first secret, long"), ("b", "second secret, long"), ("c", "first secret, long\n")):
        (tmp_path / f"{name}.secret").write_text(text)
        table_to_shards(manifest, images, tmp_path / name, TableConfig())
        keys.append({value for s in samples(tmp_path / name, "train") for value in (s.key, s.group, s.study or "")})
    assert not keys[0] & keys[1]
    assert keys[0] == keys[2]


@pytest.mark.parametrize("place", ["out/secret", "out/train/secret", "link/secret"])
def test_a_secret_among_the_shards_is_refused(tmp_path: Path, images: Path, place: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    manifest = write_csv(tmp_path / "t.csv", [good_row(0)])
    with pytest.raises(ValueError, match="lies inside"):
        table_to_shards(manifest, images, tmp_path / "out", TableConfig(), secret_file=tmp_path / place)
    assert not list((tmp_path / "out").iterdir())


def test_a_short_secret_is_refused(tmp_path: Path, images: Path) -> None:
    (tmp_path / "out.secret").write_text("short\n")
    with pytest.raises(ValueError, match="holds 5 characters, expected at least 16"):
        table_to_shards(write_csv(tmp_path / "t.csv", [good_row(0)]), images, tmp_path / "out", TableConfig())


def bad_rows(root: Path) -> dict[int, tuple[str, dict[str, str]]]:
    """Row number to reason and row, for every reason; makes the files that they need below `root`."""
    (root / "broken.jpg").write_bytes(jpeg(1)[:400])
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.png").write_text("no image")
    (root.parent / "elsewhere.jpg").write_bytes(jpeg(1))
    (root / "link.jpg").symlink_to(root.parent / "elsewhere.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    rows = [
        ("no path", good_row(2, path=" ")),
        ("missing file", good_row(2, path="absent.jpg")),
        ("missing file", good_row(2, path=".")),
        ("missing file", good_row(2, path="x" * 5000 + ".jpg")),
        ("missing file", good_row(2, path="loop.jpg")),
        ("undecodable image", good_row(2, path="broken.jpg")),
        ("undecodable image", good_row(2, path="empty.jpg")),
        ("undecodable image", good_row(2, path="text.png")),
        ("no text", good_row(2, caption=" ", label="| |")),
        ("duplicate", good_row(3)),
        ("duplicate", good_row(4, path=f"./{good_row(3)['path']}")),
        ("duplicate", good_row(4, path=str(root / good_row(3)["path"]))),
        ("outside images-root", good_row(2, path="../elsewhere.jpg")),
        ("outside images-root", good_row(2, path=str(root.parent / "elsewhere.jpg"))),
        ("outside images-root", good_row(2, path="link.jpg")),
        ("bad split", good_row(2, split="a/b")),
        ("bad split", good_row(2, split="..")),
        ("bad split", good_row(2, split="table.json")),
    ]
    return dict(enumerate(rows, start=5))


def test_every_kind_of_bad_row_is_counted_and_listed(tmp_path: Path, images: Path) -> None:
    bad = bad_rows(images)
    rows = [good_row(i) for i in range(4)] + [row for _, row in bad.values()] + [good_row(4)]
    out = tmp_path / "out"
    manifest = write_csv(tmp_path / "t.csv", rows)
    with manifest.open("a") as file:
        file.write("too,few,cells\n")
    bad[24] = ("malformed row", {"path": ""})
    report = table_to_shards(manifest, images, out, TableConfig())
    assert (report.rows, sum(report.written.values())) == (24, 5)
    check_sum(report, out)
    listed = rejected(out)
    assert [line["row"] for line in listed] == sorted(bad)
    assert [line["reason"] for line in listed] == [reason for reason, _ in bad.values()]
    by_row = {line["row"]: line for line in listed}
    assert by_row[6]["path"] == "absent.jpg"
    assert "no image" in by_row[12]["detail"] or "not an image" in by_row[12]["detail"]
    assert "3 cells" in by_row[24]["detail"] or "lines 25" in by_row[24]["detail"]


def test_strict_refuses_before_anything_is_written_and_lists_all(tmp_path: Path, images: Path) -> None:
    bad = bad_rows(images)
    rows = [good_row(i) for i in range(4)] + [row for _, row in bad.values()]
    out = tmp_path / "out"
    with pytest.raises(RejectedRowError, match=r"18 of 22 rows .* the first: row 5: : no path"):
        table_to_shards(write_csv(tmp_path / "t.csv", rows), images, out, TableConfig(), strict=True)
    assert len(rejected(out)) == 18
    assert sorted(path.name for path in out.iterdir()) == ["rejected.jsonl", "table.json"]
    good = write_csv(tmp_path / "good.csv", [good_row(i) for i in range(4)])
    report = table_to_shards(good, images, tmp_path / "good", TableConfig(), strict=True)
    assert sum(report.written.values()) == 4


def test_strict_refuses_an_image_that_vanishes_between_the_look_and_the_writing(tmp_path: Path, images: Path) -> None:
    def after_the_look(done: int, total: int) -> None:
        if done == total // 2:
            (images / good_row(1)["path"]).unlink()

    manifest = write_csv(tmp_path / "t.csv", [good_row(i) for i in range(4)])
    with pytest.raises(RejectedRowError, match=r"changed meanwhile: row 2: .*: missing file"):
        table_to_shards(manifest, images, tmp_path / "out", TableConfig(), strict=True, on_progress=after_the_look)


def test_a_divided_group_is_an_error_unless_one_says_what_becomes_of_it(tmp_path: Path, images: Path) -> None:
    rows = [good_row(i) for i in range(6)]
    rows[3]["split"] = "test"
    manifest = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(ValueError, match=r"1 group\(s\) .* divided in row 4"):
        table_to_shards(manifest, images, tmp_path / "out", TableConfig())
    assert not (tmp_path / "out").exists()
    kept = table_to_shards(manifest, images, tmp_path / "keep", TableConfig(overlap="keep"))
    assert (kept.groups_in_several_splits, kept.rejected) == (1, 0)
    dropped = table_to_shards(manifest, images, tmp_path / "drop", TableConfig(overlap="drop"))
    assert dropped.groups_in_several_splits == 0
    assert set(dropped.reasons) == {"group in several splits"}
    train, test = ({sample.group for sample in samples(tmp_path / "drop", name)} for name in ("train", "test"))
    assert len(test) >= 1
    assert not train & test


def test_without_a_split_column_no_group_is_divided(tmp_path: Path, images: Path, secret: Path) -> None:
    for i in range(12, 400):
        (images / f"{i}.jpg").write_bytes(jpeg(0))
    rows = [good_row(i, path=f"{i}.jpg", patient_id=f"P{i // 4}") for i in range(12, 400)]
    columns = [name for name in COLUMNS if name != "split"]
    out = tmp_path / "out"
    manifest = write_csv(tmp_path / "t.csv", rows, columns)
    config = TableConfig(fractions=(0.6, 0.2, 0.2))
    report = table_to_shards(manifest, images, out, config, secret_file=secret)
    assert report.groups_in_several_splits == 0
    groups = {split: {sample.group for sample in samples(out, split)} for split in SPLITS}
    assert sum(len(found) for found in groups.values()) == len(set.union(*groups.values())) == 97
    # Binomial: 97 groups at 0.6 have a standard deviation of 0.05.
    assert abs(len(groups["train"]) / 97 - 0.6) < 0.2
    # A table that grows moves no patient.
    fewer = tmp_path / "fewer"
    table_to_shards(
        write_csv(tmp_path / "f.csv", rows[::-3], columns), images, fewer, config, secret_file=secret, workers=0
    )
    for split in SPLITS:
        assert {sample.group for sample in samples(fewer, split)} <= groups[split]


def test_constants_and_chosen_columns(tmp_path: Path, images: Path) -> None:
    rows = [{"where": good_row(i)["path"], "a": f"A {i}.", "b": "B.", "kind": "x;y"} for i in range(3)]
    report = table_to_shards(
        write_csv(tmp_path / "t.csv", rows, ("where", "a", "b", "kind")),
        images,
        tmp_path / "out",
        TableConfig(
            columns={"path": ("where",), "caption": ("a", "b"), "label": ("kind",)},
            label_separator=";",
            modality="MRI",
            dataset="d",
            split="external",
        ),
    )
    assert report.written == {"external": 3}
    sample = samples(tmp_path / "out", "external")[1]
    assert (sample.captions, sample.labels) == (("A 1.", "B."), ("x", "y"))
    assert (sample.modality, sample.dataset, sample.split) == ("MRI", "d", "external")


def test_an_unknown_modality_is_counted(tmp_path: Path, images: Path) -> None:
    manifest = write_csv(tmp_path / "t.csv", [good_row(i) for i in range(3)], ("path", "label", "split"))
    report = table_to_shards(manifest, images, tmp_path / "out", TableConfig())
    assert report.unknown_modality == 3
    assert samples(tmp_path / "out", "train")[0].captions[0] == "A medical image showing cyst."


def test_every_kind_of_file_and_any_number_of_workers_give_the_same_bytes(
    tmp_path: Path, images: Path, secret: Path
) -> None:
    rows = [good_row(i) for i in range(12)]
    rows[4] |= {"caption": "肺结节 “ü”\tx"}
    rows[5] |= {"path": "absent.jpg"}
    manifests = [write_csv(tmp_path / "t.csv", rows)]
    (tmp_path / "t.tsv").write_text(
        "\n".join("\t".join(cell.replace("\t", " ") for cell in row) for row in [COLUMNS, *(r.values() for r in rows)])
    )
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    manifests += [tmp_path / name for name in ("t.tsv", "t.jsonl", "t.parquet", "t.csv")]
    found = []
    for i, manifest in enumerate(manifests):
        out = tmp_path / f"out{i}"
        report = table_to_shards(
            manifest,
            images,
            out,
            TableConfig(samples_per_shard=3),
            secret_file=secret,
            workers=2 if i == 4 else 0,
        )
        check_sum(report, out)
        found.append((digests(out), (out / "rejected.jsonl").read_text()))
    assert len(found[0][0]) == 3
    assert all(other == found[0] for other in found)


def test_turned_images_are_stored_upright_and_large_ones_scaled(tmp_path: Path, images: Path) -> None:
    file = images / good_row(0)["path"]
    file.write_bytes(jpeg(0, orientation=6))
    manifest = write_csv(tmp_path / "t.csv", [good_row(0)])
    table_to_shards(manifest, images, tmp_path / "out", TableConfig())
    pixels = np.asarray(Image.open(BytesIO(samples(tmp_path / "out", "train")[0].image)))
    assert pixels.shape == (30, 20, 3)
    red = pixels[:, :, 0].astype(int) - pixels[:, :, 1]
    assert red[2:6, 14:18].min() > 150  # orientation 6: the upper left corner of the file is seen at the upper right
    table_to_shards(manifest, images, tmp_path / "small", TableConfig(max_side=15))
    assert decode_image(samples(tmp_path / "small", "train")[0].image).shape == (15, 10, 3)


def test_other_settings_table_or_secret_are_refused_by_name(tmp_path: Path, images: Path, secret: Path) -> None:
    manifest = write_csv(tmp_path / "t.csv", [good_row(i) for i in range(3)])
    out = tmp_path / "out"
    table_to_shards(manifest, images, out, TableConfig(), secret_file=secret)
    before = digests(out)
    with pytest.raises(ValueError, match=r"\(max_side, samples_per_shard differ\)"):
        table_to_shards(manifest, images, out, TableConfig(max_side=9, samples_per_shard=2), secret_file=secret)
    with pytest.raises(ValueError, match=r"\(secret differ\)"):
        table_to_shards(manifest, images, out, TableConfig(), secret_file=tmp_path / "new")
    write_csv(manifest, [good_row(i) for i in range(4)])
    with pytest.raises(ValueError, match=r"\(source_sha256 differ\)"):
        table_to_shards(manifest, images, out, TableConfig(), secret_file=secret)
    assert digests(out) == before
    with pytest.raises(ValueError, match="is not empty"):
        table_to_shards(manifest, images, images, TableConfig(), secret_file=secret)


def test_repeating_keeps_what_is_complete_and_its_rejected_rows(tmp_path: Path, images: Path) -> None:
    """Also where images have come or gone meanwhile, and where one split is removed to be built again."""
    rows = [good_row(i) for i in range(12)]
    rows[1]["path"] = "late.jpg"  # train
    rows[10]["path"] = "late too.jpg"  # test, the last to be written
    manifest, out = write_csv(tmp_path / "t.csv", rows), tmp_path / "out"
    first = table_to_shards(manifest, images, out, TableConfig())
    assert first.kept_splits == ()
    assert first.written == {"train": 3, "val": 4, "test": 3}
    before = digests(out)
    (images / "late.jpg").write_bytes(jpeg(9))
    (images / "late too.jpg").write_bytes(jpeg(9))
    again = table_to_shards(manifest, images, out, TableConfig())
    assert again.kept_splits == ("train", "val", "test")
    assert (again.written, again.reasons) == (first.written, {"missing file": 2})
    check_sum(again, out)
    shutil.rmtree(out / "train")
    third = table_to_shards(manifest, images, out, TableConfig())
    assert third.kept_splits == ("val", "test")
    assert third.written == {"train": 4, "val": 4, "test": 3}
    check_sum(third, out)
    assert {**digests(out), "train": ""} == {**before, "train": ""}
    (out / "rejected.jsonl").unlink()
    with pytest.raises(ValueError, match=r"test: holds 3 samples, .* lists 0 .* the source has 4: remove"):
        table_to_shards(manifest, images, out, TableConfig())


def test_a_split_without_one_good_image_is_not_committed(tmp_path: Path, images: Path) -> None:
    rows = [good_row(0), good_row(1), good_row(2, path="absent.jpg")]
    out = tmp_path / "out"
    report = table_to_shards(write_csv(tmp_path / "t.csv", rows), images, out, TableConfig())
    assert report.written == {"train": 2, "val": 0}
    check_sum(report, out)
    assert not (out / "val").exists()


def test_too_many_splits_are_taken_for_another_column(tmp_path: Path, images: Path) -> None:
    rows = [good_row(i, split=f"P{i}") for i in range(30)]
    with pytest.raises(ValueError, match=r"more than 20 splits .* choose another --split-column"):
        table_to_shards(write_csv(tmp_path / "t.csv", rows), images, tmp_path / "out", TableConfig())
    assert not (tmp_path / "out").exists()


KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from data_prep.table import TableConfig, table_to_shards

def kill(done, total):
    if done == int(at):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    manifest, images, out, secret, at, workers = sys.argv[1:]
    table_to_shards(Path(manifest), Path(images), Path(out), TableConfig(samples_per_shard=2),
                    secret_file=Path(secret), workers=int(workers), on_progress=kill)
"""


def killed_run(*arguments: object) -> list[int]:
    """Run until so many images are done, kill it, and return the process ids of its workers."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], check=False, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -signal.SIGKILL
    return [int(word) for word in done.stdout.split()]


def test_killed_and_repeated_gives_the_same_bytes(tmp_path: Path, images: Path, secret: Path) -> None:
    rows = [good_row(i) for i in range(12)]
    rows[1]["path"] = rows[8]["path"] = "absent.jpg"
    manifest, out = write_csv(tmp_path / "t.csv", rows), tmp_path / "out"
    config = TableConfig(samples_per_shard=2)
    table_to_shards(manifest, images, tmp_path / "whole", config, secret_file=secret)
    # In the middle of the first split with a shard complete, in the second with the first split complete,
    # and in the third: the list of rejected rows has grown by two splits.
    for at, complete in ((3, []), (7, ["train"]), (9, ["train", "val"])):
        assert killed_run(manifest, images, out, secret, at, 0) == []
        assert sorted(path.parent.name for path in out.glob("*/dataset.json")) == complete
        assert list(out.glob("*/*.tar"))
    report = table_to_shards(manifest, images, out, config, secret_file=secret)
    assert report.kept_splits == ("train", "val")
    check_sum(report, out)
    for file in (tmp_path / "whole").rglob("*"):
        if file.is_file():
            assert (out / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes(), file
    assert sum(path.is_file() for path in out.rglob("*")) == sum(p.is_file() for p in (tmp_path / "whole").rglob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_do_not_outlive_a_killed_run(tmp_path: Path, images: Path, secret: Path) -> None:
    manifest = write_csv(tmp_path / "t.csv", [good_row(i) for i in range(12)])
    workers = killed_run(manifest, images, tmp_path / "out", secret, 1, 1)
    assert len(workers) == 1

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, workers
        time.sleep(0.05)


def test_killed_before_the_first_file_can_be_repeated(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / f"table.json.tmp-{os.getpid() + 1}").write_text("{")
    manifest = write_csv(tmp_path / "t.csv", [good_row(0)])
    assert table_to_shards(manifest, images, out, TableConfig()).written == {"train": 1}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(
        st.tuples(
            st.integers(0, 4000), st.sampled_from([b"", b'"', b"\n", b",", b"\xff", b"\0", b"\r", b"../", b"[", b"|"])
        ),
        max_size=6,
    ),
    broken=st.lists(st.integers(0, 11), max_size=3),
)
def test_rows_read_are_rows_written_and_rejected_under_any_damage(
    tmp_path: Path, images: Path, secret: Path, damage: list[tuple[int, bytes]], broken: list[int]
) -> None:
    manifest = write_csv(tmp_path / "t.csv", [good_row(i) for i in range(12)])
    text = bytearray(manifest.read_bytes())
    first = text.index(b"\n") + 1
    for place, insert in damage:
        at = first + place % (len(text) - first)
        text[at : at + 1] = insert
    manifest.write_bytes(text)
    root, out = tmp_path / "damaged", tmp_path / "out"
    for folder in (root, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(images, root)
    for i in broken:
        file = root / good_row(i)["path"]
        file.write_bytes(file.read_bytes()[:300])
    try:
        report = table_to_shards(manifest, root, out, TableConfig(), secret_file=secret)
    except ValueError as error:
        assert "never closes" in str(error)  # noqa: PT017
        return
    check_sum(report, out)


def test_the_real_corpus(tmp_path: Path, shared_corpus: Path) -> None:
    with (shared_corpus / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    part = rows[::53]  # of every source
    out = tmp_path / "out"
    report = table_to_shards(write_csv(tmp_path / "t.csv", part, list(rows[0])), shared_corpus, out, TableConfig())
    assert (report.rows, report.rejected, report.unknown_modality) == (len(part), 0, 0)
    assert report.written == dict(Counter(row["split"] for row in part))
    check_sum(report, out)
    found = [sample for split in report.written for sample in samples(out, split)]
    assert {sample.dataset for sample in found} == {row["source"] for row in rows}
    kept = {sample.captions[0] for sample in found}
    assert all(" ".join(row["caption"].split()) in kept for row in part if row["caption"])
