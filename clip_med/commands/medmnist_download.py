"""MedMNIST files by the package of their makers, which says their classes and licence. It imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clip_med.commands.data_sources import naming_extra

SIZES: Final = (28, 64, 128, 224)


@dataclass(frozen=True)
class Downloaded:
    """A file, and what is known of it; no classes where they are only numbered."""

    file: Path
    classes: tuple[str, ...]
    licence: str


def download(name: str, size: int, folder: Path) -> Downloaded:
    """Get a set of images into a folder, unless an intact copy is there.

    The package checks the MD5. It then reads the images of the test split, at most 1.1 GB (pathmnist of 224 px).

    Raises:
        ValueError: the package is not installed, has no such set, or could not get it (with the address).
        OSError: the folder cannot be made.
    """
    with naming_extra("medmnist"):
        import medmnist  # pyright: ignore[reportMissingImports]
    info: Mapping[str, Any] = medmnist.INFO
    flag = "" if size == 28 else f"_{size}"
    # Sets of volumes come in other sizes; they are no images.
    images = sorted(one for one in info if f"MD5_{SIZES[-1]}" in info[one])
    if name not in images:
        raise ValueError(f"--download {name}: not a set of images of MedMNIST; choose one of {', '.join(images)}")
    about = info[name]
    file = folder / f"{name}{flag}.npz"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        getattr(medmnist, about["python_class"])(split="test", download=True, root=str(folder), size=size)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{name}: the package medmnist could not get {about[f'url{flag}']} ({type(error).__name__}); get it "
            f"yourself, put it at {file}, and repeat"
        ) from error
    labels = [about["label"][str(number)] for number in range(len(about["label"]))]
    named = () if all(label.isdigit() for label in labels) else tuple(labels)
    return Downloaded(file, named, about["license"])


__all__ = ["SIZES", "Downloaded", "download"]
