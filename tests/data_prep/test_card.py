"""The dataset card: its counts are those of the data, its caveats are found, and nothing in it is loaded or markup."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.sample import Sample
from clip_med.data.shard_writer import ShardWriter
from data_prep.card import caveats, write_card

NASTY = 'a <script src="https://x.org/a.js"></script> | cyst'


def sample(number: int, split: str, **changes: object) -> Sample:
    """Image `number` is grey of that value; two captions, the second from its label."""
    file = BytesIO()
    Image.fromarray(np.full((20, 30 + number % 2), number, np.uint8)).save(file, "PNG")
    fields: dict[str, object] = {
        "key": f"{split}{number}",
        "image": file.getvalue(),
        "image_suffix": "png",
        "captions": (f"Report number {number} of these.", "A cyst."),
        "caption_kinds": ("report", "label"),
        "labels": (NASTY,),
        "modality": "CT",
        "dataset": "ours",
        "group": f"{split}-g{number // 2}",
        "split": split,
    }
    return Sample(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 training and 4 test images; a patient and an image are in both, the list of `data dedup` beside train."""
    out = tmp_path / "set"
    sets = {
        "train": [sample(n, "train") for n in range(11)] + [sample(0, "train", key="again", labels=("rare",))],
        "test": [sample(n, "test") for n in range(20, 23)],
    }
    sets["test"].append(sample(1, "test", group="train-g0", modality="unknown", labels=(), dataset="theirs"))
    for name, samples in sets.items():
        sources = {"ours": {"licence": "CC BY 4.0", "captions": "scrubbed by rules", "pixels": "seen"}, "theirs": {}}
        with ShardWriter(out / name, samples_per_shard=7, sources=sources) as writer:
            for each in samples:
                writer.add(each)
    (out / "rejected.jsonl").write_text('{"row": 3, "reason": "not an image"}\n' * 2 + '{"row": 5, "reason": "odd"}\n')
    line = {"kind": "near", "against": True}
    (out / "train.removed.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(line | {'against': False})}\n")
    return out


def test_the_card_counts_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "card", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["samples"] == {"train": 12, "test": 4}
    card = (folder / "card.md").read_text()
    rows = {tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in card.splitlines() if "|" in line}
    nasty = r"a \<script src="
    assert any(row[0].startswith(nasty) and row[1:] == ("11", "3", "14") for row in rows)
    expected = [
        ("rare", "1", "0", "1"),
        ("CT", "12", "3", "15"),
        ("unknown", "0", "1", "1"),
        ("ours", "12", "3", "15", "CC BY 4.0", "scrubbed by rules", "seen"),
        ("theirs", "0", "1", "1", "not stated", "not stated", "not stated"),
        ("words", "2", "2", "5", "5"),
        ("characters", "7", "7", "26", "26"),
        ("short side", "20", "20", "20", "20"),
        ("long side", "30", "30", "31", "31"),
        ("equal files", "train", "1"),
        ("equal files", "test", "0"),
        ("equal files", "several splits", "1"),
        ("removed: near against another set", "train", "1"),
        ("removed: near within", "train", "1"),
        ("not an image", "2"),
        ("odd", "1"),
    ]
    assert set(expected) - rows == set()
    assert next(row for row in rows if row[0] == "train")[1:4] == ("12", "6", "2")
    assert "32 captions, 15 of them distinct; the most frequent stands 16 times." in card
    assert "Kinds: label 16, report 16." in card
    assert "png grey 16" in card
    assert "No list of `clip-med data dedup` lies beside test." in card
    assert "not a medical device" not in printed["caveats"]
    for caveat in (
        "fewer than 10 samples",
        "not in every split",
        "1 patients or cases are in several splits",
        "1 images are, byte for byte, in several splits",
        "1 of 16 samples have no label",
        "1 of 16 samples have no known modality",
        "16 of 32 captions are sentences made from labels",
        "theirs: the licence is not stated",
        "theirs: captions were not scrubbed",
        "theirs: pixels were not looked at for text",
    ):
        assert sum(caveat in found for found in printed["caveats"]) == 1, caveat
    assert len(printed["caveats"]) == 10


def test_the_same_data_give_the_same_bytes_and_load_nothing(folder: Path) -> None:
    write_card(folder)
    first = {name: (folder / name).read_bytes() for name in ("card.md", "card.html")}
    write_card(folder)
    assert {name: (folder / name).read_bytes() for name in first} == first
    page = first["card.html"].decode()
    # The text of a label names an address; as markup none is left.
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert "@import" not in page
    assert "url(" not in page


def test_a_single_set_has_a_card_too_and_other_folders_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = write_card(folder / "test")
    assert (folder / "test/card.md").is_file()
    assert [part.name for part in facts.parts] == ["test"]
    assert facts.rejected is None
    assert not any("several splits" in caveat for caveat in caveats(facts))
    assert main(["data", "verify", str(folder / "test")]) == 0
    assert main(["data", "card", str(tmp_path)]) == 2
    assert "neither a shard set nor a folder of them" in capsys.readouterr().err
    assert main(["data", "card", str(tmp_path / "none")]) == 2


def test_the_output_of_a_source_names_its_source(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(np.full((9, 9), 50 * number, np.uint8)).save(tmp_path / f"{number}.png")
    rows = "".join(f"{number}.png,Scan {number}.,train,CC0\n" for number in range(3))
    (tmp_path / "t.csv").write_text("path,caption,split,licence\n" + rows + "gone.png,Lost.,train,CC0\n")
    out = tmp_path / "out"
    assert main(["data", "table", str(tmp_path / "t.csv"), "--images-root", str(tmp_path), "--out", str(out)]) == 0
    facts = write_card(out)
    assert facts.source is not None
    assert facts.source[0] == "table"
    card = (out / "card.md").read_text()
    assert "Made by `clip-med data table` from a source with the SHA-256" in card
    assert "| table | 3 | 3 | CC0 | scrubbed by rules |" in card
    assert "| missing file | 1 |" in card
    assert any("Every image is a group of its own" in caveat for caveat in caveats(facts))
    # The card does not keep the source from being run again.
    assert main(["data", "table", str(tmp_path / "t.csv"), "--images-root", str(tmp_path), "--out", str(out)]) == 0
