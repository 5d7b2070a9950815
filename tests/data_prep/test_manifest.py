"""Tables: columns found or refused, the four kinds of file, and rows that cannot be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.manifest import Row, choose_columns, read_rows


def rows_of(path: Path, text: str | bytes, **chosen: str) -> list[Row]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_rows(path, {field: (column,) for field, column in chosen.items()}, "|"))


def test_usual_names_in_any_case_are_found() -> None:
    present = ["Image", "Report", "CLASS", "source", "Patient_ID", "license", "notes"]
    assert choose_columns(present, {}, Path("t.csv")) == {
        "path": ("Image",),
        "caption": ("Report",),
        "label": ("CLASS",),
        "dataset": ("source",),
        "group": ("Patient_ID",),
        "licence": ("license",),
    }


@pytest.mark.parametrize(
    ("present", "chosen", "parts"),
    [
        (["path", "image", "text"], {}, ["'path' and 'image' could each be the path", "--path-column"]),
        (["path", "patient_id", "case_id", "text"], {}, ["'patient_id' and 'case_id'", "--group-column"]),
        (["path", "caption"], {"caption": ("captoin",)}, ["'captoin' for caption", "did you mean 'caption'?", "path"]),
        (["x", "caption"], {}, ["no column of image paths", "--path-column", "x, caption"]),
        (["path", "x"], {}, ["neither a caption nor a label", "path, x"]),
    ],
)
def test_ambiguous_and_absent_columns_are_named(
    present: list[str], chosen: dict[str, tuple[str, ...]], parts: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"t\.csv") as error:
        choose_columns(present, chosen, Path("t.csv"))
    assert all(part in str(error.value) for part in ["t.csv", *parts]), error.value


def test_an_ambiguity_ends_where_a_column_is_chosen() -> None:
    columns = choose_columns(["path", "image", "text"], {"path": ("image",)}, Path("t.csv"))
    assert columns["path"] == ("image",)


def test_the_same_table_in_every_kind_of_file(tmp_path: Path) -> None:
    cells = [
        ("a b/ü.png", "Größe, “quoted” 肺", "cyst|Zyste"),
        ("2.png", 'line\nbreak and "quotes"', ""),
        ("3.png", "", "x"),
    ]
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in cells]
    expected = rows_of(tmp_path / "a.csv", "path,caption,label\n" + "".join(",".join(row) + "\n" for row in quoted))
    assert [row.captions for row in expected] == [("Größe, “quoted” 肺",), ('line break and "quotes"',), ()]
    assert [row.labels for row in expected] == [("cyst", "Zyste"), (), ("x",)]
    assert expected[0].path == "a b/ü.png"
    semicolons = "\ufeffpath;caption;label\r\n" + "".join(";".join(row) + "\r\n" for row in quoted)
    assert rows_of(tmp_path / "b.csv", semicolons) == expected
    assert rows_of(tmp_path / "a.tsv", "path\tcaption\tlabel\n" + "".join("\t".join(r) + "\n" for r in quoted)) == (
        expected
    )
    records = [
        {name: cell for name, cell in zip(("path", "caption", "label"), row, strict=True) if cell} for row in cells
    ]
    records[0]["label"] = ["cyst", "Zyste"]  # type: ignore[assignment]
    assert rows_of(tmp_path / "a.jsonl", "\n\n".join(json.dumps(record) for record in records)) == expected
    table = pyarrow.table(
        {name: [row[i] or None for row in cells] for i, name in enumerate(("path", "caption", "label"))}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet", {}, "|")) == expected


def test_several_captions_from_lists_and_columns(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.csv", 'path,caption\n1,"[""one"", "" two "", ""one"", """"]"\n2,[1] prior\n3,[7]\n')
    assert [row.captions for row in rows] == [("one", "two"), ("[1] prior",), ("[7]",)]
    (tmp_path / "b.csv").write_text("path,findings,impression\n1,A nodule.,\n2,A cyst.,Benign.\n")
    both = read_rows(tmp_path / "b.csv", {"caption": ("findings", "impression")}, "|")
    assert [row.captions for row in both] == [("A nodule.",), ("A cyst.", "Benign.")]


def test_a_column_that_only_later_objects_have_is_found(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.jsonl", '{"path": "1", "label": "a"}\n{"path": "2", "caption": "b", "label": null}\n')
    assert [(row.captions, row.labels) for row in rows] == [((), ("a",)), (("b",), ())]


def test_a_row_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.csv", b'path,caption\n1,a\n2\n3,a,b\n4,caf\xe9\n5,"x"y\n6,b\n')
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row.fault) for row in rows] == [False, True, True, True, True, False]
    assert rows[1].fault == "lines 3 to 3: has not the 2 cells of the header"
    assert "UTF-8" in rows[3].fault
    lines = [
        '{"path": "1", "caption": "a"}',
        "{",
        "[]",
        '{"path": {"bytes": 1}}',
        '{"path": "\\ud800", "caption": "a"}',
    ]
    rows = rows_of(tmp_path / "a.jsonl", "\n".join(lines))
    assert [bool(row.fault) for row in rows] == [False, True, True, True, True]
    assert "column 'path': expected text, got dict" in rows[3].fault


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'path,caption\n1,a\n2,"b\n3,c\n', "a.csv:3: a quote"),
        ("a.csv", "path,caption,path\n1,a,b\n", "two columns have one name"),
        ("a.csv", "path,caption\n", "has no rows"),
        ("a.csv", "", "no column of image paths"),
        ("a.xlsx", "", "expected .csv, .tsv, .jsonl or .parquet"),
        ("a.parquet", "no parquet", "damaged"),
    ],
)
def test_a_table_that_is_damaged_as_a_whole_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        rows_of(tmp_path / name, text)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"clip-med\[parquet\]"):
        rows_of(tmp_path / "a.parquet", "")
