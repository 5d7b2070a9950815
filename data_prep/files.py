"""Files below one folder, and none outside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.record import RejectedImageError


def inside(root: Path, relative: str, *, named: str) -> Path:
    """The path of a file below `root`.

    Raises:
        RejectedImageError: no such file, or a symbolic link leads out of `root` (called `named` in the reason).
    """
    file = os.path.join(root, relative)
    if not os.path.isfile(file):
        raise RejectedImageError("missing file")
    real, real_root = os.path.realpath(file), os.path.realpath(root)
    if os.path.commonpath((real, real_root)) != real_root:
        raise RejectedImageError(f"outside {named}", "through a symbolic link")
    return Path(file)


def walk_files(root: Path) -> Iterator[str]:
    """Relative paths of all files below a folder, in an order that depends on the names alone.

    Symbolic links to folders are not followed (they can form loops); links to files come like files.

    Raises:
        OSError: a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    for folder, below, names in os.walk(root, onerror=fail):
        below.sort()
        for name in sorted(names):
            yield os.path.relpath(os.path.join(folder, name), root)


def digest_of_listing(root: Path, relatives: Iterable[str]) -> str:
    """SHA-256 of the names and sizes of files: what a folder holds, without reading it."""
    digest = hashlib.sha256()
    for relative in relatives:
        path = os.path.join(root, relative)
        size = os.path.getsize(path) if os.path.exists(path) else -1
        digest.update(f"{relative}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


__all__ = ["digest_of_listing", "inside", "walk_files"]
