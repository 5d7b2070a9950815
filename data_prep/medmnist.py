"""Files in the form of MedMNIST: an .npz with images and labels of train, val and test. A source of shards.

`medmnist.npz` (Yang et al., Scientific Data 2023) holds `SPLIT_images` uint8 [N, S, S] or [N, S, S, 3] and
`SPLIT_labels` [N, 1], or [N, L] of 0 and 1 where an image can have several labels. Names of the classes are not in it.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from jaxtyping import UInt8

from clip_med.config import config
from clip_med.data.shard_index import sha256_of
from data_prep.files import MOST_INFLATED
from data_prep.pixels import encode_png, scaled_down
from data_prep.record import SPLIT_NAMES, Record, RejectedImageError, Rejection, ShardSettings, Task

# Labels are small; an array of them that claims more is damaged or hostile.
_MOST_LABELS: Final = 100_000_000


@config
class MedMnistConfig(ShardSettings):
    """How a MedMNIST file becomes shards."""

    classes: tuple[str, ...]
    """Names of the classes (or grades, in their order), by number."""
    negative: str = "no finding"
    """Label of an image of a multi-label file that has none."""
    licence: str = ""
    """Of the images."""

    def __post_init__(self) -> None:
        """Refuse names that could not be told apart."""
        super().__post_init__()
        if len(self.classes) < 1 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must hold different names, got {list(self.classes)}")


@dataclass(frozen=True)
class MedMnistSource:
    """The images of one file, with its own splits."""

    file: Path
    settings: MedMnistConfig
    kind: str = "medmnist"
    name: str = "medmnist"
    cheap: bool = True

    def digest(self) -> str:
        """Of the bytes of the file."""
        return sha256_of(self.file)

    def records(self) -> Iterator[Record | Rejection]:
        """Images in the order of train, val and test.

        Raises:
            ValueError: not such a file, or a class without a name.
        """
        row = 0
        for split, labels in _labels(self.file).items():
            several = labels.shape[1] > 1
            names = self.settings.classes
            most = labels.shape[1] if several else int(labels.max(initial=-1)) + 1
            if most > len(names):
                raise ValueError(f"{self.file}: has {most} classes, and {len(names)} names were given (--classes)")
            for index, values in enumerate(labels.tolist()):
                row += 1
                given = [names[i] for i, value in enumerate(values) if value] if several else [names[values[0]]]
                yield Record(
                    row=row,
                    path=f"{split}_images[{index}]",
                    identity=f"{split}/{index}",
                    labels=tuple(given or [self.settings.negative]),
                    absent=tuple(name for name in names if name not in given) if several else (),
                    split=split,
                    licence=self.settings.licence,
                    where={"split": split, "index": index},
                )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """One image; images asked for in order are read in one pass."""
        split, index = str(task.where["split"]), int(task.where["index"])
        image = _reader(self.file, f"{split}_images").image(index)
        return encode_png(scaled_down(image, self.settings.max_side)), "png"


def _labels(file: Path) -> dict[str, np.ndarray]:
    """Labels [N, L] of each split that the file has.

    Raises:
        ValueError: damaged, without splits, or with labels of another form.
    """
    labels: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            present = set(archive.namelist())
            for split in SPLIT_NAMES:
                if f"{split}_labels.npy" not in present or f"{split}_images.npy" not in present:
                    continue
                with archive.open(f"{split}_labels.npy") as member:
                    shape, _, dtype = _header(member)
                # By what it claims: NumPy makes room for all of that before it reads.
                if math.prod(shape) * dtype.itemsize > _MOST_LABELS:
                    raise ValueError(f"{split}_labels: {dtype} {shape} is larger than {_MOST_LABELS:,} bytes")
                with archive.open(f"{split}_labels.npy") as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                with archive.open(f"{split}_images.npy") as member:
                    images = _header(member)[0]
                if len(images) not in (3, 4):
                    raise ValueError(f"{split}_images: {images}, expected images x rows x columns, and colours or not")
                if math.prod(images) > file.stat().st_size * MOST_INFLATED:
                    raise ValueError(f"{split}_images: {images} in a file of {file.stat().st_size:,} bytes")
                array = array[:, None] if array.ndim == 1 else array
                if (
                    array.ndim != 2
                    or array.dtype.kind not in "iub"
                    or len(array) != images[0]
                    or array.min(initial=0) < 0
                ):
                    raise ValueError(f"{split}_labels: {array.dtype} {array.shape} for {images[0]} images")
                labels[split] = array.astype(np.int64)
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"{file}: not a file in the form of MedMNIST: {error}") from error
    if not labels:
        raise ValueError(f"{file}: not a file in the form of MedMNIST: no SPLIT_images with SPLIT_labels")
    return labels


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


class _Images:
    """Reads the images of one array one after the other; going back starts anew."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, name
        self._next = 0
        self._begin()

    def _begin(self) -> None:
        # Stays open for the next image; the archive closes with its last member.
        archive = zipfile.ZipFile(self._file)
        self._member = archive.open(f"{self._name}.npy")
        shape, fortran, dtype = _header(self._member)
        if fortran or dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
            raise RejectedImageError("not images", f"{self._name} is {dtype} {shape}")
        if shape[1] * shape[2] > 64_000_000:
            raise RejectedImageError("too large", f"{self._name} is {shape}")
        self._shape, self._next = shape[1:], 0

    def image(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Image `index`.

        Raises:
            RejectedImageError: the file ends before it, or is damaged.
        """
        if index < self._next:
            self._begin()
        size = int(np.prod(self._shape))
        try:
            while True:
                data = self._member.read(size)
                self._next += 1
                if self._next == index + 1:
                    break
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise RejectedImageError("damaged file", str(error)) from error
        if len(data) != size:
            raise RejectedImageError("damaged file", f"{self._name} ends before image {index}")
        image = np.frombuffer(data, np.uint8).reshape(self._shape)
        return image if image.ndim == 3 else image[:, :, None]


@lru_cache(maxsize=3)
def _reader(file: Path, name: str) -> _Images:
    return _Images(file, name)


__all__ = ["MedMnistConfig", "MedMnistSource"]
