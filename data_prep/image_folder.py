"""A folder of images in folders named after their class: a source of shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clip_med.config import config
from data_prep.files import digest_of_listing, image_bytes, walk_files
from data_prep.group_pattern import check_group_pattern, group_in
from data_prep.pixels import clean_image
from data_prep.record import SPLIT_NAMES, Record, Rejection, ShardSettings, Task

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm", ".jp2")
# What folders of splits are called.
SPLIT_FOLDERS: Final = {
    **{name: name for name in SPLIT_NAMES},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "testing": "test",
}


@config
class ImageFolderConfig(ShardSettings):
    """How a folder of images becomes shards."""

    group_pattern: str = ""
    """Regular expression with one group that finds the patient in a relative path; empty: every image is its own."""

    def __post_init__(self) -> None:
        """Refuse a pattern that is none or has not one group."""
        super().__post_init__()
        check_group_pattern(self.group_pattern)


@dataclass(frozen=True)
class ImageFolderSource:
    """`CLASS/.../image` or `SPLIT/CLASS/.../image` below a folder; underscores of class names become spaces."""

    root: Path
    settings: ImageFolderConfig
    kind: str = "folder"
    name: str = "folder"
    cheap: bool = False

    def digest(self) -> str:
        """Of the names and sizes of all files."""
        return digest_of_listing(self.root, walk_files(self.root))

    def records(self) -> Iterator[Record | Rejection]:
        """A record per image, in the order of the paths."""
        for row, relative in enumerate(walk_files(self.root), start=1):
            # Not pathlib, which interns every name: a table of megabytes for many files.
            *folders, file = relative.split(os.sep)
            suffix = os.path.splitext(file)[1]
            split = SPLIT_FOLDERS.get(folders[0].lower(), "") if folders else ""
            folders = folders[1:] if split else folders
            group = group_in(relative, self.settings.group_pattern)
            if not file:
                yield Rejection(row=row, path=relative, reason="link to a folder")
            elif suffix.lower() not in IMAGE_SUFFIXES:
                yield Rejection(row=row, path=relative, reason="not an image", detail=suffix)
            elif not folders:
                yield Rejection(row=row, path=relative, reason="no class", detail="lies in no folder of a class")
            elif group is None:
                yield Rejection(row=row, path=relative, reason="no group", detail="group_pattern does not match")
            else:
                yield Record(
                    row=row,
                    path=relative,
                    identity=relative,
                    labels=(plain_class(folders[0]),),
                    group=group,
                    split=split,
                )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """The image file."""
        data = image_bytes(self.root, task.path, named="the folder")
        return clean_image(data, source=task.path, max_side=self.settings.max_side)


def plain_class(name: str) -> str:
    """The name of a class as it stands in a sentence.

    Example:
        >>> plain_class("benign_cyst ")
        'benign cyst'
    """
    return " ".join(name.replace("_", " ").split())


__all__ = ["IMAGE_SUFFIXES", "SPLIT_FOLDERS", "ImageFolderConfig", "ImageFolderSource", "plain_class"]
