"""Few-shot splits in the form of CoOp: JSON lists of [path, label, class name] by split. A source of shards.

`split_zhou_X.json` (Zhou et al., Learning to Prompt for Vision-Language Models, 2022, and data sets that follow it).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clip_med.config import config
from clip_med.data.shard_index import sha256_of
from data_prep.files import image_bytes
from data_prep.group_pattern import check_group_pattern, group_in
from data_prep.image_folder import plain_class
from data_prep.pixels import clean_image
from data_prep.record import SPLIT_NAMES, Record, Rejection, ShardSettings, Task

# Two million entries of a hundred characters.
_MOST_BYTES: Final = 200_000_000


@config
class FewShotConfig(ShardSettings):
    """How a few-shot split becomes shards."""

    group_pattern: str = ""
    """Regular expression with one group that finds the patient in a path; empty: every image is its own."""

    def __post_init__(self) -> None:
        """Refuse a pattern that is none or has not one group."""
        super().__post_init__()
        check_group_pattern(self.group_pattern)


@dataclass(frozen=True)
class FewShotSource:
    """The entries of one file in the order of train, val and test, with images below one folder."""

    file: Path
    images_root: Path
    settings: FewShotConfig
    kind: str = "few-shot"
    name: str = "few-shot"
    cheap: bool = True

    def digest(self) -> str:
        """Of the bytes of the file."""
        return sha256_of(self.file)

    def records(self) -> Iterator[Record | Rejection]:
        """A record per entry; underscores of class names become spaces.

        Raises:
            ValueError: not such a file, or a label number with two class names.
        """
        root = os.path.abspath(self.images_root)
        names: dict[int, str] = {}
        row = 0
        for split, entries in _splits(self.file).items():
            for place, entry in enumerate(entries):
                row += 1
                path, number, name = _entry(entry, f"{self.file}: {split}[{place}]")
                if names.setdefault(number, name) != name:
                    raise ValueError(
                        f"{self.file}: {split}[{place}]: label {number} is {name!r} and was {names[number]!r} before"
                    )
                relative = os.path.relpath(os.path.join(root, path), root)
                group = group_in(path, self.settings.group_pattern)
                if relative == ".." or relative.startswith("../"):
                    yield Rejection(row=row, path=path, reason="outside images-root")
                elif group is None:
                    yield Rejection(row=row, path=path, reason="no group", detail="group_pattern does not match")
                else:
                    yield Record(
                        row=row, path=path, identity=relative, labels=(plain_class(name),), group=group, split=split
                    )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """The image file of an entry."""
        data = image_bytes(self.images_root, task.path, named="images-root")
        return clean_image(data, source=task.path, max_side=self.settings.max_side)


def _splits(file: Path) -> dict[str, list[Any]]:
    """The entries of each split.

    Raises:
        ValueError: too large, damaged, or of another form.
    """
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file}: larger than {_MOST_BYTES:,} bytes; not a few-shot split")
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict) or not document or document.keys() - set(SPLIT_NAMES):
        found = list(document)[:5] if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"{file}: expected an object with lists for train, val and test, got {found}")
    for split, entries in document.items():
        if not isinstance(entries, list):
            raise ValueError(f"{file}: {split}: expected a list, got {type(entries).__name__}")
    return {split: document[split] for split in SPLIT_NAMES if split in document}


def _entry(entry: Any, where: str) -> tuple[str, int, str]:
    match entry:
        case [str(path), int(number), str(name)] if path and name.strip() and not isinstance(number, bool):
            return path, number, name
        case _:
            raise ValueError(f"{where}: expected [path, label number, class name], got {str(entry)[:100]}")


__all__ = ["FewShotConfig", "FewShotSource"]
