"""A source in parts: what they are laid into is what one process writes, byte for byte; each part stands for itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import submitit

from data_prep.parts import list_parts, merge_parts, part_folder, parts_folder, write_part
from data_prep.record import ShardSettings, Task
from data_prep.writing import source_to_shards
from tests.data_prep.test_scale import Numbers


def files(out: Path) -> dict[str, bytes]:
    """All that lies in an output."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What one process writes of the numbers."""
    source_to_shards(Numbers(), tmp_path / "whole", secret_file=tmp_path / "key")
    return files(tmp_path / "whole")


@pytest.mark.parametrize("count", [1, 7])
def test_parts_in_any_order_are_laid_into_the_bytes_of_one_process(
    tmp_path: Path, whole: dict[str, bytes], count: int
) -> None:
    out, key = tmp_path / "out", tmp_path / "key"
    parts = list_parts(Numbers(), out, count, secret_file=key)
    opened: list[int] = []
    for number in reversed(range(count)):
        source = Numbers()
        report = write_part(source, out, number, secret_file=key)
        assert report.rows == len(source.opened) in (40 // count, 40 // count + 1)
        opened += source.opened
    assert sorted(opened) == list(range(40))
    assert parts.missing() == []
    merging = Numbers()
    report = merge_parts(merging, out, secret_file=key)
    assert merging.opened == []
    assert (report.rows, report.written, report.rejected) == (40, {"train": 34}, 6)
    assert files(out) == whole
    # Once more changes nothing, and needs no part.
    shutil.rmtree(part_folder(parts.folder, 0))
    assert merge_parts(Numbers(), out, secret_file=key).kept_splits == ("train",)
    assert files(out) == whole


def test_a_killed_part_is_named_and_run_again_alone_from_its_last_full_shard(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out, key = tmp_path / "out", tmp_path / "key"
    parts = list_parts(Numbers(), out, 2, secret_file=key)
    write_part(Numbers(), out, 0, secret_file=key)
    with pytest.raises(KeyboardInterrupt):
        write_part(Numbers(stop=35), out, 1, secret_file=key)
    with pytest.raises(ValueError, match=r"1 of 2 parts are not complete: .*out\.parts/0001$"):
        merge_parts(Numbers(), out, secret_file=key)
    assert parts.missing() == [1]
    again = Numbers()
    write_part(again, out, 1, secret_file=key)
    assert again.opened == [24, 31, *range(32, 40)]  # Ten were kept, and those rejected among them are looked at again.
    merge_parts(Numbers(), out, secret_file=key)
    assert files(out) == whole


def test_a_merge_that_was_interrupted_goes_on_after_its_last_full_shard(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out, key = tmp_path / "out", tmp_path / "key"
    list_parts(Numbers(), out, 2, secret_file=key)
    for number in range(2):
        write_part(Numbers(), out, number, secret_file=key)

    def pull_the_plug(done: int, total: int) -> None:
        if done == 23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_parts(Numbers(), out, secret_file=key, on_progress=pull_the_plug)
    kept = len(list((out / "train").glob("*.tar")))
    assert kept == 4
    done: list[int] = []
    merge_parts(Numbers(), out, secret_file=key, on_progress=lambda now, total: done.append(now))
    assert done[0] == 5 * kept + 3
    assert files(out) == whole


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("flip", r"0001/shards/train/000000\.tar: .*damaged"),
        ("other", r"0001/shards/train: changed after the part was done; remove .*0001 and write this part again"),
        ("lists", r"0001: holds no sample of row 25 .*; remove .*0001 and write this part again"),
    ],
)
def test_a_part_that_does_not_hold_what_it_says_is_named(tmp_path: Path, damage: str, said: str) -> None:
    out, key = tmp_path / "out", tmp_path / "key"
    folder = list_parts(Numbers(), out, 2, secret_file=key).folder
    for number in range(2):
        write_part(Numbers(), out, number, secret_file=key)
    shards = part_folder(folder, 1) / "shards"
    if damage == "flip":
        tar = shards / "train/000000.tar"
        content = bytearray(tar.read_bytes())
        content[700] ^= 1
        tar.write_bytes(content)
    elif damage == "other":
        shutil.copytree(part_folder(folder, 0) / "shards/train", shards / "train", dirs_exist_ok=True)
    else:
        (shards / "rejected.jsonl").write_text("")
    with pytest.raises(ValueError, match=said):
        merge_parts(Numbers(), out, secret_file=key)
    shutil.rmtree(part_folder(folder, 1))
    write_part(Numbers(), out, 1, secret_file=key)
    merge_parts(Numbers(), out, secret_file=key)


def test_parts_belong_to_one_source_its_settings_and_their_number(tmp_path: Path) -> None:
    out, key = tmp_path / "out", tmp_path / "key"
    with pytest.raises(ValueError, match=r"out\.parts: holds no complete list of parts"):
        write_part(Numbers(), out, 0, secret_file=key)
    with pytest.raises(ValueError, match="has 40 rows, which cannot be 41 parts"):
        list_parts(Numbers(), out, 41, secret_file=key)
    assert not out.exists()
    assert not parts_folder(out).exists()
    list_parts(Numbers(), out, 2, secret_file=key)
    assert parts_folder(out).stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match=r"other settings \(parts differ\)"):
        list_parts(Numbers(), out, 3, secret_file=key)
    other = Numbers(settings=ShardSettings(split="train", samples_per_shard=6))
    for call in (lambda: write_part(other, out, 0, secret_file=key), lambda: merge_parts(other, out, secret_file=key)):
        with pytest.raises(ValueError, match=r"other settings \(samples_per_shard differ\)"):
            call()
    with pytest.raises(ValueError, match="has the parts 0 to 1"):
        write_part(Numbers(), out, 2, secret_file=key)


def test_a_strict_part_with_a_bad_image_is_not_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = list_parts(Numbers(), out, 4)
    for number, done in ((0, False), (1, False)):
        with pytest.raises(ValueError, match="rows cannot be used"):
            write_part(Numbers(), out, number, strict=True)
        assert (number not in parts.missing()) == done
    listed = part_folder(parts.folder, 0) / "shards/rejected.jsonl"
    assert [json.loads(line)["path"] for line in listed.read_text().splitlines()] == ["3"]


@dataclass
class Signalled(Numbers):
    """Whoever opens an image gets a signal of a scheduler."""

    def open_image(self, task: Task) -> tuple[bytes, str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().open_image(task)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # submitit's
def test_parts_as_an_array_of_submitit_and_workers_that_leave_signals_to_their_parent(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out, key = tmp_path / "out", tmp_path / "key"
    list_parts(Signalled(), out, 2, secret_file=key)
    executor = submitit.AutoExecutor(tmp_path / "log", cluster="debug")
    jobs = executor.map_array(partial(write_part, Signalled(), out, secret_file=key, workers=1), range(2))
    assert [job.result().rows for job in jobs] == [20, 20]
    merge_parts(Numbers(), out, secret_file=key)
    assert files(out) == whole
