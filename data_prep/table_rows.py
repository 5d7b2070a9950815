"""What becomes of each row of a table, as far as the table alone can say: its fields, its split, or its rejection."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clip_med.config import PositiveInt, config, nearest
from clip_med.data.sample import keyed_hash
from data_prep.captions import captions_for
from data_prep.manifest import COLUMN_NAMES, SEVERAL, Row, read_rows

SPLIT_NAMES: Final = ("train", "val", "test")
# A split becomes a folder; more of them than this is a column of something else.
MAX_SPLITS: Final = 20
_SPLIT: Final = re.compile(r"\w[\w+-]{0,63}")


@config
class TableConfig:
    """How a table becomes shards."""

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Field (path, caption, label, modality, dataset, split, group, licence, view, study) to column; caption and
    label may have several. Columns with usual names are found without."""
    label_separator: str = "|"
    modality: str | None = None
    dataset: str | None = None
    split: str | None = None
    """For every row, whatever the table says."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of train, val and test among the groups whose rows name no split; a group is never divided."""
    templates: Path | None = None
    """Caption templates for rows with a label only; None: those of the package."""
    max_side: PositiveInt | None = None
    """Scale larger images down to this, in pixels."""
    samples_per_shard: PositiveInt = 1000

    def __post_init__(self) -> None:
        """Refuse what would fail at the first row."""
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be three numbers from 0 that sum to 1, got {self.fractions}")
        if not self.label_separator:
            raise ValueError("label_separator must not be empty")
        if self.split is not None and not _SPLIT.fullmatch(self.split):
            raise ValueError(f"split {self.split!r} cannot be the name of a folder (letters, digits, _, + and -)")
        for name in ("modality", "dataset"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
        for name, chosen in self.columns.items():
            if name not in COLUMN_NAMES:
                raise ValueError(f"columns: unknown field {name!r}; {nearest(name, COLUMN_NAMES)}")
            if len(chosen) != 1 and (name not in SEVERAL or not chosen):
                raise ValueError(f"columns: {name} must have one column, got {len(chosen)}")


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A row that is in no shard: `reason` is a fixed word, `detail` the rest; `split` where its image was opened."""

    row: int
    path: str
    reason: str
    detail: str = ""
    split: str | None = None

    def sentence(self) -> str:
        """For error messages."""
        return f"row {self.row}: {self.path}: {self.reason}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A row whose image is still to be opened; `relative` is its path below images-root, the rest as in `Sample`."""

    row: int
    relative: str
    key: str
    captions: tuple[str, ...]
    caption_kinds: tuple[str, ...]
    labels: tuple[str, ...]
    modality: str
    dataset: str
    group: str
    split: str
    view: str | None
    study: str | None
    licence: str


class RowPlan:
    """The rows of one table under one secret: a pure function of both and the settings, without a look at any image.

    Iterating reads the table from its start, one row in memory at a time (and a hash per row).

    Raises:
        ValueError: see `read_rows`.
    """

    def __init__(
        self,
        manifest: Path,
        images_root: Path,
        settings: TableConfig,
        secret: bytes,
        templates: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._manifest = manifest
        self._root = os.path.abspath(images_root)
        self._settings = settings
        self._secret = secret
        self._templates = templates
        self._rendered: dict[tuple[tuple[str, ...], str], tuple[str, ...]] = {}

    def __iter__(self) -> Iterator[Task | Rejection]:
        seen: set[int] = set()
        for row in read_rows(self._manifest, self._settings.columns, self._settings.label_separator):
            relative = os.path.relpath(os.path.join(self._root, row.path), self._root)
            dataset = self._settings.dataset or row.values.get("dataset") or "table"
            key = keyed_hash(self._secret, "key", dataset, relative) if not row.fault else ""
            refused = _refused(row, relative)
            if refused is None and int(key, 16) in seen:
                refused = ("duplicate", "the same dataset and path in an earlier row")
            if refused is not None:
                yield Rejection(row=row.number, path=row.path, reason=refused[0], detail=refused[1])
                continue
            seen.add(int(key, 16))
            yield self._task(row, relative, dataset, key)

    def of_split(self, split: str) -> Iterator[Task]:
        """The tasks of one split, in the order of the table."""
        return (task for task in self if isinstance(task, Task) and task.split == split)

    def _task(self, row: Row, relative: str, dataset: str, key: str) -> Task:
        values, settings = row.values, self._settings
        modality = settings.modality or values["modality"] or "unknown"
        group = keyed_hash(self._secret, "group", dataset, values["group"] or relative)
        captions = row.captions or self._captions(row.labels, modality)
        return Task(
            row=row.number,
            relative=relative,
            key=key,
            captions=captions,
            caption_kinds=row.caption_kinds if row.captions else ("label",) * len(captions),
            labels=row.labels,
            modality=modality,
            dataset=dataset,
            group=group,
            split=settings.split or values["split"] or self._drawn_split(group),
            view=values["view"] or None,
            # A study number leads to a patient as surely as a patient number.
            study=keyed_hash(self._secret, "study", dataset, values["study"]) if values["study"] else None,
            licence=values["licence"],
        )

    def _captions(self, labels: tuple[str, ...], modality: str) -> tuple[str, ...]:
        if (labels, modality) not in self._rendered:
            self._rendered[labels, modality] = captions_for(labels, modality, self._templates)
        return self._rendered[labels, modality]

    def _drawn_split(self, group: str) -> str:
        """A split that depends on the group alone, so that more rows of a patient join those that are there."""
        place = int(keyed_hash(self._secret, "split", group, length=12), 16) / 16**12
        train, val, _ = self._settings.fractions
        return SPLIT_NAMES[0] if place < train else SPLIT_NAMES[1] if place < train + val else SPLIT_NAMES[2]


def _refused(row: Row, relative: str) -> tuple[str, str] | None:
    """Reason and detail of a rejection."""
    if row.fault:
        return "malformed row", row.fault
    if not row.path:
        return "no path", ""
    if relative == ".." or relative.startswith("../"):
        return "outside images-root", ""
    if not row.captions and not row.labels:
        return "no text", "neither caption nor label"
    split = row.values["split"]
    if split and not _SPLIT.fullmatch(split):
        return "bad split", f"{split!r} cannot be the name of a folder (letters, digits, _, + and -)"
    return None


@dataclass
class Census:
    """What a pass over the rows found: everything but the images.

    Attributes:
        rows: read.
        rejections: of rows, by the table alone.
        split_rows: rows per split whose images are to be opened.
        licences: per split and dataset.
        divided: groups that occur in several splits, and the first row that divides one.
        unknown_modality: rows without one.
    """

    rows: int
    rejections: list[Rejection]
    split_rows: dict[str, int]
    licences: dict[str, dict[str, set[str]]]
    divided: int
    first_divided_row: int | None
    unknown_modality: int


def take_census(plan: RowPlan) -> Census:
    """Count everything that decides how splits are written.

    Raises:
        ValueError: more splits than anybody has; see also `read_rows`.
    """
    census = Census(0, [], {}, {}, 0, None, 0)
    split_of: dict[str, str | None] = {}  # None: already counted as divided
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
        if split_of.setdefault(result.group, result.split) not in (result.split, None):
            split_of[result.group] = None
            census.divided += 1
            census.first_divided_row = census.first_divided_row or result.row
    return census


__all__ = ["Census", "Rejection", "RowPlan", "TableConfig", "Task", "take_census"]
