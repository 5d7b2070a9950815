"""A folder of DICOM files: a source of shards. Pixels and an allow-list of coded fields are all that leaves a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import simplejpeg
from pydicom.dataset import Dataset

from clip_med.config import PositiveInt, config
from data_prep.burned_in import SAID
from data_prep.dicom_fields import TAGS, coded_fields, metadata_caption, says_burned_in
from data_prep.dicom_pixels import PixelRules, check_picture, displayed_frame, number_of_frames
from data_prep.dicom_reading import read_dicom
from data_prep.files import digest_of_listing, inside, walk_files
from data_prep.pixels import encode_png, scaled_down
from data_prep.record import BurnedIn, Record, RejectedImageError, Rejection, ShardSettings, Task, rejection_of


@config
class DicomConfig(ShardSettings):
    """How a folder of DICOM files becomes shards."""

    burned_in: BurnedIn = "quarantine"
    """As for all sources, but these are patients' files: nothing is let through without a look."""
    pixels: PixelRules = field(default_factory=PixelRules)
    frames: Literal["first", "middle", "all"] = "middle"
    """Of an image with several frames."""
    frame_step: PositiveInt = 1
    """With all frames: every so many."""
    image_format: Literal["png", "jpg"] = "png"
    """png: without a loss. jpg: quality 95, a tenth of the time and half of the bytes."""


@dataclass(frozen=True)
class DicomSource:
    """Every DICOM image below a folder, in the order of the paths."""

    root: Path
    settings: DicomConfig
    kind: str = "dicom"
    name: str = "dicom"
    cheap: bool = False

    def digest(self) -> str:
        """Of the names and sizes of all files."""
        return digest_of_listing(self.root, walk_files(self.root))

    def records(self) -> Iterator[Record | Rejection]:
        """A record per frame that is asked for; headers are read, pixels are not."""
        row = 0
        for relative in walk_files(self.root):
            row += 1
            try:
                header = self._header(relative)
                check_picture(header, self.settings.pixels)
                frames = self._frames(header, os.path.getsize(self.root / relative))
            except (RejectedImageError, OSError) as error:
                yield rejection_of(error, row=row, path=relative)
                continue
            for place, frame in enumerate(frames):
                row += place > 0
                yield self._record(row, relative, header, frame, several=len(frames) > 1)

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """One frame as it is to be looked at."""
        dataset = read_dicom(inside(self.root, task.path, named="the folder"))
        pixels = displayed_frame(dataset, int(task.where["frame"]), self.settings.pixels)
        pixels = scaled_down(pixels, self.settings.max_side)
        if self.settings.image_format == "png":
            return encode_png(pixels), "png"
        space = "GRAY" if pixels.shape[2] == 1 else "RGB"
        return simplejpeg.encode_jpeg(pixels, quality=95, colorspace=space, colorsubsampling="444"), "jpg"

    def _header(self, relative: str) -> Dataset:
        path = inside(self.root, relative, named="the folder")
        return read_dicom(path, stop_before_pixels=True, specific_tags=list(TAGS))

    def _frames(self, header: Dataset, size: int) -> list[int]:
        number = number_of_frames(header)
        # A frame is a byte at least, and each is a row of the list.
        if number > size:
            raise RejectedImageError("damaged DICOM", f"NumberOfFrames is {number:,} in a file of {size:,} bytes")
        match self.settings.frames:
            case "first":
                return [0]
            case "middle":
                return [number // 2]
            case "all":
                return list(range(0, number, self.settings.frame_step))

    def _record(self, row: int, relative: str, header: Dataset, frame: int, *, several: bool) -> Record:
        fields = coded_fields(header)
        folder = os.path.dirname(relative)
        identity = str(header.get("SOPInstanceUID") or relative)
        study = str(header.get("StudyInstanceUID") or "")
        window = self.settings.pixels.window
        where = {"frame": frame, SAID: 1} if says_burned_in(header) else {"frame": frame}
        named = window if window != "file" and fields.modality == "CT" else ""
        return Record(
            row=row,
            path=relative,
            identity=f"{identity}#{frame}" if several else identity,
            captions=(metadata_caption(fields, window=named),),
            caption_kinds=("metadata",),
            coded=True,
            modality=fields.modality,
            group=str(header.get("PatientID") or header.get("PatientName") or study or folder),
            view=fields.view,
            study=study,
            spacing_mm=self._spacing(fields.spacing_mm, int(header.Rows), int(header.Columns)),
            where=where,
        )

    def _spacing(self, spacing: tuple[float, float] | None, rows: int, columns: int) -> tuple[float, ...] | None:
        """Of the image as it is stored, which may be scaled down."""
        most = self.settings.max_side
        if spacing is None or most is None or max(rows, columns) <= most:
            return spacing
        scale = max(rows, columns) / most
        return spacing[0] * scale, spacing[1] * scale


__all__ = ["DicomConfig", "DicomSource"]
