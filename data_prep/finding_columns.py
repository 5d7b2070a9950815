"""Tables that have a column for each finding, as CheXpert's: 1 present, 0 absent, -1 uncertain, empty not said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clip_med.config import config


@config
class FindingColumns:
    """Columns that are findings; a label is the name of its column."""

    columns: tuple[str, ...] = ()
    uncertain: Literal["reject", "present", "absent"] = "reject"
    """What becomes of a row with -1 in one of them. reject: it is left out, counted and listed; present and absent: it
    is taken for that, and captions deny nothing that is uncertain."""
    negative: str = "no finding"
    """Label of an image that has none of the findings."""

    def __post_init__(self) -> None:
        """Refuse names that could not be told apart, and a label without a name."""
        if len(set(self.columns)) != len(self.columns) or not all(self.columns):
            raise ValueError(f"findings.columns must hold different names, got {list(self.columns)}")
        if not self.negative.strip():
            raise ValueError("findings.negative must not be empty")


@dataclass(frozen=True)
class Stated:
    """What a row says of findings, by label; what it does not mention is in none."""

    present: tuple[str, ...]
    absent: tuple[str, ...]
    uncertain: tuple[str, ...]


def stated(record: Mapping[str, Any], columns: tuple[str, ...]) -> Stated:
    """The findings of a row.

    Raises:
        ValueError: a cell that is none of 1, 0, -1 and empty; names its column.

    Example:
        >>> stated({"Edema": "1.0", "Mass": "-1", "Fracture": ""}, ("Edema", "Mass", "Fracture"))
        Stated(present=('Edema',), absent=(), uncertain=('Mass',))
    """
    found: dict[float, list[str]] = {1: [], 0: [], -1: []}
    for column in columns:
        cell = record.get(column)
        text = "" if cell is None or cell != cell else str(cell).strip()
        if not text:
            continue
        try:
            value = float({"true": "1", "false": "0"}.get(text.lower(), text))
        except ValueError:
            value = float("nan")
        if value not in found:
            raise ValueError(f"column {column!r}: expected 1, 0, -1 or nothing, got {text[:40]!r}")
        found[value].append(column)
    return Stated(present=tuple(found[1]), absent=tuple(found[0]), uncertain=tuple(found[-1]))


__all__ = ["FindingColumns", "Stated", "stated"]
