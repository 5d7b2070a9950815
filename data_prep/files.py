"""Files below one folder, and none outside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from data_prep.record import RejectedImageError

# Longer than any image that `decode_image` takes; what is beyond would only fill the memory.
MAX_IMAGE_BYTES: Final = 256 * 1024**2
# Bytes that deflate can make of one, at most (technical notes of zlib).
MOST_INFLATED: Final = 1032


def inside(root: Path, relative: str, *, named: str) -> Path:
    """The path of a file below `root`.

    Raises:
        RejectedImageError: no such file, a link to a folder, or a link that leads out of `root` (called `named` in the
            reason).
    """
    if relative.endswith(os.sep):
        raise RejectedImageError("link to a folder", "not followed: it can form a loop")
    file = os.path.join(root, relative)
    if not os.path.isfile(file):
        raise RejectedImageError("missing file")
    real, real_root = os.path.realpath(file), os.path.realpath(root)
    if os.path.commonpath((real, real_root)) != real_root:
        raise RejectedImageError(f"outside {named}", "through a symbolic link")
    return Path(file)


def image_bytes(root: Path, relative: str, *, named: str) -> bytes:
    """An image file below `root`, all of it.

    Raises:
        RejectedImageError: see `inside`; or it is larger than `MAX_IMAGE_BYTES`, and was not read.
        OSError: it cannot be read.
    """
    file = inside(root, relative, named=named)
    check_size(file.stat().st_size, MAX_IMAGE_BYTES)
    return file.read_bytes()


def check_size(size: int, most: int) -> None:
    """Refuse a file, or what stands for one, that is larger than what its kind can be.

    Raises:
        RejectedImageError: with both numbers.
    """
    if size > most:
        raise RejectedImageError("too large", f"{size:,} bytes; the most is {most:,}")


def walk_files(root: Path) -> Iterator[str]:
    """Relative paths of all files below a folder, in an order that depends on the names alone.

    Links to files come like files. Links to folders are not followed (they can form loops), but come too, with a slash
    at the end: `inside` refuses them by name.

    Raises:
        OSError: a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    for folder, below, names in os.walk(root, onerror=fail):
        below.sort()
        links = [name + os.sep for name in below if os.path.islink(os.path.join(folder, name))]
        for name in sorted(names + links):
            yield os.path.relpath(os.path.join(folder, name), root) + os.sep * name.endswith(os.sep)


def digest_of_listing(root: Path, relatives: Iterable[str]) -> str:
    """SHA-256 of the names and sizes of files: what a folder holds, without reading it."""
    digest = hashlib.sha256()
    for relative in relatives:
        path = os.path.join(root, relative)
        size = os.path.getsize(path) if os.path.isfile(path) else -1
        digest.update(f"{relative}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


__all__ = ["MAX_IMAGE_BYTES", "MOST_INFLATED", "check_size", "digest_of_listing", "image_bytes", "inside", "walk_files"]
