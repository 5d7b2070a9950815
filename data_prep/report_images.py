"""The images of studies: found by the name of a report or by their own, and what tables say of them."""

from __future__ import annotations

import bisect
import csv
import gzip
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from data_prep.files import walk_files
from data_prep.image_folder import IMAGE_SUFFIXES, SPLIT_FOLDERS

STUDY_IMAGES: Final = (*IMAGE_SUFFIXES, ".dcm")
_VIEW: Final = re.compile(r"[A-Za-z][A-Za-z -]{0,30}")


class StudyImages:
    """The images below a folder, found by the path of a report or by their own name; `others` are no images."""

    def __init__(self, root: Path) -> None:
        self._of_folder: dict[str, list[str]] = {}
        self._named: dict[str, list[str]] = {}
        self.others: list[str] = []
        for relative in walk_files(root):
            path = PurePosixPath(relative)
            if path.suffix.lower() in STUDY_IMAGES:
                self._of_folder.setdefault(str(path.parent), []).append(path.name)
                self._named.setdefault(path.stem, []).append(relative)
            else:
                self.others.append(relative)
        for names in self._of_folder.values():
            names.sort()

    def of_report(self, relative: str) -> list[str]:
        """Those in a folder of the report's name, and those beside it whose names begin with its name."""
        bare = PurePosixPath(relative).with_suffix("")
        beside = self._of_folder.get(str(bare.parent), [])
        found = [bare / name for name in self._of_folder.get(str(bare), [])]
        for name in beside[bisect.bisect_left(beside, bare.name) :]:
            if not name.startswith(bare.name):
                break
            # 17.txt has 17.png and 17_lateral.png, but not 170.png.
            if not name[len(bare.name)].isalnum():
                found.append(bare.parent / name)
        return [str(path) for path in found]

    def named(self, name: str) -> list[str]:
        """Those of that name, without ending, in any folder."""
        return self._named.get(name, [])

    def all(self) -> Iterator[str]:
        """Every path."""
        for found in self._named.values():
            yield from found


def known_of_images(tables: tuple[Path, ...]) -> dict[str, tuple[str, str]]:
    """Split and view by the name of an image.

    Raises:
        ValueError: a table without a column of images, or that cannot be read.
    """
    known: dict[str, tuple[str, str]] = {}
    for table in tables:
        try:
            with gzip.open(table, "rt", newline="") if table.suffix == ".gz" else table.open(newline="") as file:
                reader = csv.DictReader(file)
                name = next((n for n in ("dicom_id", "image") if n in (reader.fieldnames or ())), None)
                if name is None:
                    raise ValueError("expected a column dicom_id or image")
                for row in reader:
                    split, view = known.get(row[name], ("", ""))
                    said = (row.get("split") or "").strip()
                    view = (row.get("ViewPosition") or row.get("view") or view).strip()
                    known[row[name]] = (SPLIT_FOLDERS.get(said.lower(), said) or split, _plain_view(view))
        except (OSError, EOFError, csv.Error, ValueError) as error:
            raise ValueError(f"{table}: cannot be read as a table of images: {error}") from error
    return known


def _plain_view(view: str) -> str:
    """The view if it is a word or a code; people write anything into such fields."""
    return view if _VIEW.fullmatch(view) else ""


def is_dicom(path: str) -> bool:
    """Whether an image is to be read as DICOM."""
    return path.lower().endswith(".dcm")


__all__ = ["STUDY_IMAGES", "StudyImages", "is_dicom", "known_of_images"]
