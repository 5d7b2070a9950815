"""The index of a shard: every member of every sample located and checksummed. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from clip_med.data.sample import IMAGE_SUFFIXES
from clip_med.data.tar import ShardError, tar_members

INDEX_VERSION: Final = 1


@dataclass(frozen=True)
class Member:
    """One file of a sample: its suffix, where its bytes lie in the tar, and their CRC-32."""

    suffix: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class ShardIndex:
    """What one tar holds: size and SHA-256 of the file, and for each key, in file order, its members."""

    name: str
    size: int
    sha256: str
    samples: tuple[tuple[str, tuple[Member, ...]], ...]

    def to_json(self) -> str:
        """The sidecar file's text."""
        table = [[key, [[m.suffix, m.offset, m.size, m.crc32] for m in members]] for key, members in self.samples]
        document = {
            "version": INDEX_VERSION,
            "name": self.name,
            "size": self.size,
            "sha256": self.sha256,
            "count": len(self.samples),
            "samples": table,
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def read(cls, path: Path) -> ShardIndex:
        """Read a sidecar file.

        Raises:
            ShardError: missing, damaged, of another version, or its count differs from its table.
        """
        try:
            document = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
            if document["version"] != INDEX_VERSION:
                raise ShardError(f"{path}: index version {document['version']}, expected {INDEX_VERSION}")
            samples = tuple(
                (str(key), tuple(Member(str(s), int(o), int(n), int(c)) for s, o, n, c in members))
                for key, members in document["samples"]
            )
            index = cls(str(document["name"]), int(document["size"]), str(document["sha256"]), samples)
            count = int(document["count"])
        except ShardError:
            raise
        except FileNotFoundError as error:
            raise ShardError(f"{path}: no index; run `clip-med data index {path.parent}`") from error
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{path}: damaged index ({error!r}); run `clip-med data index {path.parent}`") from error
        if count != len(samples):
            raise ShardError(f"{path}: says {count} samples and lists {len(samples)}; run `clip-med data index` again")
        return index


def index_path(tar: Path) -> Path:
    """`X.tar.idx.json` beside `X.tar`."""
    return tar.with_name(tar.name + ".idx.json")


def index_shard(tar: Path, *, write: bool = True) -> ShardIndex:
    """Scan a tar into its index; `write` also stores it beside the tar.

    Raises:
        ShardError: compressed, damaged or truncated tar; links, directories or extended headers; a member without
            key or suffix, a duplicate member, parts of one key that are not adjacent, a sample without image or
            without text, a member over 256 MiB. The message names file and offset.
    """
    groups: dict[str, dict[str, Member]] = {}
    last = None
    with tar.open("rb") as file:
        for name, offset, size in tar_members(file, tar):
            key, _, suffix = os.path.basename(name).partition(".")
            if not key or not suffix:
                raise ShardError(f"{tar}: offset {offset}: member {name!r} is not named KEY.suffix")
            if key in groups and key != last:
                raise ShardError(
                    f"{tar}: offset {offset}: the parts of key {key!r} are not adjacent, or the key repeats"
                )
            members = groups.setdefault(key, {})
            if suffix in members:
                raise ShardError(f"{tar}: offset {offset}: duplicate member {name!r}")
            file.seek(offset)
            members[suffix] = Member(suffix, offset, size, zlib.crc32(file.read(size)))
            last = key
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for key, members in groups.items():
        if not any(suffix in members for suffix in IMAGE_SUFFIXES):
            raise ShardError(f"{tar}: sample {key!r} has no image, only {', '.join(members)}")
        if not ("json" in members or "txt" in members):
            raise ShardError(f"{tar}: sample {key!r} has no json or txt, only {', '.join(members)}")
    if not groups:
        raise ShardError(f"{tar}: holds no samples")
    samples = tuple((key, tuple(members.values())) for key, members in groups.items())
    index = ShardIndex(tar.name, tar.stat().st_size, digest, samples)
    if write:
        write_atomically(index_path(tar), index.to_json())
    return index


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part: temporary name, fsync, rename."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


__all__ = ["Member", "ShardError", "ShardIndex", "index_path", "index_shard", "write_atomically"]
