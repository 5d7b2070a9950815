"""Reading a tar's headers, every one verified, as common programs write them. Imports no torch.

webdataset and the tar libraries below it end a stream silently at the first damaged header (one flipped byte can cost
all later samples) and never look at payloads; here each such fault is an error that names file and offset. Read are
old V7, ustar, GNU (long names, base-256 numbers) and pax archives, the last of which webdataset's own writer makes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

BLOCK: Final = 512
# A compressed bomb named .tar costs a stream reader gigabytes; an image or caption never needs more than this.
MAX_MEMBER_BYTES: Final = 256 * 1024**2
# Of an extended header, which holds a name and a few numbers.
MAX_EXTENDED_BYTES: Final = 1024**2

_FILES: Final = (b"0", b"\0", b"7")
_DIRECTORY: Final = b"5"
_EXTENDED: Final = (b"x", b"X", b"g", b"L", b"K")
_REFUSED: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"M": "a part of a file that began in another volume",
    b"V": "a volume label",
    b"D": "a directory dump",
}
_NOT_TARS: Final = {
    b"\x1f\x8b": "gzip-compressed",
    b"\xfd7zXZ\0": "xz-compressed",
    b"BZh": "bzip2-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"\x04\x22\x4d\x18": "lz4-compressed",
    b"PK\x03\x04": "a zip archive",
    b"<": "a web page",
}
_OCTAL: Final = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_PAX_LENGTH: Final = re.compile(rb"([1-9][0-9]{0,9}) ")
# Files that belong to no sample: webdataset's own notes, and what macOS puts beside each file.
_NO_SAMPLE: Final = re.compile(r"__[^/]*__(/|$)|(.*/)?(\._[^/]*|\.DS_Store)$|(.*/)?__MACOSX/", re.DOTALL)
_NOT_IN_KEYS: Final = re.compile(r"[./\\\s]")


class ShardError(ValueError):
    """A shard that cannot be used; the message names the file, what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class _Header:
    kind: bytes
    name: bytes
    size: int


@dataclass(slots=True)
class _Extension:
    """What extended headers say of the next member: its name and its size, where they say so."""

    name: bytes | None = None
    size: int | None = None


def tar_members(file: BinaryIO, tar: Path) -> Iterator[tuple[str, int, int]]:
    """(name, payload offset, size) of each regular file up to the end-of-archive blocks; directories are passed over.

    Raises:
        ShardError: a compressed, damaged or truncated tar, one without its end-of-archive blocks or with data after
            them; links, devices and sparse files; a file over 256 MiB. The message names file and offset.
    """
    total = os.fstat(file.fileno()).st_size
    position = 0
    extension = _Extension()
    while True:
        where = f"{tar}: offset {position}"
        file.seek(position)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise ShardError(f"{where}: {_missing_end(block, position)}")
        if not any(block):
            if extension != _Extension():
                raise ShardError(f"{where}: an extended header without its member")
            _check_end(file, where)
            return
        header = _parse_header(block, where, position)
        payload = position + BLOCK
        if header.kind in _EXTENDED:
            if header.size > MAX_EXTENDED_BYTES:
                raise ShardError(
                    f"{where}: an extended header of {header.size} bytes; expected at most {MAX_EXTENDED_BYTES}"
                )
            data = file.read(header.size)
            if len(data) < header.size:
                raise ShardError(f"{where}: an extended header is truncated ({header.size} bytes announced)")
            _extend(extension, header.kind, data, where)
            position = payload + _padded(header.size)
            continue
        if header.kind == _DIRECTORY or (header.kind == b"\0" and header.name.endswith(b"/")):
            # No payload follows: its size field, where it is not 0, is the room that the writer asked for.
            position = payload
        else:
            name = _decoded(header.name if extension.name is None else extension.name, where)
            size = header.size if extension.size is None else extension.size
            _check_size(name, size, where)
            position = payload + _padded(size)
            if position > total:
                raise ShardError(f"{where}: member {name!r} is truncated ({size} bytes announced)")
            yield name, payload, size
        extension = _Extension()


def member_key(name: str) -> tuple[str, str] | None:
    """The key and the lower-case suffix of the sample that a member belongs to; None for files beside the samples.

    As in webdataset, the key includes the directories, and the suffix begins at the first dot of the file's own name
    ("a/1.seg.png" is "seg.png"). A key holds no slash, dot or white space, so each becomes "_"; a leading "./" is
    dropped. Two names that become one key this way are the caller's to refuse. Key or suffix is empty where the name
    has none. None are webdataset's notes (`__name__`) and what macOS adds ("._1.jpg", ".DS_Store").

    Example:
        >>> member_key("./00000/0001.JPG")
        ('00000_0001', 'jpg')
    """
    if _NO_SAMPLE.match(name):
        return None
    folder, _, file = name.rpartition("/")
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    stem, _, suffix = file.partition(".")
    if not stem:
        return "", suffix.lower()
    return _NOT_IN_KEYS.sub("_", "/".join([*parts, stem])), suffix.lower()


def _parse_header(block: bytes, where: str, position: int) -> _Header:
    """One header; its checksum is the sum of its bytes, its own field taken as spaces."""
    field = _OCTAL.fullmatch(block[148:156])
    announced = int(field[1], 8) if field is not None and field[1] else None
    actual = sum(block[:148]) + 8 * 32 + sum(block[156:])
    if announced != actual:
        if position == 0:
            for magic, what in _NOT_TARS.items():
                if block.startswith(magic):
                    raise ShardError(f"{where}: is {what}; shards must be uncompressed tars")
        found = f"checksum field {block[148:156]!r}" if announced is None else f"checksum {announced}"
        raise ShardError(f"{where}: damaged header: {found}, computed {actual}")
    kind = block[156:157]
    name = block[:100].split(b"\0", 1)[0]
    # GNU tar keeps times where POSIX keeps the first part of a long name; old V7 tars have neither.
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    name = prefix + b"/" + name if prefix else name
    if kind not in (*_FILES, _DIRECTORY, *_EXTENDED):
        what = _REFUSED.get(kind, f"of the unknown type {kind!r}")
        raise ShardError(f"{where}: member {_shown(name)} is {what}; only regular files are read")
    return _Header(kind, name, _number(block[124:136], where))


def _number(field: bytes, where: str) -> int:
    """A size: octal digits, or base 256 after the byte 0x80 (GNU's way above 8 GiB; some writers use it always)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ShardError(f"{where}: damaged header: size field {field!r}")
    return int(match[1] or b"0", 8)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_size(name: str, size: int, where: str) -> None:
    if not name:
        raise ShardError(f"{where}: a member without a name")
    if size > MAX_MEMBER_BYTES:
        raise ShardError(f"{where}: member {name!r} has {size} bytes; expected at most {MAX_MEMBER_BYTES}")


def _extend(extension: _Extension, kind: bytes, data: bytes, where: str) -> None:
    """Take name and size from an extended header; all else that it may say (times, owners) has no bearing here."""
    if kind == b"K":
        return  # the target of a link, which is refused when its own header comes
    if kind == b"L":
        extension.name = data.split(b"\0", 1)[0]
        return
    records = _pax_records(data, where)
    if sparse := [name for name in records if name.startswith(b"GNU.sparse.")]:
        raise ShardError(f"{where}: a sparse file ({_shown(sparse[0])}); only plain regular files are read")
    if kind == b"g":
        if found := records.keys() & {b"path", b"size"}:
            raise ShardError(f"{where}: a global header that sets the {_shown(min(found))} of every member")
        return
    extension.name = records.get(b"path", extension.name)
    if (size := records.get(b"size")) is not None:
        if not re.fullmatch(rb"[0-9]{1,19}", size):
            raise ShardError(f"{where}: damaged extended header: size {_shown(size)}")
        extension.size = int(size)


def _pax_records(data: bytes, where: str) -> dict[bytes, bytes]:
    """The records "LENGTH name=value\\n" of a pax header, the length counting all of the record."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        match = _PAX_LENGTH.match(data, start)
        end = start + int(match[1]) if match else 0
        name, equals, value = data[match.end() : end - 1].partition(b"=") if match else (b"", b"", b"")
        if not name or not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise ShardError(
                f"{where}: damaged extended header at its byte {start}: {_shown(data[start : start + 20])}"
            )
        records[name] = value
        start = end
    return records


def _decoded(name: bytes, where: str) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ShardError(f"{where}: the member's name {_shown(name)} is not UTF-8") from error


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "replace"))


def _missing_end(block: bytes, position: int) -> str:
    if position == 0:
        return f"{len(block)} bytes are no tar"
    return (
        "truncated: the two zero blocks that end an archive are missing (the file was cut, "
        "or its writer was never closed)"
    )


def _check_end(file: BinaryIO, where: str) -> None:
    """A second zero block follows, and nothing else to the end of the file."""
    if file.read(BLOCK) != bytes(BLOCK):
        raise ShardError(f"{where}: data or nothing follows where two zero blocks are expected")
    while chunk := file.read(1024**2):
        if any(chunk):
            raise ShardError(
                f"{where}: the archive ends here and more data follows: several tars in one file; "
                "write each to a file of its own"
            )


__all__ = ["BLOCK", "MAX_MEMBER_BYTES", "ShardError", "member_key", "tar_members"]
