"""Interrupted runs go on after their last full shard; large folders cost little memory, hostile names are refused."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.shards import ShardSet
from data_prep import dicom_tree, volumes
from data_prep.captions import read_templates
from data_prep.census import take_census
from data_prep.files import walk_files
from data_prep.image_folder import ImageFolderConfig, ImageFolderSource
from data_prep.record import Plan, Record, RejectedImageError, Rejection, ShardSettings, Task
from data_prep.splits import SplitPlan, drawn_split, strata
from data_prep.stored_plan import StoredPlan
from data_prep.writing import source_to_shards
from tests.data_prep.dicom_files import ct_slice, write


@dataclass
class Numbers:
    """Forty images, of which every seventh cannot be used; `stop` is where somebody pulls the plug."""

    stop: int = 1000
    usable: tuple[int, ...] = ()
    opened: list[int] = field(default_factory=list)
    settings: ShardSettings = field(default_factory=lambda: ShardSettings(split="train", samples_per_shard=5))
    kind: str = "numbers"
    name: str = "numbers"
    cheap: bool = True

    def digest(self) -> str:
        return "40"

    def records(self) -> Iterator[Record | Rejection]:
        for i in range(40):
            yield Record(row=i + 1, path=str(i), identity=str(i), labels=("cyst",), where={"value": i})

    def open_image(self, task: Task) -> tuple[bytes, str]:
        value = int(task.where["value"])
        if value == self.stop:
            raise KeyboardInterrupt
        self.opened.append(value)
        if value % 7 == 3 and value not in self.usable:
            raise RejectedImageError("unlucky", str(value))
        file = BytesIO()
        Image.fromarray(np.full((3, 4), value, np.uint8)).save(file, "PNG")
        return file.getvalue(), "png"


def digest(out: Path) -> str:
    return ShardSet.open(out / "train").digest


def rejected(out: Path) -> list[str]:
    return [json.loads(line)["path"] for line in (out / "rejected.jsonl").read_text().splitlines()]


def test_an_interrupted_run_goes_on_after_its_last_full_shard_to_the_same_bytes(tmp_path: Path) -> None:
    key = tmp_path / "key"
    source_to_shards(Numbers(), tmp_path / "whole", secret_file=key)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        source_to_shards(Numbers(stop=23), out, secret_file=key)
    assert sorted(path.name for path in (out / "train").glob("*.tar")) == [f"{i:06d}.tar" for i in range(4)]
    again, done = Numbers(), []
    report = source_to_shards(again, out, secret_file=key, on_progress=lambda now, total: done.append((now, total)))
    # Twenty samples are kept; the three that were rejected among them are looked at again, for their reason.
    assert again.opened == [3, 10, 17, *range(23, 40)]
    assert done[0] == (23, 40)
    assert report.rows == 40 == sum(report.written.values()) + report.rejected
    assert digest(out) == digest(tmp_path / "whole")
    assert rejected(out) == rejected(tmp_path / "whole") == ["3", "10", "17", "24", "31", "38"]
    assert ShardSet.open(out / "train").verify() == ()
    assert (out / "train/dataset.json").read_bytes() == (tmp_path / "whole/train/dataset.json").read_bytes()


@pytest.mark.parametrize("damage", ["flip", "usable"])
def test_shards_that_are_damaged_or_lack_an_image_that_has_come_are_written_anew(tmp_path: Path, damage: str) -> None:
    key, out = tmp_path / "key", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        source_to_shards(Numbers(stop=23), out, secret_file=key)
    usable = (10,) if damage == "usable" else ()
    source_to_shards(Numbers(usable=usable), tmp_path / "whole", secret_file=key)
    if damage == "flip":
        tar = out / "train/000000.tar"
        content = bytearray(tar.read_bytes())
        content[700] ^= 1
        tar.write_bytes(content)
    again = Numbers(usable=usable)
    source_to_shards(again, out, secret_file=key)
    assert set(again.opened) >= set(range(40))
    assert digest(out) == digest(tmp_path / "whole")


def test_many_files_in_one_folder_are_listed_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "images/cyst").mkdir(parents=True)
    count = 4_000  # run once with 100,000, where it holds too
    first = tmp_path / "images/cyst/000000.png"
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(first)
    for number in range(1, count):
        # A file system allows only so many names of one file; the images are not opened here.
        os.symlink(first, tmp_path / f"images/cyst/{number:06d}.png")
    assert sum(1 for _ in walk_files(tmp_path / "images")) == count
    source = ImageFolderSource(tmp_path / "images", ImageFolderConfig(modality="CT"))
    tracemalloc.start()
    stored = StoredPlan(Plan(source, b"secret", read_templates()))
    groups = strata(stored)
    census = take_census(SplitPlan(stored, {g: drawn_split(b"secret", g, (0.8, 0.1, 0.1)) for g in groups}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stored.close()
    assert census.rows == count == sum(census.split_rows.values())
    # Hashes and splits of groups, and names of one folder: under a kilobyte a file.
    assert peak < count * 1000


def test_loops_unreadable_files_and_names_of_every_kind_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "images/cyst"
    folder.mkdir(parents=True)
    good = ["plain.png", "Schädel Ω 图像.png", 'quote"\n.png', "e\u0301.png"]
    for place, name in enumerate(good):
        Image.fromarray(np.full((3, 3), place, np.uint8)).save(folder / name)
    os.symlink(folder, folder / "again")
    os.symlink("loop.png", folder / "loop.png")
    os.symlink("/etc/passwd", folder / "outside.png")
    os.mkfifo(folder / "pipe.png")
    with (folder / "enormous.png").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    (folder / "folder.png").mkdir()
    Path(os.fsdecode(os.fsencode(str(folder)) + b"/latin\xe9.png")).write_bytes((folder / good[0]).read_bytes())
    out = tmp_path / "out"
    assert main(["data", "folder", str(tmp_path / "images"), "--split", "all", "--out", str(out)]) == 0
    assert len(ShardSet.open(out / "all")) == len(good)
    with (out / "rejected.jsonl").open(encoding="utf-8") as lines:
        found = {(line := json.loads(text))["path"]: line["reason"] for text in lines}
    assert found == {
        "cyst/again/": "link to a folder",
        "cyst/enormous.png": "too large",
        "cyst/latin\\xe9.png": "name is not UTF-8",
        "cyst/loop.png": "missing file",
        "cyst/outside.png": "outside the folder",
        "cyst/pipe.png": "missing file",
    }


def test_a_file_that_the_system_does_not_give_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every file can be read, so the system's answer is played."""
    for name in ("good", "locked"):
        write(ct_slice(len(name)), tmp_path / f"dicom/{name}.dcm")
        nibabel.save(nibabel.Nifti1Image(np.arange(64.0).reshape(4, 4, 4), np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "volumes").mkdir()
    for file in tmp_path.glob("*.nii.gz"):
        file.rename(tmp_path / "volumes" / file.name)

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Path, *arguments: Any, **options: Any) -> Any:
            if "locked" in file.name:
                raise PermissionError(13, "Permission denied", str(file))
            return function(file, *arguments, **options)

        return call

    monkeypatch.setattr(dicom_tree, "read_dicom", refusing(dicom_tree.read_dicom))
    monkeypatch.setattr(volumes.nibabel, "load", refusing(nibabel.load))
    for kind, more in (("dicom", ["--burned-in", "ignore"]), ("volumes", ["--modality", "MRI"])):
        out = tmp_path / f"{kind}.out"
        assert main(["data", kind, str(tmp_path / kind), "--split", "train", "--out", str(out), *more]) == 0
        (line,) = [json.loads(text) for text in (out / "rejected.jsonl").read_text().splitlines()]
        assert line["path"].startswith("locked")
        assert (line["reason"], line["detail"]) == ("unreadable file", "Permission denied")
