"""Folders of radiology reports with the images of their studies: a source of shards.

Text reports as MIMIC-CXR has them, `files/p10/p10000032/s50414267.txt` with the images of the study in the folder
`s50414267/`, or images beside the report whose names begin with its name. XML reports as Open-i has them, which name
their images. Every image of a study is a sample with the captions of the report, and shares its study and patient; or
all images of a study are one sample together.
"""

from __future__ import annotations

import bisect
import csv
import gzip
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from clip_med.config import config
from data_prep.files import check_size, digest_of_listing, image_bytes, inside, walk_files
from data_prep.group_pattern import check_group_pattern, group_in
from data_prep.image_folder import IMAGE_SUFFIXES, SPLIT_FOLDERS
from data_prep.openi import read_openi
from data_prep.pixels import clean_image
from data_prep.record import Record, RejectedImageError, Rejection, ShardSettings, Task, rejection_of
from data_prep.report_sections import SectionName, chosen_sections, split_sections

_REPORTS: Final = (".txt", ".xml")
_IMAGES: Final = (*IMAGE_SUFFIXES, ".dcm")
# A long report has 10,000 characters.
_MOST_BYTES: Final = 1_000_000
_VIEW: Final = re.compile(r"[A-Za-z][A-Za-z -]{0,30}")


@config
class ReportTreeConfig(ShardSettings):
    """How a tree of reports becomes shards."""

    sections: tuple[SectionName, ...] = ("findings", "impression")
    """Each that a report has is a caption; "report" is all of it."""
    group_pattern: str = ""
    """Regular expression with one group that finds the patient in the path of a report; empty: the folder of a text
    report, the study of an XML report."""
    views: Literal["apart", "together"] = "apart"
    """Whether each image of a study is a sample, or all of them are one."""
    tables: tuple[Path, ...] = ()
    """CSV files (also .gz) with a column dicom_id or image, the name of an image without its ending, and split,
    ViewPosition or view of it."""

    def __post_init__(self) -> None:
        """Refuse what would fail at the first report."""
        super().__post_init__()
        check_group_pattern(self.group_pattern)
        if not self.sections or len(set(self.sections)) != len(self.sections):
            raise ValueError(f"sections must be one or more different names, got {list(self.sections)}")


@dataclass(frozen=True, kw_only=True)
class _Study:
    """A report with the paths of its images."""

    captions: dict[str, str]
    images: list[str]
    group: str
    labels: tuple[str, ...] = ()
    licence: str = ""

    def record(self, relative: str, row: int) -> Record:
        """All of its images in one record, without split and views."""
        return Record(
            row=row,
            path=self.images[0],
            more_paths=tuple(self.images[1:]),
            identity=relative,
            captions=tuple(self.captions),
            caption_kinds=tuple(self.captions.values()),
            labels=self.labels,
            group=self.group,
            study=relative,
            licence=self.licence,
        )


@dataclass(frozen=True)
class ReportTreeSource:
    """Every report below a folder, with images below the same or another."""

    root: Path
    images_root: Path
    settings: ReportTreeConfig
    kind: str = "reports"
    name: str = "reports"
    cheap: bool = False

    def digest(self) -> str:
        """Of the names and sizes of all files."""
        roots = dict.fromkeys((self.root, self.images_root))
        return "-".join(digest_of_listing(root, walk_files(root)) for root in roots)

    def records(self) -> Iterator[Record | Rejection]:
        """A record per image of a report, or per report; reports and images that have no partner are listed."""
        known = _known_of_images(self.settings.tables)
        images = _Images(self.images_root)
        used: set[str] = set()
        row = 0
        for relative in walk_files(self.root):
            if PurePosixPath(relative).suffix.lower() not in _REPORTS:
                continue
            row += 1
            try:
                study = self._study(relative, images)
            except (RejectedImageError, OSError) as error:
                yield rejection_of(error, row=row, path=relative)
                continue
            used.update(study.images)
            if self.settings.views == "together":
                yield self._together(study, relative, row, known)
                continue
            for place, image in enumerate(study.images):
                row += place > 0
                split, view = known.get(PurePosixPath(image).stem, ("", ""))
                record = replace(study.record(relative, row), more_paths=())
                yield replace(record, path=image, identity=image, split=split, view=view)
        for image in sorted(set(images.all()) - used):
            row += 1
            yield Rejection(row=row, path=image, reason="no report", detail="no report that could be used names it")

    def _together(
        self, study: _Study, relative: str, row: int, known: dict[str, tuple[str, str]]
    ) -> Record | Rejection:
        """The record of all images of a study; their views, where each has one."""
        said = [known.get(PurePosixPath(image).stem, ("", "")) for image in study.images]
        splits = {split for split, _ in said}
        if len(splits) > 1 and self.settings.split is None:
            detail = f"its images are in {', '.join(sorted(split or 'none' for split in splits))}"
            return Rejection(row=row, path=relative, reason="several splits", detail=detail)
        record = replace(study.record(relative, row), split=min(splits))
        views = tuple(view for _, view in said if view)
        if len(said) == 1:
            return replace(record, view="".join(views))
        return replace(record, views=views if len(views) == len(said) else ())

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """One image of a study."""
        if task.path.lower().endswith(".dcm"):
            file = inside(self.images_root, task.path, named="images-root")
            return _from_dicom(file, self.settings.max_side)
        data = image_bytes(self.images_root, task.path, named="images-root")
        return clean_image(data, source=task.path, max_side=self.settings.max_side)

    def _study(self, relative: str, images: _Images) -> _Study:
        file = inside(self.root, relative, named="the folder")
        check_size(file.stat().st_size, _MOST_BYTES)
        group = group_in(relative, self.settings.group_pattern)
        if group is None:
            raise RejectedImageError("no group", "group_pattern does not match")
        data = file.read_bytes()
        if file.suffix.lower() == ".xml":
            report = read_openi(data)
            study = _Study(
                captions=chosen_sections(report.sections, self.settings.sections),
                images=[image for name in report.images for image in images.named(name)],
                group=group or report.study,
                labels=report.labels,
                licence=report.licence,
            )
        else:
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise RejectedImageError("damaged report", f"not UTF-8: {error}") from error
            study = _Study(
                captions=chosen_sections(split_sections(text), self.settings.sections),
                images=images.of_report(relative),
                group=group or os.path.dirname(relative) or relative,
            )
        if not study.captions:
            raise RejectedImageError("no section", f"none of {', '.join(self.settings.sections)} says anything")
        if not study.images:
            raise RejectedImageError("no image", "no image of this report")
        return study


class _Images:
    """The images below a folder, found by the path of a report or by their own name."""

    def __init__(self, root: Path) -> None:
        self._of_folder: dict[str, list[str]] = {}
        self._named: dict[str, list[str]] = {}
        for relative in walk_files(root):
            path = PurePosixPath(relative)
            if path.suffix.lower() in _IMAGES:
                self._of_folder.setdefault(str(path.parent), []).append(path.name)
                self._named.setdefault(path.stem, []).append(relative)
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


def _known_of_images(tables: tuple[Path, ...]) -> dict[str, tuple[str, str]]:
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


def _from_dicom(file: Path, max_side: int | None) -> tuple[bytes, str]:
    try:
        from data_prep.dicom_pixels import PixelRules, displayed_frame, read_dicom
    except ImportError as error:
        raise RejectedImageError("needs an extra", f"{error.name} reads DICOM: clip-med[dicom]") from error
    from data_prep.pixels import encode_png, scaled_down

    return encode_png(scaled_down(displayed_frame(read_dicom(file), 0, PixelRules()), max_side)), "png"


__all__ = ["ReportTreeConfig", "ReportTreeSource"]
