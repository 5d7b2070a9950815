"""Rows of few-shot runs in `results.jsonl`, and the table over seeds. Imports no torch."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

FILE: Final = "results.jsonl"
# Of Student's t, two-sided 95 %, for 1 to 30 degrees of freedom; beyond, the normal's 1.96 is 4 % short at most.
_T95: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def append_rows(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows; several processes may write one file (on a disk whose locks work between them)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with (folder / FILE).open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, 2)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                # A process was killed while it wrote: its row stays unreadable, and ours begins a new line.
                text = "\n" + text
        file.write(text.encode())
        file.flush()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All whole rows of a folder; a cell that was run twice counts once, the last time.

    Raises:
        ValueError: no such file, or a line that is JSON and no row.
    """
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"{file}: no such file; `clip-med tune grid CONFIG --out {folder}` writes it")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut by a kill: the cell is not among those done, and is run again
        if not isinstance(row, dict) or not {"cell", "scored_on", "top1"} <= row.keys():
            raise ValueError(f"{file}: line {number} is no row of a few-shot run: {line[:80]!r}")
        rows[row["cell"], row["scored_on"]] = row
    return list(rows.values())


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Accuracy over the seeds of one method, task and number of shots; `low` and `high` by Student's t."""

    task: str
    scored_on: str
    method: str
    shots: int
    mean: float
    deviation: float
    low: float
    high: float
    seeds: int
    n: int

    def shown(self) -> str:
        """Mean, standard deviation and interval; of one seed the mean alone."""
        if self.seeds < 2:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.deviation:.3f} [{self.low:.3f}, {self.high:.3f}]"


def summarise_values(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, standard deviation (of a sample), and the 95 % interval of the mean, cut to 0 .. 1; NaN for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan, math.nan
    deviation = float(np.std(values, ddof=1))
    freedom = len(values) - 1
    half = (_T95[freedom - 1] if freedom <= len(_T95) else 1.96) * deviation / math.sqrt(len(values))
    return mean, deviation, max(0.0, mean - half), min(1.0, mean + half)


def summarise(rows: Sequence[dict[str, Any]], metric: str = "top1") -> list[Summary]:
    """Over seeds, in the order in which methods first appear; methods with several settings are told apart by number.

    Raises:
        ValueError: rows of several protocols, which are no one table.
    """
    if len(found := {row["protocol"] for row in rows}) > 1:
        raise ValueError(
            f"the rows are of several protocols: {', '.join(sorted(found))}; give each a folder of its own"
        )
    names = _names(rows)
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["task"], row["scored_on"], names[_identity(row)], int(row["shots"]))
        groups.setdefault(key, []).append(row)
    made: list[Summary] = []
    for (task, scored_on, method, shots), own in groups.items():
        mean, deviation, low, high = summarise_values([row[metric] for row in own])
        made.append(
            Summary(
                task=task,
                scored_on=scored_on,
                method=method,
                shots=shots,
                mean=mean,
                deviation=deviation,
                low=low,
                high=high,
                seeds=len(own),
                n=int(own[0]["n"]),
            )
        )
    return made


def _identity(row: dict[str, Any]) -> str:
    return json.dumps(row["config"], sort_keys=True)


def _names(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """A name for each configuration: the method's, with a number where it has several settings."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        known = kinds.setdefault(row["method"], [])
        if _identity(row) not in known:
            known.append(_identity(row))
    return {
        identity: kind if len(known) == 1 else f"{kind} ({number})"
        for kind, known in kinds.items()
        for number, identity in enumerate(known, 1)
    }


__all__ = ["FILE", "Summary", "append_rows", "read_rows", "summarise", "summarise_values"]
