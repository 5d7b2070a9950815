"""Data sets in the form of Hugging Face: Parquet or Arrow files with images in them. A source of shards.

An image column holds {bytes, path}. Class labels are numbers; their names stand in the metadata "huggingface" of the
schema. Splits come from folder or file names: `data/train-00000-of-00002.parquet`, `test/data-00000-of-00001.arrow`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow
from pyarrow import ipc, parquet

from clip_med.config import config
from data_prep.files import MAX_IMAGE_BYTES, check_size, digest_of_listing, inside, walk_files
from data_prep.image_folder import SPLIT_FOLDERS
from data_prep.manifest import ColumnConfig, choose_columns, row_of
from data_prep.pixels import clean_image
from data_prep.record import Record, RejectedImageError, Rejection, Task, rejection_of
from data_prep.table_files import RowError

_SUFFIXES: Final = (".parquet", ".arrow")
# A row group is read whole; writers make them of some hundred megabytes.
_MOST_OF_GROUP: Final = 2 * 1024**3
# What lies beside the data and says what they are.
_DESCRIPTIONS: Final = ("README.md", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


@config
class EmbeddedConfig(ColumnConfig):
    """How files with embedded images become shards; the column `path` is that of the images."""


@dataclass(frozen=True)
class EmbeddedSource:
    """The rows of every Parquet or Arrow file below a folder, in the order of the paths."""

    root: Path
    settings: EmbeddedConfig
    kind: str = "huggingface"
    name: str = "huggingface"
    cheap: bool = True

    def digest(self) -> str:
        """Of the names and sizes of all files."""
        return digest_of_listing(self.root, walk_files(self.root))

    def records(self) -> Iterator[Record | Rejection]:
        """A record per row; images are not read. A file that is damaged, or no such file, costs itself only.

        Raises:
            ValueError: no row in any file below the folder, or columns that do not fit.
        """
        number, rows = 0, False
        for relative in walk_files(self.root):
            if _describes(relative):
                continue
            try:
                for record in self._records(relative, number):
                    number, rows = number + 1, True
                    yield record
            except (RejectedImageError, OSError) as error:
                number += 1
                yield rejection_of(error, row=number, path=relative)
        if not rows:
            raise ValueError(f"{self.root}: holds no row in any {' or '.join(_SUFFIXES)} file that can be read")

    def _records(self, relative: str, before: int) -> Iterator[Record | Rejection]:
        """The rows of one file; so many rows have come before it."""
        file = inside(self.root, relative, named="the folder")
        if not relative.endswith(_SUFFIXES):
            raise RejectedImageError("not a table", f"expected {' or '.join(_SUFFIXES)}")
        split, rows = _split_of(relative), _rows(file, self.settings)
        for number, (where, record, columns) in enumerate(rows, start=before + 1):
            try:
                row = row_of(number, record, columns, self.settings.label_separator, self.settings.findings)
            except RowError as error:
                yield Rejection(row=number, path=relative, reason=error.reason, detail=str(error))
                continue
            place = f"{relative}#{where['chunk']}.{where['index']}"
            yield Record(
                row=number,
                path=place,
                identity=place,
                where={"file": relative, **where},
                **{**row.record_fields(), "split": row.values["split"] or split},
            )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """The image of a row; the images of one row group are in memory together."""
        where = task.where
        file = inside(self.root, str(where["file"]), named="the folder")
        cell: Any = _images(file, str(where["column"]), int(where["chunk"]))[int(where["index"])].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise RejectedImageError("no image in the row", "expected bytes; images in files of their own are a table")
        check_size(len(data), MAX_IMAGE_BYTES)
        return clean_image(data, source=task.path, max_side=self.settings.max_side)


def _describes(relative: str) -> bool:
    """Whether it is a file of the format that holds no data; programs keep theirs under names with a dot first."""
    parts = PurePosixPath(relative).parts
    return parts[-1] in _DESCRIPTIONS or any(part.startswith(".") for part in parts)


def _split_of(relative: str) -> str:
    """The split that a folder or the beginning of a file's name says; "" if none does."""
    *folders, file = PurePosixPath(relative).parts
    words = [*folders, re.split(r"[-_.]", file)[0]]
    return next((SPLIT_FOLDERS[word.lower()] for word in words if word.lower() in SPLIT_FOLDERS), "")


def _rows(
    file: Path, settings: EmbeddedConfig
) -> Iterator[tuple[dict[str, str | int], dict[str, Any], Mapping[str, tuple[str, ...]]]]:
    """Of each row: where its image is, its other cells, and which column means what."""
    with _damage_named():
        schema = parquet.read_schema(file) if file.suffix == ".parquet" else ipc.open_stream(_mapped(file)).schema
        columns = choose_columns(schema.names, settings.columns, file, settings.findings)
        image = columns["path"][0]
        names = _class_names(schema)
        others = sorted({*settings.findings.columns, *(c for named in columns.values() for c in named)} - {image})
        for chunk, table in enumerate(_chunks(file, others)):
            for index, cells in enumerate(table.to_pylist()):
                for column, classes in names.items():
                    if column in cells:
                        cells[column] = _named(cells[column], classes)
                # The image has no path of its own: what stands for it is where it was found.
                yield {"column": image, "chunk": chunk, "index": index}, {**cells, image: file.name}, columns


def _chunks(file: Path, columns: list[str]) -> Iterator[Any]:
    """Row groups of Parquet, or record batches of Arrow, with some of their columns."""
    if file.suffix == ".parquet":
        with parquet.ParquetFile(file) as opened:
            for number in range(opened.metadata.num_row_groups):
                check_size(opened.metadata.row_group(number).total_byte_size, _MOST_OF_GROUP)
                yield opened.read_row_group(number, columns=columns)
    else:
        for batch in ipc.open_stream(_mapped(file)):
            yield batch.select(columns)


def _mapped(file: Path) -> Any:
    return pyarrow.memory_map(str(file))


@lru_cache(maxsize=1)
def _images(file: Path, column: str, chunk: int) -> Any:
    with _damage_named():
        if file.suffix == ".parquet":
            with parquet.ParquetFile(file) as opened:
                return opened.read_row_group(chunk, columns=[column]).column(column)
        return _batches(file)[chunk].column(column)


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except pyarrow.ArrowException as error:
        raise RejectedImageError("damaged file", str(error)) from error
    except OSError as error:
        # A page that cannot be unpacked is for pyarrow an error of the system, but one without a number.
        if error.errno is not None:
            raise
        raise RejectedImageError("damaged file", str(error)) from error


@lru_cache(maxsize=1)
def _batches(file: Path) -> list[Any]:
    """The batches of an Arrow file, which lie in it and not in memory."""
    return list(ipc.open_stream(_mapped(file)))


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Column to the names of its classes."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        named = {column: _names_in(feature) for column, feature in features.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        # Written by another program under the same name: the numbers then stay numbers.
        return {}
    return {column: names for column, names in named.items() if names}


def _names_in(feature: Any) -> list[str]:
    """Of a class label, or of a list of them."""
    inner = feature[0] if isinstance(feature, list) and feature else feature
    inner = inner.get("feature", inner) if isinstance(inner, dict) else {}
    names = inner.get("names") if inner.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _named(cell: Any, names: list[str]) -> Any:
    """A class number, or a list of them, as names with spaces for underscores; -1 stands for no label."""
    if isinstance(cell, list):
        return [name for number in cell if (name := _named(number, names)) is not None]
    if isinstance(cell, int) and 0 <= cell < len(names):
        return names[cell].replace("_", " ")
    return None


__all__ = ["EmbeddedConfig", "EmbeddedSource"]
