"""The road that every source takes, seen with a source of a few numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from clip_med.data.shards import ShardSet
from data_prep.record import Record, RejectedImageError, Rejection, ShardSettings, Task
from data_prep.writing import source_to_shards


@dataclass
class Numbers:
    """Thirty images of ten patients, slow to list; the seventh does not decode and the eighth has no text."""

    listed: list[int] = field(default_factory=list)
    settings: ShardSettings = field(default_factory=ShardSettings)
    kind: str = "numbers"
    name: str = "numbers"
    cheap: bool = False

    def digest(self) -> str:
        return "30"

    def records(self) -> Iterator[Record | Rejection]:
        self.listed.append(1)
        yield Rejection(row=1, path="zero", reason="not a number")
        for i in range(2, 31):
            yield Record(
                row=i,
                path=f"image {i}",
                identity=str(i),
                labels=() if i == 8 else ("cyst",),
                group=f"P{i // 3}",
                spacing_mm=(0.5, 0.5),
                provenance={"from": "nowhere"},
                where={"value": i},
            )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        value = int(task.where["value"])
        if value == 7:
            raise RejectedImageError("empty image", "all zero")
        file = BytesIO()
        Image.fromarray(np.full((3, 4), value, np.uint8)).save(file, "PNG")
        return file.getvalue(), "png"


def test_a_source_that_is_slow_to_list_is_listed_once_and_everything_is_accounted_for(tmp_path: Path) -> None:
    source = Numbers()
    report = source_to_shards(source, tmp_path / "out")
    assert source.listed == [1]
    assert report.rows == 30 == sum(report.written.values()) + 3
    assert report.reasons == {"empty image": 1, "no text": 1, "not a number": 1}
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [(line["row"], line["path"]) for line in lines] == [(1, "zero"), (7, "image 7"), (8, "image 8")]
    sets = [ShardSet.open(path.parent) for path in (tmp_path / "out").glob("*/dataset.json")]
    samples = [shards.read(i) for shards in sets for i in range(len(shards))]
    assert {sample.spacing_mm for sample in samples} == {(0.5, 0.5)}
    assert samples[0].provenance == {"from": "nowhere"}
    values = sorted(int(np.asarray(Image.open(BytesIO(sample.image)))[0, 0]) for sample in samples)
    assert values == [i for i in range(2, 31) if i not in (7, 8)]
    splits: dict[str, set[str]] = {}
    for sample in samples:
        splits.setdefault(sample.group, set()).add(sample.split)
    assert len(splits) == 11
    assert all(len(names) == 1 for names in splits.values())
