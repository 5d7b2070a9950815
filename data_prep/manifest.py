"""Tables of images in: CSV, TSV, JSONL or Parquet rows, and which column means what."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clip_med.config import nearest

# Accepted names per field, the first that is present is taken.
COLUMN_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "path": ("path", "image", "file", "filename", "image_path", "filepath"),
    "caption": ("caption", "captions", "text", "report"),
    "label": ("label", "labels", "class"),
    "modality": ("modality",),
    "dataset": ("dataset", "source"),
    "split": ("split",),
    "group": ("group", "patient_id", "subject_id", "case_id", "patient"),
    "licence": ("licence", "license"),
    "view": ("view",),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: `number` counts from 1 without the header; absent values are empty strings."""

    number: int
    path: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    values: Mapping[str, str]


def choose_columns(present: Sequence[str], chosen: Mapping[str, str], manifest: Path) -> dict[str, str]:
    """Field to column: the columns named by the user, else those with a usual name (in any case).

    Raises:
        ValueError: a named column that is not there, or no column with paths, or neither captions nor labels.
    """
    lower = {name.lower(): name for name in present}
    columns: dict[str, str] = {}
    for field, names in COLUMN_NAMES.items():
        if field in chosen:
            if chosen[field] not in present:
                raise ValueError(
                    f"{manifest}: no column {chosen[field]!r} for {field}; {nearest(chosen[field], present)}"
                )
            columns[field] = chosen[field]
        else:
            found = [lower[name] for name in names if name in lower]
            if found:
                columns[field] = found[0]
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


def read_rows(manifest: Path, chosen: Mapping[str, str], label_separator: str) -> Iterator[Row]:
    """The rows of a table, in order; the kind of file is told by its ending.

    A caption cell may hold a JSON list of strings; a label cell several labels with `label_separator` between them.

    Raises:
        ValueError: another ending, a damaged file (naming the line), or columns that are not there.
    """
    columns: dict[str, str] | None = None
    for number, record in enumerate(_records(manifest), start=1):
        if columns is None:
            columns = choose_columns(list(record), chosen, manifest)
        yield _row(number, record, columns, label_separator)
    if columns is None:
        raise ValueError(f"{manifest}: has no rows")


def _row(number: int, record: Mapping[str, Any], columns: Mapping[str, str], separator: str) -> Row:
    def cell(field: str) -> Any:
        value = record.get(columns[field]) if field in columns else None
        return "" if value is None or value != value else value  # NaN is what pandas writes for nothing

    labels = cell("label")
    parts = labels if isinstance(labels, list) else str(labels).split(separator)
    return Row(
        number=number,
        path=str(cell("path")).strip(),
        captions=_captions(cell("caption")),
        labels=tuple(dict.fromkeys(text for part in parts if (text := str(part).strip()))),
        values={field: str(cell(field)).strip() for field in COLUMN_NAMES if field not in ("path", "caption", "label")},
    )


def _captions(cell: Any) -> tuple[str, ...]:
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            parsed = json.loads(cell)
        except json.JSONDecodeError:
            parsed = cell  # a report may begin with a bracket
        cell = parsed
    items = cell if isinstance(cell, list) else [cell]
    return tuple(dict.fromkeys(text for item in items if (text := " ".join(str(item).split()))))


def _records(manifest: Path) -> Iterator[Mapping[str, Any]]:
    match manifest.suffix.lower():
        case ".csv" | ".tsv":
            yield from _delimited(manifest, "," if manifest.suffix.lower() == ".csv" else "\t")
        case ".jsonl":
            yield from _jsonl(manifest)
        case ".parquet":
            yield from _parquet(manifest)
        case other:
            raise ValueError(f"{manifest}: unknown kind of table {other!r}; expected .csv, .tsv, .jsonl or .parquet")


def _delimited(manifest: Path, delimiter: str) -> Iterator[Mapping[str, Any]]:
    # Radiology reports can be longer than Python's default limit of 131,072 characters per cell.
    csv.field_size_limit(100_000_000)
    # utf-8-sig: Excel begins its files with a byte-order mark, which would become part of the first column's name.
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        names = reader.fieldnames or []
        if len(set(names)) != len(names):
            raise ValueError(f"{manifest}: two columns have one name: {', '.join(names)}")
        try:
            for record in reader:
                if None in record or None in record.values():
                    raise ValueError(f"{manifest}:{reader.line_num}: has not the {len(names)} cells of the header")
                yield record
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{manifest}:{reader.line_num}: damaged: {error}") from error


def _jsonl(manifest: Path) -> Iterator[Mapping[str, Any]]:
    with manifest.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{manifest}:{number}: damaged: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{manifest}:{number}: expected a JSON object, got {type(record).__name__}")
            yield record


def _parquet(manifest: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(f"{manifest}: Parquet needs the extra: pip install 'clip-med[parquet]'") from error
    try:
        for batch in parquet.ParquetFile(manifest).iter_batches(batch_size=4096):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{manifest}: damaged: {error}") from error


__all__ = ["COLUMN_NAMES", "Row", "choose_columns", "read_rows"]
