"""The sample: images, captions and a fixed list of coded fields, as WebDataset members. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

IMAGE_SUFFIXES: Final = ("jpg", "png", "jpeg", "webp")
# A volume, as NumPy writes arrays; see `clip_med.data.volume`.
VOLUME_SUFFIX: Final = "npy"
TEXT_SUFFIXES: Final = ("json", "txt")
# What a caption is: a whole report, its impression, a sentence made from a label, knowledge about the finding, what the
# file says of the acquisition, or something else.
CAPTION_KINDS: Final = ("report", "impression", "label", "knowledge", "metadata", "other")
_KINDS: Final = frozenset(CAPTION_KINDS)
_TEXT_FIELDS: Final = ("modality", "dataset", "group", "split")
_OPTIONAL_TEXT: Final = ("view", "study")
_JSON: Final = json.JSONDecoder()
_NUMBERED: Final = re.compile(rf"(0|[1-9][0-9]{{0,5}})\.({'|'.join(IMAGE_SUFFIXES)})")
_NOT_IN_KEYS: Final = re.compile(r"[./\\\s]")
# White space, byte order marks, and the zeros with which some programs pad.
_AROUND_CAPTIONS: Final = "\ufeff\0" + "".join(c for c in map(chr, range(0x3001)) if c.isspace())


class SampleError(ValueError):
    """A sample that breaks the contract; the message names its source, its key and the field."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image, study or volume with its captions and coded fields; the only fields that a shard may carry.

    A study has several images: `image` is its first, `more_images` holds suffix and bytes of the others, and `views`
    names one view for each of all (or is empty: unknown). A volume has the suffix "npy" and no other image.

    `key` and `group` are keyed hashes, never identifiers from the source. `captions` holds at least one non-empty
    string, `caption_kinds` one of `CAPTION_KINDS` for each (or is empty: unknown); `labels` may be empty.
    `spacing_mm` is the pixel spacing (rows, columns) or voxel spacing (first to third axis) in millimetres.

    Raises:
        SampleError: names the key and the field that is missing or malformed.

    Example:
        >>> Sample(key="k1", image=b"...", image_suffix="jpg", captions=("A normal retina.",), modality="fundus",
        ...        dataset="demo", group="g1", split="train").members()["txt"]
        b'A normal retina.'
    """

    key: str
    image: bytes
    image_suffix: str
    captions: tuple[str, ...]
    caption_kinds: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    modality: str
    dataset: str
    group: str
    split: str
    spacing_mm: tuple[float, ...] | None = None
    view: str | None = None
    study: str | None = None
    provenance: Mapping[str, str] | None = None
    more_images: tuple[tuple[str, bytes], ...] = ()
    views: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # webdataset ends a key at its first dot and a member name at its first slash.
        if not self.key or _NOT_IN_KEYS.search(self.key):
            raise SampleError(f"key {self.key!r}: must be non-empty and without dots, slashes and white space")
        if self.image_suffix not in IMAGE_SUFFIXES and self.image_suffix != VOLUME_SUFFIX:
            valid = ", ".join((*IMAGE_SUFFIXES, VOLUME_SUFFIX))
            raise SampleError(f"{self.key}: image_suffix {self.image_suffix!r}: one of {valid}")
        if self.more_images or self.views:
            self._check_study()
        if not self.captions or not all(map(str.strip, self.captions)):
            raise SampleError(f"{self.key}: captions must be one or more non-empty strings, got {self.captions!r}")
        if self.caption_kinds and len(self.caption_kinds) != len(self.captions):
            raise SampleError(
                f"{self.key}: caption_kinds must name one kind for each of the {len(self.captions)} captions, "
                f"got {self.caption_kinds!r}"
            )
        if not _KINDS.issuperset(self.caption_kinds):
            unknown = sorted(set(self.caption_kinds) - _KINDS)
            raise SampleError(f"{self.key}: caption_kinds: {unknown[0]!r} is none of {', '.join(CAPTION_KINDS)}")
        if not all(map(str.strip, self.labels)):
            raise SampleError(f"{self.key}: labels must be non-empty strings, got {self.labels!r}")
        if not (self.modality.strip() and self.dataset.strip() and self.group.strip() and self.split.strip()):
            empty = next(name for name in _TEXT_FIELDS if not getattr(self, name).strip())
            raise SampleError(f"{self.key}: {empty} is empty")

    @property
    def images(self) -> tuple[tuple[str, bytes], ...]:
        """Suffix and bytes of every image, or of the volume."""
        return (self.image_suffix, self.image), *self.more_images

    def one(self, number: int) -> Sample:
        """The sample with image `number` of its study alone, and that image's view."""
        suffix, image = self.images[number]
        view = self.views[number] if self.views else self.view
        return replace(self, image=image, image_suffix=suffix, view=view, more_images=(), views=())

    def _check_study(self) -> None:
        suffixes = [suffix for suffix, _ in self.images]
        if not self.more_images:
            raise SampleError(f"{self.key}: views are of a study of several images, {self.views!r} has one: use view")
        if not set(suffixes).issubset(IMAGE_SUFFIXES):
            raise SampleError(f"{self.key}: the images of a study are {', '.join(IMAGE_SUFFIXES)}, got {suffixes}")
        if self.views and (len(self.views) != len(suffixes) or not all(map(str.strip, self.views))):
            raise SampleError(
                f"{self.key}: views must name one view for each of the {len(suffixes)} images, got {self.views!r}"
            )

    def members(self) -> dict[str, bytes]:
        """The sample's files by suffix, in tar order: images, `json`, and `txt` with the first caption.

        A single image is `jpg` (`png`, ...), a volume `npy`; the images of a study are `0.jpg`, `1.jpg`, ...

        Raises:
            SampleError: an image is empty.
        """
        if not all(data for _, data in self.images):
            raise SampleError(f"{self.key}: the image is empty (0 bytes)")
        fields: dict[str, Any] = {
            "captions": list(self.captions),
            "labels": list(self.labels),
            **{name: getattr(self, name) for name in _TEXT_FIELDS},
        }
        if self.caption_kinds:
            fields["caption_kinds"] = list(self.caption_kinds)
        if self.spacing_mm is not None:
            fields["spacing_mm"] = list(self.spacing_mm)
        if self.views:
            fields["views"] = list(self.views)
        if self.provenance is not None:
            fields["provenance"] = dict(self.provenance)
        fields |= {name: getattr(self, name) for name in _OPTIONAL_TEXT if getattr(self, name) is not None}
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        numbered = {f"{number}.{suffix}": data for number, (suffix, data) in enumerate(self.images)}
        images = numbered if self.more_images else {self.image_suffix: self.image}
        return {**images, "json": text.encode(), "txt": self.captions[0].encode()}


def keyed_hash(secret: bytes, *parts: str, length: int = 24) -> str:
    """Hexadecimal BLAKE2b keyed with `secret` (1 to 64 bytes) of the parts, `length` digits (4 bits each).

    Each part is preceded by its length, so that ("ab", "c") and ("a", "bc") differ.

    Raises:
        ValueError: `secret` or `length` (2 to 128, even) out of range.

    Example:
        >>> keyed_hash(b"secret", "patient", "7") == keyed_hash(b"secret", "patient7")
        False
    """
    if not 1 <= len(secret) <= 64:
        raise ValueError(f"secret must have 1 to 64 bytes, got {len(secret)}")
    if not 2 <= length <= 128 or length % 2:
        raise ValueError(f"length must be an even number of digits from 2 to 128, got {length}")
    digest = hashlib.blake2b(key=secret, digest_size=length // 2)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def image_suffixes(suffixes: Iterable[str]) -> list[str]:
    """Those of a sample's suffixes that are its images: one image, else those of a study in order, else a volume.

    Example:
        >>> image_suffixes(["json", "1.png", "0.jpg", "npy"]), image_suffixes(["npy", "jpg"]), image_suffixes(["json"])
        (['0.jpg', '1.png'], ['jpg'], [])
    """
    present = set(suffixes)
    if single := next((suffix for suffix in IMAGE_SUFFIXES if suffix in present), None):
        return [single]
    numbered = [match for match in map(_NUMBERED.fullmatch, present) if match]
    in_order = [match[0] for match in sorted(numbered, key=lambda match: (int(match[1]), match[2]))]
    return in_order or ([VOLUME_SUFFIX] if VOLUME_SUFFIX in present else [])


def sample_from_members(key: str, members: Mapping[str, bytes], source: str) -> Sample:
    """Build a sample from its files; reads our own members and those of open_clip and img2dataset.

    JSON without `captions` was written by others. The captions are then `txt`, as open_clip reads it, or else `caption`
    or `text` of the JSON (a string or a list), without the white space around them. Of its other fields those that a
    sample knows are taken where they have the right type, and none else (no `url`, `exif`, `sha256`). What is missing
    is "unknown", and the group is the key, so that no two samples share one.

    Raises:
        SampleError: no image or no caption, JSON that is damaged, a field of ours (or anybody's `group`) of the wrong
            type, text that is not UTF-8; names `source`.

    Example:
        >>> sample_from_members("7", {"png": b"...", "txt": b"A cyst."}, "a.tar").captions
        ('A cyst.',)
    """
    suffix = next(filter(members.__contains__, IMAGE_SUFFIXES), None)
    more: list[tuple[str, bytes]] = []
    try:
        image = b"" if suffix is None else members[suffix]
        if suffix is None:
            (suffix, image), *more = _study_or_volume(members)
        fields = _json_fields(members["json"]) if "json" in members else {}
        if fields.get("captions") is None:
            fields = _fields_of_others(fields, members.get("txt"))
        sample = Sample(
            key=key,
            image=image,
            image_suffix=suffix,
            captions=_strings(fields, "captions"),
            caption_kinds=_strings(fields, "caption_kinds"),
            labels=_strings(fields, "labels"),
            modality=_text(fields, "modality") or "unknown",
            dataset=_text(fields, "dataset") or "unknown",
            group=_text(fields, "group") or key,
            split=_text(fields, "split") or "unknown",
            spacing_mm=_numbers(fields, "spacing_mm"),
            view=_text(fields, "view"),
            study=_text(fields, "study"),
            provenance=_mapping(fields, "provenance"),
        )
        if more:
            sample = replace(sample, more_images=tuple(more), views=_strings(fields, "views"))
        if b"\\" in members.get("json", b""):
            # JSON can spell half a character ("\\ud800"), which no tokenizer, hash or terminal takes.
            "".join(
                (*sample.captions, *sample.labels, sample.modality, sample.dataset, sample.group, sample.split)
            ).encode()
        return sample
    except UnicodeError as error:
        raise SampleError(f"{source}: {key}: text is not UTF-8: {error}") from error
    except SampleError as error:
        # Errors of the contract begin with the key, those of a field do not.
        text = str(error)
        raise SampleError(f"{source}: {text if text.startswith(f'{key}: ') else f'{key}: {text}'}") from error


def _study_or_volume(members: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """Suffix and bytes of every image of a study, or of a volume."""
    names = image_suffixes(members)
    if not names:
        found = ", ".join(members) or "nothing"
        raise SampleError(f"no image among its members ({found}); expected {', '.join(IMAGE_SUFFIXES)}")
    if names == [VOLUME_SUFFIX]:
        return [(VOLUME_SUFFIX, members[VOLUME_SUFFIX])]
    numbers = [int(name.partition(".")[0]) for name in names]
    if numbers != list(range(len(names))):
        raise SampleError(f"the images of a study must be numbered from 0 without gaps, got {', '.join(names)}")
    return [(name.partition(".")[2], members[name]) for name in names]


def _json_fields(data: bytes) -> dict[str, Any]:
    try:
        fields = _parsed(data.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, and 10,000 brackets
        raise SampleError(f"json: damaged: {error}") from error
    if not isinstance(fields, dict):
        raise SampleError(f"json: expected an object, got {type(fields).__name__}")
    return cast("dict[str, Any]", fields)


def _parsed(text: str) -> object:
    """json.loads; text without white space around it, as we write it, in two thirds of the time."""
    if text[:1] == "{":
        value, end = _JSON.raw_decode(text)
        if end == len(text):
            return value
    return _JSON.decode(text)


def _fields_of_others(fields: Mapping[str, Any], txt: bytes | None) -> dict[str, Any]:
    """Our fields from JSON that others wrote."""
    readers = {
        **dict.fromkeys(("modality", "dataset", "split", *_OPTIONAL_TEXT), _text),
        "labels": _strings,
        "spacing_mm": _numbers,
        "provenance": _mapping,
    }
    ours: dict[str, Any] = {"captions": _captions_of_others(fields, txt)}
    if fields.get("group"):
        # A group that were passed over would let images of one patient into both parts of a split.
        ours["group"] = fields["group"]
    for name, read in readers.items():
        try:
            value = read(fields, name)
        except SampleError:
            continue
        if value and (not isinstance(value, str) or value.strip()):
            ours[name] = fields[name]
    return ours


def _captions_of_others(fields: Mapping[str, Any], txt: bytes | None) -> list[str]:
    """The first of `txt`, `caption` and `text` that says anything."""
    texts = {
        "txt": txt if txt is None else txt.decode("utf-8"),
        "caption": fields.get("caption"),
        "text": fields.get("text"),
    }
    found: dict[str, object] = {name: value for name, value in texts.items() if value is not None}
    for name, value in found.items():
        items = cast(list[object], value) if isinstance(value, list) else [value]
        # img2dataset passes on what its table held where a caption should be: NaN, numbers.
        captions = [item.strip(_AROUND_CAPTIONS) for item in items if isinstance(item, str)]
        if any("\0" in caption for caption in captions):
            raise SampleError(f"{name} holds NUL characters: not text, or not UTF-8")
        if captions := [caption for caption in captions if caption]:
            return captions
    if not found:
        raise SampleError("no caption: captions must be one or more, in txt or in JSON as captions, caption or text")
    raise SampleError(f"empty caption: no text in {', '.join(found)}; captions must be one or more non-empty strings")


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise SampleError(f"json: {name} must be a string, got {value!r}")
    return value


def _strings(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value: object = fields.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    # Types in quotes: without, each call makes them anew, half a microsecond of the 16 that a sample takes.
    if not isinstance(value, list) or not _all_strings(cast("list[object]", value)):
        raise SampleError(f"json: {name} must be a list of strings, got {value!r}")
    return tuple(cast("list[str]", value))


def _numbers(fields: Mapping[str, Any], name: str) -> tuple[float, ...] | None:
    value: object = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        isinstance(item, int | float) and abs(item) <= sys.float_info.max for item in cast(list[object], value)
    ):
        raise SampleError(f"json: {name} must be a list of finite numbers, got {value!r}")
    return tuple(float(item) for item in cast(list[float], value))


def _mapping(fields: Mapping[str, Any], name: str) -> dict[str, str] | None:
    value: object = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, dict) or not _all_strings(cast(dict[str, object], value).values()):
        raise SampleError(f"json: {name} must be an object of strings, got {value!r}")
    return cast(dict[str, str], value)


def _all_strings(values: Iterable[Any]) -> bool:
    """Whether each is a string: joining them asks that faster than a comparison of types, once per sample and field."""
    try:
        "".join(values)
    except TypeError:
        return False
    return True


__all__ = [
    "CAPTION_KINDS",
    "IMAGE_SUFFIXES",
    "TEXT_SUFFIXES",
    "VOLUME_SUFFIX",
    "Sample",
    "SampleError",
    "image_suffixes",
    "keyed_hash",
    "sample_from_members",
]
