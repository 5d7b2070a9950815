"""NIfTI volumes as slices or whole: a source of shards. Headers, extensions and file names stay behind."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import nibabel
import numpy as np
from jaxtyping import Float32, UInt8
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, io_orientation

from clip_med.config import NonNegativeInt, PositiveInt, config
from clip_med.data.sample import VOLUME_SUFFIX
from clip_med.data.volume import encode_volume
from data_prep.files import MOST_INFLATED, digest_of_listing, inside, walk_files
from data_prep.grammar import article, sentence
from data_prep.pixels import encode_png, scaled_down
from data_prep.record import Record, RejectedImageError, Rejection, ShardSettings, Task, rejection_of
from data_prep.windows import WINDOWS, WindowName

# One volume lies in memory as float32: at most 1.6 GB.
MAX_VOXELS: Final = 400_000_000
_DAMAGED: Final = (ImageFileError, ValueError, TypeError, KeyError, EOFError, zlib.error, OverflowError)
_AXIS: Final = {"sagittal": 0, "coronal": 1, "axial": 2}


@config
class VolumeConfig(ShardSettings):
    """How volumes become slices, or that they stay whole."""

    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    step: PositiveInt = 1
    """Every so many slices, from half a step on."""
    window: WindowName = "file"
    """A preset in Hounsfield units; file: from the 0.5 to the 99.5 percentile of the volume."""
    time: NonNegativeInt = 0
    """Which volume of a series in time."""
    whole: bool = False
    """Keep volumes with their values: int16 where all are whole numbers in its range, else float32."""

    def __post_init__(self) -> None:
        """Refuse volumes of an unknown kind: a NIfTI header does not say what it is."""
        super().__post_init__()
        if self.modality is None:
            raise ValueError("modality must be given for volumes: their files do not say it")
        sliced = {"plane": self.plane != "axial", "step": self.step != 1, "window": self.window != "file"}
        sliced |= {"max_side": self.max_side is not None, "burned_in": self.burned_in != "ignore"}
        for name, given in sliced.items():
            if self.whole and given:
                raise ValueError(f"{name} is for slices: leave it out with whole, which keeps the values of a volume")


@dataclass(frozen=True)
class VolumeSource:
    """Every `.nii` and `.nii.gz` below a folder; each is a case, and each of its slices (or all of it) a sample."""

    root: Path
    settings: VolumeConfig
    kind: str = "volumes"
    name: str = "volumes"
    cheap: bool = False

    def digest(self) -> str:
        """Of the names and sizes of all files."""
        return digest_of_listing(self.root, walk_files(self.root))

    def records(self) -> Iterator[Record | Rejection]:
        """A record per slice, or per volume; headers are read, voxels are not."""
        settings, row = self.settings, 0
        modality = settings.modality or ""
        opening = sentence(f"{article(settings.plane)} {settings.plane} {modality} slice")
        window = f", {settings.window.replace('_', ' ')} window" if settings.window != "file" else ""
        for relative in walk_files(self.root):
            row += 1
            try:
                shape, spacing = _geometry(inside(self.root, relative, named="the folder"))
            except (RejectedImageError, OSError) as error:
                yield rejection_of(error, row=row, path=relative)
                continue
            if settings.whole:
                yield self._whole(relative, row, spacing)
                continue
            axis = _AXIS[settings.plane]
            rows, columns = (1 if axis == 2 else 2), (1 if axis == 0 else 0)
            scale = max(1.0, max(shape[rows], shape[columns]) / (settings.max_side or 10**9))
            places = range(min(settings.step // 2, shape[axis] - 1), shape[axis], settings.step)
            for number, place in enumerate(places):
                row += number > 0
                yield Record(
                    row=row,
                    path=relative,
                    identity=f"{relative}#{settings.plane}{place}",
                    captions=(f"{opening}{window}.",),
                    caption_kinds=("metadata",),
                    coded=True,
                    group=relative,
                    study=relative,
                    view=settings.plane,
                    spacing_mm=(spacing[rows] * scale, spacing[columns] * scale),
                    where={"slice": place},
                )

    def _whole(self, relative: str, row: int, spacing: tuple[float, float, float]) -> Record:
        return Record(
            row=row,
            path=relative,
            identity=relative,
            captions=(sentence(f"{article(f'{self.settings.modality} volume')} {self.settings.modality} volume."),),
            caption_kinds=("metadata",),
            coded=True,
            group=relative,
            study=relative,
            spacing_mm=spacing,
            # To which side each axis runs: right, anterior (front), superior (head).
            provenance={"axes": "RAS"},
        )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """One slice as radiologists hang it: the patient's right or front on the left, front or head at the top.

        Or a volume in canonical order, the first axis from left to right, then back to front and foot to head.
        """
        path = inside(self.root, task.path, named="the folder")
        if self.settings.whole:
            return _encoded(_values(path, self.settings.time)), VOLUME_SUFFIX
        volume = _levels(path, self.settings.window, self.settings.time)
        place = int(task.where["slice"])
        match self.settings.plane:
            case "axial":
                image = volume[::-1, ::-1, place].T
            case "coronal":
                image = volume[::-1, place, ::-1].T
            case "sagittal":
                image = volume[place, ::-1, ::-1].T
        if image.min() == image.max():
            raise RejectedImageError("empty slice", "all voxels are equal")
        return encode_png(scaled_down(np.ascontiguousarray(image)[:, :, None], self.settings.max_side)), "png"


def _opened(path: Path) -> Any:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise RejectedImageError("not NIfTI", "expected .nii or .nii.gz")
    try:
        image: Any = nibabel.load(path)
        shape = image.shape
    except OSError:
        raise
    except _DAMAGED as error:
        raise RejectedImageError("damaged NIfTI", f"{type(error).__name__}: {error}") from error
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise RejectedImageError("no volume", f"shape {shape}")
    if int(np.prod(shape[:3], dtype=object)) > MAX_VOXELS:
        raise RejectedImageError("too large", f"shape {shape}; the most is {MAX_VOXELS:,} voxels")
    if image.get_data_dtype().kind not in "iuf":
        raise RejectedImageError("no grey values", f"voxels of {image.get_data_dtype()}")
    # Each slice is a row of the list, and a header alone can claim millions.
    claimed, size = int(np.prod(shape, dtype=object)) * image.get_data_dtype().itemsize, path.stat().st_size
    if claimed > size * (MOST_INFLATED if path.suffix == ".gz" else 1):
        raise RejectedImageError("damaged NIfTI", f"{claimed:,} bytes of voxels in a file of {size:,}")
    return image


def _orientation(image: Any) -> np.ndarray:
    """How axes turn to left-right, back-front, foot-head ("closest canonical")."""
    orientation = io_orientation(image.affine)
    if np.isnan(orientation).any():
        raise RejectedImageError("damaged NIfTI", "the affine matrix has no orientation")
    return orientation


def _geometry(path: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing in millimetres, in canonical order."""
    image = _opened(path)
    order = np.argsort(_orientation(image)[:, 0])
    shape, zooms = image.shape[:3], image.header.get_zooms()[:3]
    first, second, third = (int(axis) for axis in order)
    spacing = (float(zooms[first]), float(zooms[second]), float(zooms[third]))
    return (shape[first], shape[second], shape[third]), spacing


@lru_cache(maxsize=1)
def _levels(path: Path, window: WindowName, time: int) -> UInt8[np.ndarray, "X Y Z"]:
    """A volume in canonical order as grey levels."""
    values = _values(path, time)
    if window == "file":
        low, high = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    else:
        center, width = WINDOWS[window]
        low, high = center - width / 2, center + width / 2
    shown = np.clip((np.where(np.isfinite(values), values, low) - low) / max(high - low, 1e-12), 0, 1)
    return np.rint(255 * shown).astype(np.uint8)


def _values(path: Path, time: int) -> Float32[np.ndarray, "X Y Z"]:
    """A volume in canonical order, with slope and intercept applied; at least one voxel is finite."""
    image = _opened(path)
    if len(image.shape) == 4 and time >= image.shape[3]:
        raise RejectedImageError("no volume", f"number {time} of {image.shape[3]}")
    try:
        stored = image.dataobj[..., time] if len(image.shape) == 4 else image.dataobj[...]
        values: Float32[np.ndarray, "X Y Z"] = np.asarray(stored, np.float32)
    except _DAMAGED as error:
        raise RejectedImageError("damaged NIfTI", f"{type(error).__name__}: {error}") from error
    if not np.isfinite(values).any():
        raise RejectedImageError("no grey values", "no voxel is a finite number")
    return apply_orientation(values, _orientation(image))


def _encoded(values: Float32[np.ndarray, "X Y Z"]) -> bytes:
    """The volume as `.npy`; voxels without a finite value get the least of the others."""
    finite = np.isfinite(values)
    least, most = float(values[finite].min()), float(values[finite].max())
    if least == most:
        raise RejectedImageError("empty volume", "all voxels are equal")
    values = np.where(finite, values, np.float32(least))
    if least >= -32768 and most <= 32767 and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int16)
    try:
        return encode_volume(values)
    except ValueError as error:
        raise RejectedImageError("too large", str(error)) from error


__all__ = ["VolumeConfig", "VolumeSource"]
