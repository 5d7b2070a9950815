"""Tables of image paths with captions or labels: a source of shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clip_med.config import config
from clip_med.data.shard_index import sha256_of
from data_prep.files import image_bytes
from data_prep.group_pattern import check_group_pattern, group_in
from data_prep.manifest import ColumnConfig, Row, read_rows
from data_prep.pixels import clean_image
from data_prep.record import Record, Rejection, Task
from data_prep.writing import RejectedRowError, WriteReport, source_to_shards


@config
class TableConfig(ColumnConfig):
    """How a table becomes shards."""

    path_suffix: str = ""
    """Added to every path: some tables name images without their ending."""
    group_pattern: str = ""
    """Regular expression with one group that finds the patient or article in a path, for rows that name no group."""

    def __post_init__(self) -> None:
        """Refuse what would fail at the first row."""
        super().__post_init__()
        check_group_pattern(self.group_pattern)


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
        return sha256_of(self.manifest)

    def records(self) -> Iterator[Record | Rejection]:
        """A record per row that names an image below the folder."""
        root = os.path.abspath(self.images_root)
        for row in read_rows(
            self.manifest, self.settings.columns, self.settings.label_separator, self.settings.findings
        ):
            relative = os.path.relpath(os.path.join(root, row.path + self.settings.path_suffix), root)
            refused = _refused(row, relative)
            group = row.values.get("group") or group_in(row.path, self.settings.group_pattern)
            if refused is None and group is None:
                refused = ("no group", "group_pattern does not match")
            if refused is not None:
                yield Rejection(row=row.number, path=row.path, reason=refused[0], detail=refused[1])
                continue
            yield Record(
                row=row.number,
                path=row.path,
                where={"relative": relative},
                identity=relative,
                **{**row.record_fields(), "group": group or ""},
            )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """The image file of a row."""
        relative = str(task.where["relative"])
        data = image_bytes(self.images_root, relative, named="images-root")
        return clean_image(data, source=relative, max_side=self.settings.max_side)


def _refused(row: Row, relative: str) -> tuple[str, str] | None:
    """Reason and detail of a rejection."""
    if row.fault:
        return row.reason, row.fault
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
