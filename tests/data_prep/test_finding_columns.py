"""Tables with a column for each finding: labels, what is absent, uncertain rows, and images without any finding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.shards import ShardSet
from data_prep.finding_columns import FindingColumns
from data_prep.manifest import Row, read_rows

NAMES = ("Edema", "Mass", "Rib Fracture")
# As CheXpert writes them; the last of each row is a note that no column of ours is.
CELLS = ("1.0,0.0,,x", "-1.0,1.0,0,x", ",,,x", "0,0,0,x", "True,false,1,x")


def rows_of(tmp_path: Path, lines: tuple[str, ...], **findings: object) -> list[Row]:
    numbered = "".join(f"patient{n}/study1/view1.png,{line}\n" for n, line in enumerate(lines))
    (tmp_path / "a.csv").write_text(f"Path,{','.join(NAMES)},Notes\n{numbered}")
    chosen = FindingColumns(**({"columns": NAMES} | findings))  # type: ignore[arg-type]
    return list(read_rows(tmp_path / "a.csv", {}, "|", chosen))


def test_present_absent_and_not_mentioned(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, CELLS, uncertain="absent")
    assert [row.labels for row in rows] == [
        ("Edema",),
        ("Mass",),
        ("no finding",),
        ("no finding",),
        ("Edema", "Rib Fracture"),
    ]
    # What is uncertain or not mentioned is not denied.
    assert [row.absent for row in rows] == [("Mass",), ("Rib Fracture",), (), NAMES, ("Mass",)]
    assert rows_of(tmp_path, CELLS, uncertain="present")[1].labels == ("Edema", "Mass")
    rejected = rows_of(tmp_path, CELLS)
    assert [(row.reason, row.fault, row.path) for row in rejected if row.fault] == [
        ("uncertain finding", "Edema", "patient1/study1/view1.png")
    ]


def test_cells_that_are_no_statement_and_columns_that_are_not_there(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, ("2,0,0,x",))
    assert (row.reason, row.fault) == ("malformed row", "column 'Edema': expected 1, 0, -1 or nothing, got '2'")
    with pytest.raises(ValueError, match=r"no column 'Oedema' of a finding; did you mean 'Edema'\?"):
        rows_of(tmp_path, CELLS, columns=("Oedema",))
    with pytest.raises(ValueError, match="must hold different names"):
        FindingColumns(columns=("Mass", "Mass"))


def test_a_table_becomes_shards_with_uncertain_rows_listed(tmp_path: Path) -> None:
    rows_of(tmp_path, CELLS)
    for n in range(len(CELLS)):
        file = tmp_path / f"patient{n}/study1/view1.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 40 * n, dtype=np.uint8)).save(file)
    words = ["data", "table", str(tmp_path / "a.csv"), "--images-root", str(tmp_path), "--modality", "X-ray"]
    words += ["--dataset", "chest", "--split", "test", "--group-pattern", r"patient(\d+)/"]
    words += ["--out", str(tmp_path / "out"), "--finding-columns", *NAMES]
    assert main(words) == 0
    shards = ShardSet.open(tmp_path / "out/test")
    assert [shards.metadata(i).labels for i in range(len(shards))] == [
        ("Edema",),
        ("no finding",),
        ("no finding",),
        ("Edema", "Rib Fracture"),
    ]
    (line,) = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    assert {key: json.loads(line)[key] for key in ("reason", "detail")} == {
        "reason": "uncertain finding",
        "detail": "Edema",
    }


def test_columns_of_findings_in_parquet_with_images(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    image = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    table = pyarrow.table({"image": [image, image], "Edema": [1, 0], "Mass": [True, False]})
    (tmp_path / "in").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "in/test-0.parquet")
    out = tmp_path / "out"
    words = ["data", "huggingface", str(tmp_path / "in"), "--out", str(out), "--modality", "X-ray"]
    assert main([*words, "--finding-columns", "Edema", "Mass", "--negative", "normal"]) == 0
    shards = ShardSet.open(out / "test")
    assert {shards.metadata(i).labels for i in range(2)} == {("Edema", "Mass"), ("normal",)}


def test_labels_of_a_cell_may_be_a_list_as_python_or_json_writes_it(tmp_path: Path) -> None:
    cells = ("\"['no glaucoma']\"", '"[""a"", ""b, c""]"', "[]", "[1] prior", "[2]", "[x")
    (tmp_path / "a.csv").write_text("image,categories\n" + "".join(f"1.png,{cell}\n" for cell in cells))
    rows = read_rows(tmp_path / "a.csv", {"label": ("categories",)}, "|")
    assert [row.labels for row in rows] == [("no glaucoma",), ("a", "b, c"), (), ("[1] prior",), ("[2]",), ("[x",)]


def test_texts_that_python_would_join_are_no_list(tmp_path: Path) -> None:
    cells = ("['normal' 'mild']", "['normal'\n 'mild']", "['it\\'s' , 'mild']")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"image": "1.png", "label": cell}) + "\n" for cell in cells))
    *joined, listed = read_rows(tmp_path / "a.jsonl", {}, "|")
    assert all("column 'label': no commas between the texts" in row.fault for row in joined)
    assert listed.labels == ("it's", "mild")
