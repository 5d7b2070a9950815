"""A pass over the plan of a source: everything that decides how splits are written, without a look at any image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from data_prep.record import Rejection, Task

# A split becomes a folder; more of them than this is a column of something else.
MAX_SPLITS: Final = 20


@dataclass
class Census:
    """What a pass over the plan found: everything but the images.

    Attributes:
        rows: records read.
        rejections: of records, by the source alone.
        split_rows: records per split whose images are to be opened.
        licences: per split and dataset.
        divided: groups that occur in several splits, with these; and the first record that divides one.
        unknown_modality: records without one.
    """

    rows: int
    rejections: list[Rejection]
    split_rows: dict[str, int]
    licences: dict[str, dict[str, set[str]]]
    divided: dict[str, set[str]]
    first_divided_row: int | None
    unknown_modality: int


def take_census(plan: Iterable[Task | Rejection]) -> Census:
    """Count everything that decides how splits are written.

    Raises:
        ValueError: more splits than anybody has.
    """
    census = Census(0, [], {}, {}, {}, None, 0)
    split_of: dict[str, str] = {}
    for result in plan:
        census.rows += 1
        if isinstance(result, Rejection):
            census.rejections.append(result)
            continue
        census.split_rows[result.split] = census.split_rows.get(result.split, 0) + 1
        if len(census.split_rows) > MAX_SPLITS:
            names = ", ".join(list(census.split_rows)[:5])
            raise ValueError(f"more than {MAX_SPLITS} splits ({names}, ...): choose another --split-column")
        licences = census.licences.setdefault(result.split, {}).setdefault(result.dataset, set())
        if result.licence:
            licences.add(result.licence)
        census.unknown_modality += result.modality == "unknown"
        if (first := split_of.setdefault(result.group, result.split)) != result.split:
            census.divided.setdefault(result.group, {first}).add(result.split)
            census.first_divided_row = census.first_divided_row or result.row
    return census


__all__ = ["Census", "take_census"]
