"""The index of a shard: every member of every sample located and checksummed. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from clip_med.data.sample import (
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    VOLUME_SUFFIX,
    SampleError,
    image_suffixes,
    sample_from_members,
)
from clip_med.data.tar import ShardError, member_key, tar_members
from clip_med.data.volume import HEADER_BYTES, check_volume

INDEX_VERSION: Final = 2
_CHECKSUM: Final = ',"crc32":'
# Of each image nothing is kept while its shard is indexed, of a volume the header.
_KEPT: Final = {VOLUME_SUFFIX: HEADER_BYTES}


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample: its suffix, where its bytes lie in the tar, and their CRC-32."""

    suffix: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a shard: what has to be known of it before it is read.

    `label` is its first label, None without labels. `members` are in file order.
    """

    key: str
    members: tuple[Member, ...]
    modality: str
    group: str
    label: str | None


@dataclass(frozen=True)
class ShardIndex:
    """What one tar holds: size and SHA-256 of the file, its samples in file order, and those left out with reasons."""

    name: str
    size: int
    sha256: str
    samples: tuple[Entry, ...]
    excluded: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """The sidecar file's text; modality and label, of few distinct values, are numbers into lists."""
        document = {
            "version": INDEX_VERSION,
            "name": self.name,
            "size": self.size,
            "sha256": self.sha256,
            "count": len(self.samples),
            "samples": [[e.key, [[m.suffix, m.offset, m.size, m.crc32] for m in e.members]] for e in self.samples],
            "groups": [entry.group for entry in self.samples],
            "modalities": _coded([entry.modality for entry in self.samples]),
            "labels": _coded([entry.label for entry in self.samples]),
            "excluded": [list(pair) for pair in self.excluded],
        }
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        # Groups and modalities decide what is drawn and are not compared with the samples: a flipped bit must show.
        return f"{text[:-1]}{_CHECKSUM}{zlib.crc32(text.encode())}}}"

    @classmethod
    def from_json(cls, data: bytes, source: str) -> ShardIndex:
        """Read the text of a sidecar file; `source` names it in errors.

        Raises:
            ShardError: damaged, of another version, or its count differs from its table.
        """
        mend = "run `clip-med data index` on its folder"
        try:
            document = cast(dict[str, Any], json.loads(data))
            text = data[: data.rindex(_CHECKSUM.encode())] + b"}"
            if document["version"] != INDEX_VERSION:
                raise ShardError(f"{source}: index version {document['version']}, expected {INDEX_VERSION}; {mend}")
            if document["crc32"] != zlib.crc32(text):
                raise ShardError(f"{source}: damaged index (its CRC-32 differs); {mend}")
            columns = (
                document["samples"],
                _decoded(document["modalities"]),
                document["groups"],
                _decoded(document["labels"]),
            )
            samples = tuple(
                Entry(
                    str(key),
                    tuple(Member(str(s), int(o), int(n), int(c)) for s, o, n, c in members),
                    str(modality),
                    str(group),
                    None if label is None else str(label),
                )
                for (key, members), modality, group, label in zip(*columns, strict=True)
            )
            excluded = tuple((str(key), str(reason)) for key, reason in document["excluded"])
            index = cls(str(document["name"]), int(document["size"]), str(document["sha256"]), samples, excluded)
            count = int(document["count"])
        except ShardError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ShardError(f"{source}: damaged index ({error!r}); {mend}") from error
        if count != len(samples):
            raise ShardError(f"{source}: says {count} samples and lists {len(samples)}; {mend}")
        return index


def index_name(tar: str) -> str:
    """`X.tar.idx.json`, which stands beside `X.tar`."""
    return tar + ".idx.json"


def index_path(tar: Path) -> Path:
    """The same for a path."""
    return tar.with_name(index_name(tar.name))


def index_shard(tar: Path, *, write: bool = True, exclude_bad: bool = False) -> ShardIndex:
    """Scan a tar into its index; `write` also stores it beside the tar.

    Every member is read once for its CRC-32, and every sample's text is parsed; images are not decoded, of volumes the
    header is read.

    Args:
        exclude_bad: leave out samples without image, caption or readable fields, and list them with the reason,
            instead of refusing the tar.

    Raises:
        ShardError: compressed, damaged or truncated tar; links; a member without key or suffix, a duplicate member,
            parts of one key that are not adjacent, a member over 256 MiB. The message names file and offset. Also,
            without `exclude_bad`, a sample that breaks the contract; the message names file and key.
    """
    groups: dict[str, dict[str, Member]] = {}
    texts: dict[str, dict[str, bytes]] = {}
    stems: dict[str, str] = {}
    last = None
    with tar.open("rb") as file:
        for name, offset, size in tar_members(file, tar):
            named = member_key(name)
            if named is None:
                continue
            key, suffix = named
            if not key or not suffix:
                raise ShardError(f"{tar}: offset {offset}: member {name!r} is not named KEY.suffix")
            if key in groups and key != last:
                raise ShardError(
                    f"{tar}: offset {offset}: the parts of key {key!r} are not adjacent, or the key repeats"
                )
            stem = name[: -len(suffix) - 1]
            if stems.setdefault(key, stem) != stem:
                raise ShardError(f"{tar}: offset {offset}: {name!r} and {stems[key]!r} would both have the key {key!r}")
            members = groups.setdefault(key, {})
            if suffix in members:
                raise ShardError(f"{tar}: offset {offset}: duplicate member {name!r}")
            file.seek(offset)
            data = file.read(size)
            members[suffix] = Member(suffix, offset, size, zlib.crc32(data))
            texts.setdefault(key, {})[suffix] = data if suffix in TEXT_SUFFIXES else data[: _KEPT.get(suffix, 0)]
            last = key
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not groups:
        raise ShardError(f"{tar}: holds no samples")
    samples, excluded = _entries(tar, groups, texts, exclude_bad)
    index = ShardIndex(tar.name, tar.stat().st_size, digest, tuple(samples), tuple(excluded))
    if write:
        write_atomically(index_path(tar), index.to_json())
    return index


def _entries(
    tar: Path, groups: dict[str, dict[str, Member]], texts: dict[str, dict[str, bytes]], exclude_bad: bool
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The samples of a tar, and key and reason of each that is left out."""
    samples: list[Entry] = []
    excluded: list[tuple[str, str]] = []
    for key, members in groups.items():
        try:
            images = (*IMAGE_SUFFIXES, *image_suffixes(members))
            if empty := [m.suffix for m in members.values() if m.suffix in images and not m.size]:
                raise SampleError(f"{tar}: {key}: the image ({empty[0]}) is empty (0 bytes)")
            sample = sample_from_members(key, texts[key], str(tar))
            if sample.image_suffix == VOLUME_SUFFIX:
                _check_volume(members[VOLUME_SUFFIX], sample.image, f"{tar}: {key}")
        except SampleError as error:
            if not exclude_bad:
                raise ShardError(f"{error}; `clip-med data index --exclude-bad` leaves such samples out") from error
            excluded.append((key, str(error)))
            continue
        label = sample.labels[0] if sample.labels else None
        samples.append(Entry(key, tuple(members.values()), sample.modality, sample.group, label))
    if not samples:
        raise ShardError(f"{tar}: none of its {len(groups)} samples can be used; the first: {excluded[0][1]}")
    return samples, excluded


def _check_volume(member: Member, beginning: bytes, source: str) -> None:
    try:
        check_volume(beginning, member.size, source=source)
    except ValueError as error:
        raise SampleError(str(error)) from error


def _coded(values: list[Any]) -> list[list[Any]]:
    """Distinct values, and the number of each value among them."""
    numbers: dict[Any, int] = {}
    codes = [numbers.setdefault(value, len(numbers)) for value in values]
    return [list(numbers), codes]


def _decoded(column: Any) -> list[Any]:
    values, codes = column
    if any(code < 0 for code in codes):
        raise ValueError("a negative number in a column")
    return [values[code] for code in codes]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part: temporary name, fsync, rename."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


__all__ = [
    "Entry",
    "Member",
    "ShardError",
    "ShardIndex",
    "index_name",
    "index_path",
    "index_shard",
    "sha256_of",
    "write_atomically",
]
