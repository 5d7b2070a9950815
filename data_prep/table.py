"""Tables of image paths with captions or labels: a source of shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clip_med.config import config, nearest
from data_prep.files import inside
from data_prep.manifest import COLUMN_NAMES, SEVERAL, Row, read_rows
from data_prep.pixels import clean_image
from data_prep.record import Record, Rejection, ShardSettings, Task
from data_prep.writing import RejectedRowError, WriteReport, source_to_shards


@config
class TableConfig(ShardSettings):
    """How a table becomes shards."""

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Field (path, caption, label, modality, dataset, split, group, licence, view, study) to column; caption and
    label may have several. Columns with usual names are found without."""
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


@dataclass(frozen=True)
class TableSource:
    """The rows of one table, with images below one folder."""

    manifest: Path
    images_root: Path
    settings: TableConfig
    kind: str = "table"
    name: str = "table"
    cheap: bool = True

    def digest(self) -> str:
        """Of the bytes of the table."""
        with self.manifest.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def records(self) -> Iterator[Record | Rejection]:
        """A record per row that names an image below the folder."""
        root = os.path.abspath(self.images_root)
        for row in read_rows(self.manifest, self.settings.columns, self.settings.label_separator):
            relative = os.path.relpath(os.path.join(root, row.path), root)
            refused = _refused(row, relative)
            if refused is not None:
                yield Rejection(row=row.number, path=row.path, reason=refused[0], detail=refused[1])
                continue
            yield Record(
                row=row.number,
                path=row.path,
                where={"relative": relative},
                identity=relative,
                captions=row.captions,
                caption_kinds=row.caption_kinds,
                labels=row.labels,
                modality=row.values["modality"],
                dataset=row.values["dataset"],
                group=row.values["group"],
                split=row.values["split"],
                view=row.values["view"],
                study=row.values["study"],
                licence=row.values["licence"],
            )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """The image file of a row."""
        relative = str(task.where["relative"])
        data = inside(self.images_root, relative, named="images-root").read_bytes()
        return clean_image(data, source=relative, max_side=self.settings.max_side)


def _refused(row: Row, relative: str) -> tuple[str, str] | None:
    """Reason and detail of a rejection."""
    if row.fault:
        return "malformed row", row.fault
    if not row.path:
        return "no path", ""
    if relative == ".." or relative.startswith("../"):
        return "outside images-root", ""
    return None


def table_to_shards(
    manifest: Path,
    images_root: Path,
    out: Path,
    settings: TableConfig,
    *,
    secret_file: Path | None = None,
    workers: int = 0,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> WriteReport:
    """Write the shards of a table; see `source_to_shards`.

    Raises:
        ValueError: no such folder of images, or columns that do not fit.
        RejectedRowError: with `strict`, rows that cannot be used.
    """
    if not images_root.is_dir():
        raise ValueError(f"--images-root {images_root}: no such folder")
    return source_to_shards(
        TableSource(manifest, images_root, settings),
        out,
        secret_file=secret_file,
        workers=workers,
        strict=strict,
        on_progress=on_progress,
    )


__all__ = ["RejectedRowError", "TableConfig", "TableSource", "table_to_shards"]
