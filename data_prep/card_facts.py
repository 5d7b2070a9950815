"""What a dataset card is made from: one pass over every split of a data set, and the lists that lie beside them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from clip_med.data.counts import FieldCounts
from clip_med.data.sample import VOLUME_SUFFIX, Sample
from clip_med.data.shards import ShardError, ShardSet
from clip_med.data.volume import decode_volume
from data_prep.rejections import REJECTED_FILE

_ORDER: Final = ("train", "val", "test")


@dataclass(kw_only=True)
class Part:
    """One split: counts of its samples, and digests by which it is compared with the others.

    Attributes:
        sources: dataset to licence and what became of its captions, as `dataset.json` says.
        groups: samples per hashed patient or case.
        files: images per digest of their bytes.
        removed: samples that `data dedup` left out, per kind; None where no list of it lies beside.
    """

    name: str
    shards: ShardSet
    sources: Mapping[str, Mapping[str, str]]
    removed: Mapping[str, int] | None
    fields: FieldCounts = field(default_factory=FieldCounts)
    groups: Counter[str] = field(default_factory=Counter)
    files: Counter[bytes] = field(default_factory=Counter)
    unlabelled: int = 0


@dataclass(kw_only=True)
class Facts:
    """A whole data set.

    Attributes:
        source: kind and SHA-256 of the source, if a source of clip-med wrote the folder.
        rejected: reason to rows that are in no shard; None without a list of them.
        kinds: captions per kind, "not stated" where samples say none.
        captions: how often each caption occurs, by digest.
        words, characters: captions per length.
        sizes: images per (width, height), as stored; of a volume the first two axes.
        formats: images per (suffix, "grey", "colour" or "volume").
    """

    name: str
    parts: list[Part]
    source: tuple[str, str] | None
    rejected: Mapping[str, int] | None
    kinds: Counter[str] = field(default_factory=Counter)
    captions: Counter[bytes] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    characters: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    formats: Counter[tuple[str, str]] = field(default_factory=Counter)


def gather(folder: Path, *, on_progress: Callable[[int, int], None] | None = None) -> Facts:
    """Read every sample of a shard set, or of all sets that lie in a folder; images are measured, not decoded.

    Raises:
        ShardError: no shard set there, or a damaged one.
        ValueError: an image that cannot be measured, by shard and key.
    """
    facts = Facts(
        name=folder.resolve().name,
        parts=[_part(path) for path in _split_folders(folder)],
        source=_source(folder),
        rejected=_count_lines(folder / REJECTED_FILE, lambda line: line["reason"]),
    )
    total = sum(len(part.shards) for part in facts.parts)
    done = 0
    for part in facts.parts:
        for index in range(len(part.shards)):
            _add(facts, part, part.shards.read(index), part.shards.tar(index))
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    return facts


def _split_folders(folder: Path) -> list[Path]:
    if (folder / "dataset.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/dataset.json"))
    if not found:
        raise ShardError(f"{folder}: neither a shard set nor a folder of them (no dataset.json)")
    return sorted(found, key=lambda path: _ORDER.index(path.name) if path.name in _ORDER else len(_ORDER))


def _part(folder: Path) -> Part:
    shards = ShardSet.open(folder)
    document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return Part(
        name=folder.resolve().name,
        shards=shards,
        sources=document.get("sources", {}),
        removed=_count_lines(
            _beside(folder, "removed"),
            lambda line: f"{line['kind']} {'against another set' if line['against'] else 'within'}",
        ),
    )


def _beside(folder: Path, name: str) -> Path:
    place = folder.resolve()
    return place.with_name(f"{place.name}.{name}.jsonl")


def _count_lines(file: Path, name: Callable[[dict[str, Any]], str]) -> dict[str, int] | None:
    """How often each name occurs in a list of JSON lines; None if there is no list."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as lines:
        counted = Counter(name(json.loads(line)) for line in lines)
    return dict(sorted(counted.items()))


def _source(folder: Path) -> tuple[str, str] | None:
    """Kind and digest from the settings file of a source."""
    for file in sorted(folder.glob("*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(document, dict) and "source_sha256" in document:
            return file.stem, str(document["source_sha256"])
    return None


def _add(facts: Facts, part: Part, sample: Sample, tar: str) -> None:
    part.fields.add(sample)
    part.groups[sample.group] += 1
    part.files[hashlib.blake2b(b"".join(image for _, image in sample.images), digest_size=16).digest()] += 1
    part.unlabelled += not sample.labels
    facts.kinds.update(sample.caption_kinds or ("not stated",) * len(sample.captions))
    for caption in sample.captions:
        facts.captions[hashlib.blake2b(caption.encode(), digest_size=16).digest()] += 1
        facts.words[len(caption.split())] += 1
        facts.characters[len(caption)] += 1
    where = f"{tar}: {sample.key}"
    if sample.image_suffix == VOLUME_SUFFIX:
        volume = decode_volume(sample.image, source=where)
        facts.sizes[volume.shape[0], volume.shape[1]] += 1
        facts.formats[sample.image_suffix, "volume"] += 1
        return
    for suffix, data in sample.images:
        _add_image(facts, suffix, data, where)


def _add_image(facts: Facts, suffix: str, data: bytes, where: str) -> None:
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            facts.sizes[image.size] += 1
            facts.formats[suffix, "grey" if image.mode in ("1", "L", "LA", "I;16") else "colour"] += 1
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: the image cannot be measured: {error}") from error


__all__ = ["Facts", "Part", "gather"]
