"""Shard sets named by a pattern, and the commands that index, verify and show them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.indexing import index_directory, index_pattern
from clip_med.data.shards import ShardError, ShardSet


def write_tar(path: Path, keys: list[str], *, caption: str | None = "A cyst.") -> None:
    stream = io.BytesIO()
    Image.new("L", (6, 6), 80).save(stream, "JPEG")
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for suffix, data in (("jpg", stream.getvalue()), ("txt", (caption or "").encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for number in range(12):
        write_tar(tmp_path / f"{number:03d}.tar", [f"{number:03d}{i}" for i in range(2)])
    return tmp_path


def test_a_pattern_is_indexed_and_opened_as_it_is(tars: Path) -> None:
    pattern = f"{tars}/{{002..010}}.tar"
    shards = index_pattern(pattern)
    assert len(shards) == 18
    assert [shards.key(i) for i in (0, 17)] == ["0020", "0101"]
    assert not (tars / "dataset.json").exists()
    assert ShardSet.open(pattern).digest == shards.digest
    assert ShardSet.open(f"{tars}/005.tar").read(1).captions == ("A cyst.",)
    with pytest.raises(ShardError, match=r"001.tar.idx.json: no index"):
        ShardSet.open(f"{tars}/001.tar")
    # The same tars as a directory have the same identity.
    for name in ("000", "001", "011"):
        (tars / f"{name}.tar").unlink()
    assert index_directory(tars).digest == shards.digest


def test_what_a_pattern_lacks_is_named(tars: Path) -> None:
    with pytest.raises(ShardError, match=r"2 of 14 shards are missing: .*012\.tar"):
        index_pattern(f"{tars}/{{000..013}}.tar")
    index_pattern(f"{tars}/{{000..003}}.tar")
    with (tars / "002.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ShardError, match=r"002\.tar: changed after it was indexed"):
        ShardSet.open(f"{tars}/{{000..003}}.tar")
    (tars / "003.tar").unlink()
    with pytest.raises(ShardError, match=r"003.tar: no such shard"):
        ShardSet.open(f"{tars}/{{000,003}}.tar")
    with pytest.raises(ValueError, match="stands for 100000000 names"):
        index_pattern(f"{tars}/{{0..99999999}}.tar")
    write_tar(tars / "000.tar", ["same"])
    write_tar(tars / "001.tar", ["same"])
    with pytest.raises(ShardError, match="'same' is also in"):
        index_pattern(f"{tars}/{{000..001}}.tar")


def test_the_commands_take_patterns_and_list_what_they_leave_out(
    tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tars / "001.tar", ["a", "b"], caption=None)
    write_tar(tars / "002.tar", [f"c{i}" for i in range(30)], caption=None)
    write_tar(tars / "003.tar", ["d"])
    with tarfile.open(tars / "002.tar", "a") as tar:
        info = tarfile.TarInfo("e.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"e"))
        image = io.BytesIO()
        Image.new("L", (6, 6)).save(image, "PNG")
        info = tarfile.TarInfo("e.png")
        info.size = len(image.getvalue())
        tar.addfile(info, io.BytesIO(image.getvalue()))
    pattern = f"{tars}/{{002,003}}.tar"
    assert main(["data", "index", pattern]) == 2
    assert "--exclude-bad" in capsys.readouterr().err
    assert main(["data", "index", pattern, "--exclude-bad", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["shards"], printed["samples"], len(printed["excluded"])) == (2, 2, 30)
    assert all("002.tar: c" in line for line in printed["excluded"])
    assert main(["data", "index", pattern, "--exclude-bad"]) == 0
    assert "and 10 more" in capsys.readouterr().out
    assert main(["data", "verify", pattern, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []
    assert main(["data", "show", pattern, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2
