"""Tables of images: which column means what, and what a row says of its image."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from clip_med.config import config, nearest
from clip_med.data.sample import CAPTION_KINDS
from data_prep.finding_columns import FindingColumns, stated
from data_prep.metadata_words import FACTS
from data_prep.record import ShardSettings
from data_prep.table_files import RowError, table_records

# Usual names per field, in lower case.
COLUMN_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "path": ("path", "image", "file", "filename", "file_name", "image_path", "filepath"),
    "caption": ("caption", "captions", "text", "report"),
    "label": ("label", "labels", "class"),
    "modality": ("modality",),
    "dataset": ("dataset", "source"),
    "split": ("split",),
    "group": ("group", "patient_id", "subject_id", "case_id", "patient"),
    "licence": ("licence", "license"),
    "view": ("view",),
    "study": ("study", "study_id"),
    "absent": ("absent", "negative_labels"),
    "age": ("age", "patient_age"),
    "sex": ("sex", "gender"),
    # Not "site", which is as often a hospital.
    "site": ("body_part", "anatomy", "localization", "localisation"),
    "sequence": ("sequence", "mri_sequence"),
    "window": ("window",),
}
# Fields that may come from several columns, which are joined in the given order.
SEVERAL: Final = ("caption", "label", "absent")
# A longer cell is a text, whatever it begins with.
_LONGEST_LIST: Final = 100_000
_NONE: Final = FindingColumns()


@config
class ColumnConfig(ShardSettings):
    """How the columns of a table become the fields of samples."""

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Field (path, caption, label, modality, dataset, split, group, licence, view, study; absent, age, sex, site,
    sequence and window for captions) to column; caption, label and absent may have several. Columns with usual names
    are found without."""
    label_separator: str = "|"
    findings: FindingColumns = FindingColumns()
    """Columns that are findings themselves, which state their labels beside those of `label`."""

    def __post_init__(self) -> None:
        """Refuse what would fail at the first row."""
        super().__post_init__()
        if not self.label_separator:
            raise ValueError("label_separator must not be empty")
        for name, chosen in self.columns.items():
            if name not in COLUMN_NAMES:
                raise ValueError(f"columns: unknown field {name!r}; {nearest(name, COLUMN_NAMES)}")
            if len(chosen) != 1 and (name not in SEVERAL or not chosen):
                raise ValueError(f"columns: {name} must have one column, got {len(chosen)}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table; absent values are empty strings.

    Attributes:
        number: counts from 1, without the header.
        caption_kinds: of each caption, the name of its column if that is one of `CAPTION_KINDS`, else "other".
        absent: findings that are known not to be there.
        values: the remaining fields of `COLUMN_NAMES`.
        fault: why the row cannot be used; its other attributes are then empty. `reason`: the same as a fixed word.
    """

    number: int
    path: str = ""
    captions: tuple[str, ...] = ()
    caption_kinds: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict[str, str])
    fault: str = ""
    reason: str = ""

    def record_fields(self) -> dict[str, Any]:
        """Everything that a record takes from a row, by name; its path and place are the source's to say."""
        return {
            "captions": self.captions,
            "caption_kinds": self.caption_kinds,
            "labels": self.labels,
            "absent": self.absent,
            "facts": {name: text for name, text in self.values.items() if name in FACTS and text},
            **{name: text for name, text in self.values.items() if name not in FACTS},
        }


def choose_columns(
    present: Sequence[str],
    chosen: Mapping[str, Sequence[str]],
    manifest: Path,
    findings: FindingColumns = _NONE,
) -> dict[str, tuple[str, ...]]:
    """Field to columns: those named by the user, else the one with a usual name (in any case).

    Raises:
        ValueError: a named column that is not there, two with usual names for one field, no column with paths, or
            neither captions nor labels nor findings.

    Example:
        >>> choose_columns(["Image", "report"], {}, Path("a.csv"))
        {'path': ('Image',), 'caption': ('report',)}
    """
    columns: dict[str, tuple[str, ...]] = {}
    for name, usual in COLUMN_NAMES.items():
        if name in chosen:
            for column in chosen[name]:
                if column not in present:
                    raise ValueError(f"{manifest}: no column {column!r} for {name}; {nearest(column, present)}")
            columns[name] = tuple(chosen[name])
            continue
        found = [column for column in present if column.lower() in usual]
        if len(found) > 1:
            raise ValueError(
                f"{manifest}: {' and '.join(map(repr, found))} could each be the {name}; choose with --{name}-column "
                f"(columns: {', '.join(present)})"
            )
        if found:
            columns[name] = (found[0],)
    if "path" not in columns:
        raise ValueError(
            f"{manifest}: no column of image paths; name it with --path-column (columns: {', '.join(present)})"
        )
    for column in findings.columns:
        if column not in present:
            raise ValueError(f"{manifest}: no column {column!r} of a finding; {nearest(column, present)}")
    if not findings.columns and not columns.keys() & {"caption", "label"}:
        raise ValueError(
            f"{manifest}: neither a caption nor a label column; name one with --caption-column or --label-column "
            f"(columns: {', '.join(present)})"
        )
    return columns


def read_rows(
    manifest: Path,
    chosen: Mapping[str, Sequence[str]],
    label_separator: str,
    findings: FindingColumns = _NONE,
) -> Iterator[Row]:
    """The rows of a table, in order and one at a time; the kind of file is told by its ending.

    A cell of captions or labels may hold a list of strings, written as JSON or as Python writes it; a label cell
    several labels with `label_separator` between them. A row that cannot be read (too few cells, broken JSON, bytes
    that are not UTF-8) comes with its `fault`.

    Raises:
        ValueError: another ending, a file that is damaged as a whole, no rows, or columns that are not there.
    """
    present, records = table_records(manifest)
    columns = choose_columns(present, chosen, manifest, findings)
    number = 0
    for number, record in enumerate(records, start=1):
        if isinstance(record, RowError):
            yield Row(number=number, fault=str(record), reason=record.reason)
            continue
        try:
            yield row_of(number, record, columns, label_separator, findings)
        except RowError as error:
            yield Row(number=number, path=_path_as_written(record, columns), fault=str(error), reason=error.reason)
    if not number:
        raise ValueError(f"{manifest}: has no rows")


def _path_as_written(record: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> str:
    """For the list of rejected rows, also where other cells of the row cannot be used."""
    cells = (record.get(column) for column in columns.get("path", ()))
    return next((cell.strip().encode(errors="replace").decode() for cell in cells if isinstance(cell, str)), "")


def row_of(
    number: int,
    record: Mapping[str, Any],
    columns: Mapping[str, Sequence[str]],
    separator: str,
    findings: FindingColumns = _NONE,
) -> Row:
    """A row from the cells of a record by column.

    Raises:
        RowError: a cell of a type that has no text, several values where there can be one, or an uncertain finding
            where those are to be rejected.
    """

    def texts(name: str) -> list[str]:
        return [text for column in columns.get(name, ()) for text in _texts(column, record.get(column), name)]

    def single(name: str) -> str:
        found = texts(name)
        if len(found) > 1:
            raise RowError(f"{name}: expected one value, got a list of {len(found)}")
        return found[0].strip() if found else ""

    labels, absent = (
        _distinct([part for text in texts(name) for part in text.split(separator)]) for name in ("label", "absent")
    )
    labels, absent = _with_findings(record, findings, labels, absent)
    captions: dict[str, str] = {}
    for column in columns.get("caption", ()):
        kind = column.strip().lower()
        for text in _distinct(_texts(column, record.get(column), "caption")):
            captions.setdefault(text, kind if kind in CAPTION_KINDS else "other")
    row = Row(
        number=number,
        path=single("path"),
        captions=tuple(captions),
        caption_kinds=tuple(captions.values()),
        labels=labels,
        absent=absent,
        values={name: single(name) for name in COLUMN_NAMES if name != "path" and name not in SEVERAL},
    )
    try:
        "".join((row.path, *row.captions, *row.labels, *row.absent, *row.values.values())).encode()
    except UnicodeEncodeError as error:
        raise RowError("holds bytes or escapes that are not UTF-8") from error
    return row


def _with_findings(
    record: Mapping[str, Any], findings: FindingColumns, labels: tuple[str, ...], absent: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels, and what is known to be absent, with what the columns of findings say."""
    if not findings.columns:
        return labels, absent
    try:
        found = stated(record, findings.columns)
    except ValueError as error:
        raise RowError(str(error)) from error
    if found.uncertain and findings.uncertain == "reject":
        raise RowError(", ".join(found.uncertain), reason="uncertain finding")
    taken = found.uncertain if findings.uncertain == "present" else ()
    present = [column for column in findings.columns if column in (*found.present, *taken)]
    named = _distinct([*labels, *present]) or (findings.negative,)
    return named, _distinct([*absent, *found.absent])


def _distinct(texts: list[str]) -> tuple[str, ...]:
    """Without empty and repeated ones; white space (the line breaks of reports too) becomes single spaces."""
    return tuple(dict.fromkeys(clean for text in texts if (clean := " ".join(text.split()))))


def _texts(column: str, cell: Any, name: str) -> list[str]:
    """The texts of a cell: one, or those of a list (of JSONL, of Parquet, or written in one that can have several)."""
    if name in SEVERAL and isinstance(cell, str) and (written := _written_list(column, cell)) is not None:
        return written
    items = cell if isinstance(cell, list) else [cell]
    for item in items:
        if not isinstance(item, str | int | float | None):
            raise RowError(f"column {column!r}: expected text, got {type(item).__name__}")
    # NaN is what pandas writes for nothing.
    return [str(item) for item in items if item is not None and item == item]


def _written_list(column: str, cell: str) -> list[str] | None:
    """Strings of a list written as JSON, or as pandas writes Python's; None for other texts.

    A report may begin with a bracket.

    Raises:
        RowError: strings without commas between them, as NumPy writes an array: Python would join them to one.
    """
    if not (cell.lstrip().startswith("[") and cell.rstrip().endswith("]") and len(cell) <= _LONGEST_LIST):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
            if parse is ast.literal_eval and _strings_in(cell) != len(parsed):
                raise RowError(f"column {column!r}: no commas between the texts of a list: {cell.strip()[:40]}")
            return parsed
    return None


def _strings_in(code: str) -> int:
    """String literals in Python's words."""
    words = tokenize.generate_tokens(io.StringIO(code.strip()).readline)
    return sum(word.type == tokenize.STRING for word in words)


__all__ = ["COLUMN_NAMES", "SEVERAL", "ColumnConfig", "Row", "choose_columns", "read_rows", "row_of"]
