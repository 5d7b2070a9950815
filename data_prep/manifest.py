"""Tables of images in: the rows of a CSV, TSV, JSONL or Parquet file, and which column means what."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from clip_med.config import config, nearest
from clip_med.data.sample import CAPTION_KINDS
from data_prep.metadata_words import FACTS
from data_prep.record import ShardSettings

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


@config
class ColumnConfig(ShardSettings):
    """How the columns of a table become the fields of samples."""

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Field (path, caption, label, modality, dataset, split, group, licence, view, study; absent, age, sex, site,
    sequence and window for captions) to column; caption, label and absent may have several. Columns with usual names
    are found without."""
    label_separator: str = "|"

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


class RowError(ValueError):
    """One row that cannot be read, in a table whose other rows can."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table; absent values are empty strings.

    Attributes:
        number: counts from 1, without the header.
        caption_kinds: of each caption, the name of its column if that is one of `CAPTION_KINDS`, else "other".
        absent: findings that are known not to be there.
        values: the remaining fields of `COLUMN_NAMES`.
        fault: why the row cannot be read; its other attributes are then empty.
    """

    number: int
    path: str = ""
    captions: tuple[str, ...] = ()
    caption_kinds: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict[str, str])
    fault: str = ""

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
    present: Sequence[str], chosen: Mapping[str, Sequence[str]], manifest: Path
) -> dict[str, tuple[str, ...]]:
    """Field to columns: those named by the user, else the one with a usual name (in any case).

    Raises:
        ValueError: a named column that is not there, two with usual names for one field, no column with paths, or
            neither captions nor labels.

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
    if not columns.keys() & {"caption", "label"}:
        raise ValueError(
            f"{manifest}: neither a caption nor a label column; name one with --caption-column or --label-column "
            f"(columns: {', '.join(present)})"
        )
    return columns


def read_rows(manifest: Path, chosen: Mapping[str, Sequence[str]], label_separator: str) -> Iterator[Row]:
    """The rows of a table, in order and one at a time; the kind of file is told by its ending.

    A caption cell may hold a JSON list of strings; a label cell several labels with `label_separator` between them.
    A row that cannot be read (too few cells, broken JSON, bytes that are not UTF-8) comes with its `fault`.

    Raises:
        ValueError: another ending, a file that is damaged as a whole, no rows, or columns that are not there.
    """
    match manifest.suffix.lower():
        case ".csv" | ".tsv":
            present, records = _delimited(manifest)
        case ".jsonl":
            present, records = _jsonl(manifest)
        case ".parquet":
            present, records = _parquet(manifest)
        case other:
            raise ValueError(f"{manifest}: unknown kind of table {other!r}; expected .csv, .tsv, .jsonl or .parquet")
    columns = choose_columns(present, chosen, manifest)
    number = 0
    for number, record in enumerate(records, start=1):
        try:
            if isinstance(record, RowError):
                raise record
            yield row_of(number, record, columns, label_separator)
        except RowError as error:
            yield Row(number=number, fault=str(error))
    if not number:
        raise ValueError(f"{manifest}: has no rows")


_Record = Mapping[str, Any] | RowError


def row_of(number: int, record: Mapping[str, Any], columns: Mapping[str, Sequence[str]], separator: str) -> Row:
    """A row from the cells of a record by column.

    Raises:
        RowError: a cell of a type that has no text, or several values where there can be one.
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


def _distinct(texts: list[str]) -> tuple[str, ...]:
    """Without empty and repeated ones; white space (the line breaks of reports too) becomes single spaces."""
    return tuple(dict.fromkeys(clean for text in texts if (clean := " ".join(text.split()))))


def _texts(column: str, cell: Any, name: str) -> list[str]:
    """The texts of a cell: one, or those of a list (of JSONL, of Parquet, or written as JSON in a caption cell)."""
    if name == "caption" and isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            parsed = json.loads(cell)
        except (json.JSONDecodeError, RecursionError):
            parsed = None  # a report may begin with a bracket
        if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
            return parsed
    items = cell if isinstance(cell, list) else [cell]
    for item in items:
        if not isinstance(item, str | int | float | None):
            raise RowError(f"column {column!r}: expected text, got {type(item).__name__}")
    # NaN is what pandas writes for nothing.
    return [str(item) for item in items if item is not None and item == item]


def _delimited(manifest: Path) -> tuple[Sequence[str], Iterator[_Record]]:
    # Radiology reports can be longer than Python's default limit of 131,072 characters per cell.
    csv.field_size_limit(100_000_000)
    # utf-8-sig: Excel begins its files with a byte-order mark, which would become part of the first column's name.
    # surrogateescape: a byte that is not UTF-8 then costs its row, not the table.
    with manifest.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        header = file.readline()
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    if delimiter == "," and "," not in header and ";" in header:
        delimiter = ";"  # how spreadsheets write CSV where the comma is the decimal sign
    names = next(csv.reader([header], delimiter=delimiter), [])
    if len(set(names)) != len(names):
        raise ValueError(f"{manifest}: two columns have one name: {', '.join(names)}")
    return names, _delimited_records(manifest, delimiter, len(names))


def _delimited_records(manifest: Path, delimiter: str, cells: int) -> Iterator[_Record]:
    with manifest.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        while True:
            first_line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    # Whatever follows that quote has been swallowed: nobody knows how many rows.
                    raise ValueError(f'{manifest}:{first_line}: a quote (") opens here and never closes') from error
                yield RowError(f"lines {first_line} to {reader.line_num}: {error}")
                continue
            if None in record or None in record.values():
                yield RowError(f"lines {first_line} to {reader.line_num}: has not the {cells} cells of the header")
            else:
                yield record


def _jsonl(manifest: Path) -> tuple[Sequence[str], Iterator[_Record]]:
    # Every object may have keys of its own, so the columns are those of all of them.
    present: dict[str, None] = {}
    for record in _jsonl_records(manifest):
        if not isinstance(record, RowError):
            present.update(dict.fromkeys(record))
    return list(present), _jsonl_records(manifest)


def _jsonl_records(manifest: Path) -> Iterator[_Record]:
    with manifest.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield RowError(f"line {number}: damaged: {error}")
                continue
            if isinstance(record, dict):
                yield record
            else:
                yield RowError(f"line {number}: expected a JSON object, got {type(record).__name__}")


def _parquet(manifest: Path) -> tuple[Sequence[str], Iterator[_Record]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(f"{manifest}: Parquet needs the extra: pip install 'clip-med[parquet]'") from error

    def records() -> Iterator[_Record]:
        try:
            with parquet.ParquetFile(manifest) as file:
                for batch in file.iter_batches(batch_size=4096):
                    yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise ValueError(f"{manifest}: damaged: {error}") from error

    try:
        return list(parquet.read_schema(manifest).names), records()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{manifest}: damaged: {error}") from error


__all__ = ["COLUMN_NAMES", "SEVERAL", "ColumnConfig", "Row", "RowError", "choose_columns", "read_rows", "row_of"]
