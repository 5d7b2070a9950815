"""The command line: exit codes, JSON, one-line errors, and help that needs no torch."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_med.cli import build_parser, main
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
    assert shown["distinct captions"] == 2
    assert shown["characters per caption"] == {"5 %": 1, "50 %": 1, "95 %": 1, "most": 1}
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


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight images of four patients, and one that is missing."""
    (tmp_path / "images").mkdir()
    rows = ["file,report,class,patient_id,when"]
    for i in range(8):
        pixels = np.full((24, 40, 3), 25 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
        rows.append(f'{i}.png,"Länge {"lang " * i}",cyst;nodule,P{i // 2},{"train" if i < 4 else "test"}')
    rows.append("8.png,Absent.,,P9,train")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_an_empty_source_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    assert main(["data", "folder", str(tmp_path / "images"), "--out", str(tmp_path / "out")]) == 1
    assert "warning: nothing that this command reads was found" in capsys.readouterr().err


def test_table_to_shards_and_a_contact_sheet(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "table", str(table), "--images-root", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    command += ["--split-column", "when", "--label-separator", ";", "--modality", "CT"]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["rows"], report["written"]) == (9, {"train": 4, "test": 4})
    assert (report["rejected"], report["reasons"]) == (1, {"missing file": 1})
    assert report["secret"] == str(tmp_path / "out.secret")
    assert "1 rows are in no shard" in printed.err
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "kept_splits: 2" in said
    assert "        1  missing file" in said
    sheet = tmp_path / "sheet.png"
    assert main(["data", "show", str(tmp_path / "out/train"), "--sheet", str(sheet), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["label"] == {"cyst": 4, "nodule": 4}
    assert shown["words per caption"] == {"5 %": 1, "50 %": 2, "95 %": 3, "most": 4}
    with Image.open(sheet) as drawn:
        assert {(25 * i,) * 3 for i in range(4)} <= {color for _, color in drawn.convert("RGB").getcolors(100_000)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--caption-column", "reprot"], "no column 'reprot' for caption; did you mean 'report'? (valid: class, file,"),
        (["--split-column", "when", "--split-column", "class"], "split must have one column, got 2"),
        (["--split", "a/b"], "'a/b' cannot be the name of a folder"),
        (["--fractions", "0.5", "0.5", "0.5"], "sum to 1"),
        (["--max-side", "0"], "max_side"),
        (["--label-separator", ""], "label_separator must not be empty"),
        (["--templates", "absent.yaml"], "absent.yaml"),
        (["--split-column", "when", "--strict"], "1 of 9 rows cannot be used (--strict)"),
    ],
)
def test_bad_options_of_a_table_end_with_one_line(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["data", "table", str(table), "--images-root", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.glob("out/*/*.tar"))


def test_a_table_without_one_usable_row_fails(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    command = ["data", "table", str(table), "--images-root", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "o")]
    assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["reasons"] == {"missing file": 9}


def test_help_of_table_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "table", "--help"])
    assert stop.value.code == 0
    assert "example: clip-med data table studies.csv --images-root images" in capsys.readouterr().out


def all_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in (action.choices or {}).values():
                yield from all_parsers(child)


def test_every_help_can_be_printed_and_has_an_example() -> None:
    """Found by use: a lone % in the help of one command made its parent's fail."""
    parsers = list(all_parsers(build_parser()))
    assert len(parsers) > 40
    without = [parser.prog for parser in parsers if not re.search("^examples?:", parser.format_help(), re.MULTILINE)]
    assert without == ["clip-med knowledge", "clip-med slurm", "clip-med config", "clip-med config list"]


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
