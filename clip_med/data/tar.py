"""Reading a tar's headers, every one verified. Imports no torch.

webdataset and the tar libraries below it end a stream silently at the first damaged header (one flipped byte can cost
all later samples) and never look at payloads; here each such fault is an error that names file and offset.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

BLOCK: Final = 512
# A compressed bomb named .tar costs a stream reader gigabytes; an image or caption never needs more than this.
MAX_MEMBER_BYTES: Final = 256 * 1024**2
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\xfd7": "xz", b"BZ": "bzip2", b"\x28\xb5": "zstd"}


class ShardError(ValueError):
    """A shard that cannot be used; the message names the file, what was found and what was expected."""


def tar_members(file: BinaryIO, tar: Path) -> Iterator[tuple[str, int, int]]:
    """(name, payload offset, size) of each regular member up to the end-of-archive blocks."""
    total = os.fstat(file.fileno()).st_size
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if position == 0 and header[:2] in _COMPRESSED:
            raise ShardError(f"{tar}: is {_COMPRESSED[header[:2]]}-compressed; shards must be uncompressed tars")
        if len(header) < BLOCK:
            raise ShardError(f"{tar}: offset {position}: truncated, the end-of-archive blocks are missing")
        if not any(header):
            rest = file.read()
            if len(rest) < BLOCK or any(rest):
                raise ShardError(
                    f"{tar}: offset {position}: data or nothing follows where two zero blocks are expected"
                )
            return
        name, size = _parse_header(header, tar, position)
        payload = position + BLOCK
        end = payload + -(-size // BLOCK) * BLOCK
        if end > total:
            raise ShardError(f"{tar}: offset {position}: member {name!r} is truncated ({size} bytes announced)")
        yield name, payload, size
        position = end


def _parse_header(header: bytes, tar: Path, position: int) -> tuple[str, int]:
    """Name and size from a ustar or GNU header; its checksum is the sum of its bytes, its own field taken as spaces."""
    where = f"{tar}: offset {position}"
    try:
        announced = int(header[148:156].strip(b"\0 ") or b"-1", 8)
    except ValueError as error:
        raise ShardError(f"{where}: damaged header (checksum field {header[148:156]!r})") from error
    actual = sum(header[:148]) + 8 * 32 + sum(header[156:])
    if announced != actual:
        raise ShardError(f"{where}: damaged header: checksum {announced}, computed {actual}")
    kind = header[156:157]
    if kind not in (b"0", b"\0"):
        raise ShardError(f"{where}: member of type {kind!r}; only regular files are read (no links, no pax headers)")
    try:
        name = header[:100].split(b"\0", 1)[0].decode("utf-8")
        if header[257:262] == b"ustar":
            prefix = header[345:500].split(b"\0", 1)[0].decode("utf-8")
            name = f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name
        size = int(header[124:136].strip(b"\0 ") or b"-1", 8)
    except ValueError as error:
        raise ShardError(f"{where}: damaged header: {error}") from error
    if not 0 < size <= MAX_MEMBER_BYTES:
        raise ShardError(f"{where}: member {name!r} has {size} bytes; expected 1 to {MAX_MEMBER_BYTES}")
    return name, size


__all__ = ["BLOCK", "MAX_MEMBER_BYTES", "ShardError", "tar_members"]
