"""Files that hold tables, CSV, TSV, JSONL and Parquet, as records of cells by column."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


class RowError(ValueError):
    """One row that cannot be used, in a table whose other rows can; `reason` is a fixed word."""

    def __init__(self, detail: str, *, reason: str = "malformed row") -> None:
        super().__init__(detail)
        self.reason = reason


_Record = Mapping[str, Any] | RowError


def table_records(manifest: Path) -> tuple[Sequence[str], Iterator[_Record]]:
    """The columns of a table, and its rows one at a time; a row that cannot be read is its error.

    Raises:
        ValueError: another ending, or a file that is damaged as a whole.
    """
    match manifest.suffix.lower():
        case ".csv" | ".tsv":
            return _delimited(manifest)
        case ".jsonl":
            return _jsonl(manifest)
        case ".parquet":
            return _parquet(manifest)
        case other:
            raise ValueError(f"{manifest}: unknown kind of table {other!r}; expected .csv, .tsv, .jsonl or .parquet")


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


__all__ = ["RowError", "table_records"]
