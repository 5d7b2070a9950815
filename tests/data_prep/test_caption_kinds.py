"""Captions keep what they are: the column that they stand in, or the template that made them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from clip_med.data.shards import ShardSet
from data_prep.manifest import read_rows
from data_prep.table import TableConfig, table_to_shards


def test_columns_name_the_kind_and_templates_are_labels(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "image,Report,impression,notes,label\n1.png,All is well.,Normal.,Checked.,healthy\n2.png,,,,cyst\n",
        encoding="utf-8",
    )
    columns = {"caption": ["Report", "impression", "notes"]}
    first, second = read_rows(table, columns, "|")
    assert dict(zip(first.captions, first.caption_kinds, strict=True)) == {
        "All is well.": "report",
        "Normal.": "impression",
        "Checked.": "other",
    }
    assert second.captions == ()
    for name in ("1.png", "2.png"):
        Image.new("L", (8, 8), 9).save(tmp_path / name)
    settings = TableConfig(columns={"caption": ("Report", "impression", "notes")}, split="train")
    table_to_shards(table, tmp_path, tmp_path / "out", settings)
    shards = ShardSet.open(tmp_path / "out/train")
    kinds = [set(shards.metadata(i).caption_kinds) for i in range(2)]
    assert kinds == [{"report", "impression", "other"}, {"label"}]
