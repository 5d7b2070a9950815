"""Folders of radiology reports with the images of their studies: a source of shards.

Text reports as MIMIC-CXR has them, `files/p10/p10000032/s50414267.txt` with the images of the study in the folder
`s50414267/`, or images beside the report whose names begin with its name. XML reports as Open-i has them, which name
their images. Every image of a study is a sample with the captions of the report, and shares its study and patient; or
all images of a study are one sample together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Final, Literal

from clip_med.config import config
from data_prep.burned_in import SAID
from data_prep.files import check_size, digest_of_listing, image_bytes, inside, walk_files
from data_prep.group_pattern import check_group_pattern, group_in
from data_prep.openi import read_openi
from data_prep.pixels import clean_image
from data_prep.record import BurnedIn, Record, RejectedImageError, Rejection, ShardSettings, Task, rejection_of
from data_prep.report_images import STUDY_IMAGES, StudyImages, is_dicom, known_of_images
from data_prep.report_sections import SectionName, chosen_sections, split_sections

_REPORTS: Final = (".txt", ".xml")
# A long report has 10,000 characters.
_MOST_BYTES: Final = 1_000_000


@config
class ReportTreeConfig(ShardSettings):
    """How a tree of reports becomes shards."""

    burned_in: BurnedIn = "quarantine"
    """As for DICOM: reports come from patients, and so do the images beside them."""
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
    seeds: tuple[str, ...] = ()
    burned_in: tuple[str, ...] = ()
    """Images whose header says that text is in their pixels."""

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
            seeds=self.seeds,
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
        """A record per image of a report, or per report; what has no partner is listed, and so is what is neither."""
        known = known_of_images(self.settings.tables)
        images = StudyImages(self.images_root)
        used: set[str] = set()
        row = 0
        for relative in walk_files(self.root):
            if PurePosixPath(relative).suffix.lower() not in _REPORTS:
                if not self._is_known(relative):
                    row += 1
                    yield Rejection(row=row, path=relative, reason=_other(relative, "not a report"))
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
                record = replace(study.record(relative, row), path=image, more_paths=(), identity=image)
                yield replace(record, split=split, view=view, where=_said(image in study.burned_in))
        for image in sorted(set(images.all()) - used):
            row += 1
            yield Rejection(row=row, path=image, reason="no report", detail="no report that could be used names it")
        for other in images.others if self.images_root != self.root else ():
            if self.images_root / other not in self.settings.tables:
                row += 1
                yield Rejection(row=row, path=other, reason=_other(other, "not an image"))

    def _is_known(self, relative: str) -> bool:
        """Whether a file that is no report is an image of this tree, or a table that was given."""
        image = self.images_root == self.root and PurePosixPath(relative).suffix.lower() in STUDY_IMAGES
        return image or (self.root / relative) in self.settings.tables

    def _together(
        self, study: _Study, relative: str, row: int, known: dict[str, tuple[str, str]]
    ) -> Record | Rejection:
        """The record of all images of a study; their views, where each has one."""
        said = [known.get(PurePosixPath(image).stem, ("", "")) for image in study.images]
        splits = {split for split, _ in said}
        if len(splits) > 1 and self.settings.split is None:
            detail = f"its images are in {', '.join(sorted(split or 'none' for split in splits))}"
            return Rejection(row=row, path=relative, reason="several splits", detail=detail)
        record = replace(study.record(relative, row), split=min(splits), where=_said(bool(study.burned_in)))
        views = tuple(view for _, view in said if view)
        if len(said) == 1:
            return replace(record, view="".join(views))
        return replace(record, views=views if len(views) == len(said) else ())

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """One image of a study."""
        if is_dicom(task.path):
            file = inside(self.images_root, task.path, named="images-root")
            return _dicom().dicom_image(file, self.settings.max_side), "png"
        data = image_bytes(self.images_root, task.path, named="images-root")
        return clean_image(data, source=task.path, max_side=self.settings.max_side)

    def _study(self, relative: str, images: StudyImages) -> _Study:
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
        return self._with_headers(study)

    def _with_headers(self, study: _Study) -> _Study:
        """What the headers of DICOM images say: whose names the report may hold, and that text is in the pixels."""
        seeds: dict[str, None] = {}
        burned_in: list[str] = []
        for image in filter(is_dicom, study.images):
            try:
                names, said = _dicom().header_of_study(inside(self.images_root, image, named="images-root"))
            except (RejectedImageError, OSError):
                continue  # it is refused when it is opened
            seeds.update(dict.fromkeys(names))
            burned_in += [image] * said
        return replace(study, seeds=tuple(seeds), burned_in=tuple(burned_in))


def _other(relative: str, reason: str) -> str:
    return "link to a folder" if relative.endswith(os.sep) else reason


def _said(burned_in: bool) -> dict[str, str | int]:
    return {SAID: 1} if burned_in else {}


def _dicom() -> ModuleType:
    """Where DICOM is read, which needs an extra that other images do not.

    Raises:
        RejectedImageError: it is not installed.
    """
    try:
        return import_module("data_prep.report_dicom")
    except ImportError as error:
        raise RejectedImageError("needs an extra", f"{error.name} reads DICOM: clip-med[dicom]") from error


__all__ = ["ReportTreeConfig", "ReportTreeSource"]
