"""`rejected.jsonl`: every record that is in no shard, with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from clip_med.data.shard_index import write_atomically
from data_prep.record import Rejection

REJECTED_FILE: Final = "rejected.jsonl"


def write_rejections(out: Path, rejections: Iterable[Rejection]) -> None:
    """Write the file of an output, in the order of the rows."""
    lines = [vars(rejection) for rejection in sorted(rejections, key=lambda rejection: rejection.row)]
    write_atomically(out / REJECTED_FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_rejections(out: Path) -> list[Rejection]:
    """What the file of an output lists; nothing if it is absent."""
    file = out / REJECTED_FILE
    if not file.exists():
        return []
    # Not str.splitlines, which also cuts at the odd line breaks that a path may hold.
    with file.open(encoding="utf-8") as lines:
        return [Rejection(**json.loads(line)) for line in lines]


__all__ = ["REJECTED_FILE", "read_rejections", "write_rejections"]
