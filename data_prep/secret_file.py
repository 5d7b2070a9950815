"""The secret that keys the hashes of a shard set: kept beside the shards, never among them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

_LEAST_CHARACTERS: Final = 16


def read_secret(file: Path, *, out: Path) -> bytes:
    """The 32 bytes that key the hashes in `out`; a file that is absent is created with random content, mode 0600.

    Raises:
        ValueError: the file lies inside `out`, or holds less than 16 characters.
    """
    if Path(os.path.realpath(file)).is_relative_to(os.path.realpath(out)):
        raise ValueError(f"--secret {file}: lies inside {out}; who has it can find patients behind the hashes again")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.tmp-{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            handle.write(secrets.token_hex(32) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        # A link, unlike a rename, never replaces a secret that another run has just made.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
        temporary.unlink()
    text = file.read_text(encoding="utf-8").strip()
    if len(text) < _LEAST_CHARACTERS:
        raise ValueError(f"--secret {file}: holds {len(text)} characters, expected at least {_LEAST_CHARACTERS}")
    return hashlib.sha256(text.encode()).digest()


__all__ = ["read_secret"]
