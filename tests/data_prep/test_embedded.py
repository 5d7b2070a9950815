"""Parquet and Arrow files with images in them, written here as Hugging Face writes them; and tables with presets."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import ipc, parquet

from clip_med.cli import main
from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from data_prep import embedded
from data_prep.table_presets import PRESETS

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["benign_cyst", "tumour"], "_type": "ClassLabel"},
    "caption": {"dtype": "string", "_type": "Value"},
}


def png(level: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((5, 6), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def table(levels: list[int]) -> Any:
    rows = {
        "image": [{"bytes": png(level) if level < 250 else None, "path": f"MUELLER_{level}.png"} for level in levels],
        "label": [level % 2 if level else -1 for level in levels],
        "caption": [f"Image {level}." for level in levels],
    }
    return pyarrow.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


def samples(out: Path, split: str) -> list[tuple[int, Sample]]:
    shards = ShardSet.open(out / split)
    found = [shards.read(i) for i in range(len(shards))]
    return [(int(decode_image(sample.image)[0, 0, 0]), sample) for sample in found]


def test_parquet_files_give_images_names_of_classes_and_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "set/data"
    data.mkdir(parents=True)
    parquet.write_table(table([0, 1, 2, 3, 4]), data / "train-00000-of-00002.parquet", row_group_size=2)
    parquet.write_table(table([5, 250]), data / "train-00001-of-00002.parquet")
    parquet.write_table(table([7]), data / "validation-00000-of-00001.parquet")
    (tmp_path / "set/README.md").write_text("x")
    out = tmp_path / "out"
    command = ["data", "huggingface", str(tmp_path / "set"), "--modality", "CT", "--json", "--out"]
    assert main([*command, str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == {"train": 6, "val": 1}
    assert report["reasons"] == {"no image in the row": 1}
    found = samples(out, "train")
    assert [level for level, _ in found] == [0, 1, 2, 3, 4, 5]
    assert [sample.captions for _, sample in found] == [(f"Image {level}.",) for level in range(6)]
    labels = [sample.labels for _, sample in found]
    assert labels == [(), ("tumour",), ("benign cyst",), ("tumour",), ("benign cyst",), ("tumour",)]
    assert b"MUELLER" not in (out / "train/000000.tar").read_bytes()
    words = ["--secret", str(tmp_path / "out.secret"), "--workers", "1"]
    assert main([*command, str(tmp_path / "pool"), *words]) == 0
    assert ShardSet.open(tmp_path / "pool/train").digest == ShardSet.open(out / "train").digest


def test_arrow_files_of_a_saved_dataset_are_read(tmp_path: Path) -> None:
    for split, levels in {"train": [1, 2, 3], "test": [4]}.items():
        (tmp_path / "set" / split).mkdir(parents=True)
        content = table(levels)
        with (
            pyarrow.OSFile(str(tmp_path / "set" / split / "data-00000-of-00001.arrow"), "wb") as file,
            ipc.new_stream(file, content.schema) as writer,
        ):
            writer.write_table(content, max_chunksize=2)
    out = tmp_path / "out"
    assert main(["data", "huggingface", str(tmp_path / "set"), "--out", str(out)]) == 0
    assert [level for level, _ in samples(out, "train")] == [1, 2, 3]
    assert [(level, sample.labels) for level, sample in samples(out, "test")] == [(4, ("benign cyst",))]


def test_a_folder_without_a_row_is_refused_and_a_damaged_file_costs_itself_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "set"
    data.mkdir()
    command = ["data", "huggingface", str(data), "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 2
    assert "holds no row in any .parquet or .arrow file" in capsys.readouterr().err
    (data / "a.parquet").write_bytes(b"PAR1 nothing")
    assert main(command) == 2
    assert "holds no row" in capsys.readouterr().err
    parquet.write_table(table([1, 2, 3, 4]), data / "b.parquet", row_group_size=2)
    content = bytearray((data / "b.parquet").read_bytes())
    place = content.index(b"Image 3.")
    content[place - 40 : place] = bytes(40)  # the header of a page in the second row group
    (data / "c.parquet").write_bytes(content)
    parquet.write_table(table(list(range(100, 140))), data / "group.parquet")
    most = parquet.ParquetFile(data / "b.parquet").metadata.row_group(0).total_byte_size
    monkeypatch.setattr(embedded, "_MOST_OF_GROUP", 2 * most)
    (data / "outside.parquet").symlink_to(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((data / "b.parquet").read_bytes())
    (data / "d.arrow").write_bytes((data / "b.parquet").read_bytes()[:200])
    (data / "notes.txt").write_text("x")
    for name in ("README.md", "dataset_info.json", ".gitattributes"):
        (data / name).write_text("{}")
    assert main([*command, "--split", "all"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == {"all": 6}
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert {line["path"]: line["reason"] for line in lines} == {
        "a.parquet": "damaged file",
        "c.parquet": "damaged file",
        "d.arrow": "damaged file",
        "group.parquet": "too large",
        "notes.txt": "not a table",
        "outside.parquet": "outside the folder",
    }


@pytest.mark.parametrize(
    ("preset", "name", "text"),
    [
        (
            "roco",
            "t.csv",
            "id,name,caption\nROCO_1,PMC12_f1.png,One.\nROCO_2,PMC12_f2.png,Two.\nROCO_3,PMC9_f1.png,Three.\n",
        ),
        ("rocov2", "t.csv", "ID,Caption\nPMC12_f1,One.\nPMC12_f2,Two.\nPMC9_f1,Three.\n"),
        (
            "pmc-oa",
            "t.jsonl",
            '{"image": "PMC12_f1.png", "caption": "One.", "alignment_score": 0.3}\n'
            '{"image": "PMC12_f2.png", "caption": "Two."}\n{"image": "PMC9_f1.png", "caption": "Three."}\n',
        ),
    ],
)
def test_published_tables_of_figures_are_known_by_name(tmp_path: Path, preset: str, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    for place, figure in enumerate(("PMC12_f1", "PMC12_f2", "PMC9_f1")):
        (tmp_path / f"{figure}.{'jpg' if preset == 'rocov2' else 'png'}").write_bytes(png(place))
    out = tmp_path / "out"
    words = ["--images-root", str(tmp_path), "--preset", preset, "--split", "all", "--no-scrub", "--out", str(out)]
    assert main(["data", "table", str(tmp_path / name), *words]) == 0
    found = samples(out, "all")
    assert [sample.captions for _, sample in found] == [("One.",), ("Two.",), ("Three.",)]
    groups = [sample.group for _, sample in found]
    assert (groups[0] == groups[1], groups[0] == groups[2]) == (preset != "rocov2", False)


def test_every_preset_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "table", "--help"])
    assert "{" + ",".join(PRESETS) + "}" in capsys.readouterr().out
