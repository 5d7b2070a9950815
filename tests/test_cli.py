"""The command line: exit codes, JSON, one-line errors, and help that needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clip_med.cli import main
from clip_med.data.sample import Sample
from clip_med.data.shard_writer import ShardWriter


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    directory = tmp_path / "train"
    with ShardWriter(directory, samples_per_shard=2) as writer:
        for i in range(5):
            writer.add(
                Sample(
                    key=f"k{i}",
                    image=b"image",
                    image_suffix="jpg",
                    captions=("a", "b"),
                    labels=("cyst",),
                    modality="CT",
                    dataset="d",
                    group=f"g{i}",
                    split="train",
                )
            )
    return directory


def test_show_verify_and_index(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(shards), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["samples"] == 5
    assert shown["captions"] == 10
    assert shown["label"] == {"cyst": 5}
    assert main(["data", "show", str(shards)]) == 0
    assert "5  CT" in capsys.readouterr().out
    assert main(["data", "verify", str(shards)]) == 0
    assert "faults: 0" in capsys.readouterr().out
    (shards / "dataset.json").unlink()
    assert main(["data", "verify", str(shards)]) == 2
    assert f"clip-med data index {shards}" in capsys.readouterr().err
    assert main(["data", "index", str(shards), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 3


def test_verify_fails_on_damage(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = shards / "000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"image", b"imagf", 1))
    assert main(["data", "verify", str(shards), "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert len(faults) == 2
    assert "k2.jpg: damaged" in faults[1]


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("clip-med: error: ")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main(["dta"])
    assert stop.value.code == 2


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom clip_med.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'open_clip', 'webdataset', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not a medical device" in done.stdout
