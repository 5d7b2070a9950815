"""What a source says of each sample before its pixels are opened, and what becomes of it: a task or a rejection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from clip_med.config import PositiveInt, config, nearest
from clip_med.data.sample import Sample, keyed_hash
from clip_med.knowledge.load import load_base
from data_prep.captions import CaptionWriter, Templates, Written
from data_prep.scrub import Scrubber

SPLIT_NAMES: Final = ("train", "val", "test")
BurnedIn = Literal["ignore", "quarantine", "blacken"]
_SPLIT: Final = re.compile(r"\w[\w+-]{0,63}")


@config
class ShardSettings:
    """What every source can be told about the shards that it becomes."""

    modality: str | None = None
    dataset: str | None = None
    split: str | None = None
    """For every sample, whatever the source says."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of train, val and test among the groups for which the source names no split; a group is never divided."""
    stratify: bool = False
    """Give every label these shares, as far as whole groups allow; else a split depends on the group alone."""
    splits_from: Path | None = None
    """Output of an earlier run with the same secret, whose groups keep their splits."""
    overlap: Literal["refuse", "keep", "drop"] = "refuse"
    """What becomes of a group that the source itself puts into several splits. drop: its samples stay in the last of
    train, val and test only."""
    templates: Path | None = None
    """Caption templates for samples with a label only; None: those of the package."""
    write: tuple[Written, ...] = ("label",)
    """Captions that are written from labels and coded fields, for samples that have none."""
    write_always: bool = False
    """Also for samples that have captions; theirs come first."""
    label_set: tuple[str, ...] = ()
    """All labels that were looked for; those that an image lacks are known to be absent. One name of a group of the
    knowledge base stands for its members."""
    max_side: PositiveInt | None = None
    """Scale larger images down to this, in pixels."""
    samples_per_shard: PositiveInt = 1000
    burned_in: BurnedIn = "ignore"
    """What becomes of images with text in their pixels. ignore: nobody looks. quarantine: they are left out and listed.
    blacken: the text is painted over."""
    scrub: bool = True
    """Replace what identifies people in captions, as far as rules find it. Off only where texts are public."""
    presidio: str | None = None
    """Installed spaCy pipeline, or its folder, with which Presidio looks for names and places that the rules leave."""

    def __post_init__(self) -> None:
        """Refuse what would fail at the first sample."""
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be three numbers from 0 that sum to 1, got {self.fractions}")
        if self.split is not None and not _SPLIT.fullmatch(self.split):
            raise ValueError(f"split {self.split!r} cannot be the name of a folder (letters, digits, _, + and -)")
        if not self.write or len(set(self.write)) != len(self.write):
            raise ValueError(f"write must be one or more different kinds, got {list(self.write)}")
        if self.presidio is not None and not self.scrub:
            raise ValueError("presidio is for captions that are scrubbed, and scrub is off")
        for name in ("modality", "dataset", "presidio"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample as its source names it, still with identifiers; absent texts are empty.

    Attributes:
        row: counts from 1 in the order of the source.
        path: where a person finds it again; stands in `rejected.jsonl`, never in a shard.
        identity: unique within the dataset; hashed to the key.
        group: patient or case; empty: the sample is a group of its own.
        more_paths: the other images of a study, in the order of its `views` (which name one for each image, or none).
        captions: empty: written from the labels by templates.
        coded: the source wrote the captions itself from coded fields, so that they are not scrubbed.
        absent: findings that are known not to be there; only captions are written from them.
        facts: see `data_prep.metadata_words`; only captions are written from them.
        seeds: names and numbers of the patient, for the scrubber.
        where: what `open_image` of the source needs beside the path (a frame, a slice, a place in an array).
    """

    row: int
    path: str
    identity: str
    more_paths: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    caption_kinds: tuple[str, ...] = ()
    coded: bool = False
    labels: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    modality: str = ""
    dataset: str = ""
    group: str = ""
    split: str = ""
    view: str = ""
    study: str = ""
    licence: str = ""
    spacing_mm: tuple[float, ...] | None = None
    provenance: Mapping[str, str] | None = None
    seeds: tuple[str, ...] = ()
    where: Mapping[str, str | int] = field(default_factory=dict[str, str | int])


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A record that is in no shard: `reason` is a fixed word, `detail` the rest; `split` where its image was opened."""

    row: int
    path: str
    reason: str
    detail: str = ""
    split: str | None = None

    def sentence(self) -> str:
        """For error messages."""
        return f"row {self.row}: {self.path}: {self.reason}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A record whose image is still to be opened; identifiers are hashed, `path` and `where` are for the source.

    `split` is empty until a split is drawn for the group; see `data_prep.splits`.
    """

    row: int
    path: str
    where: Mapping[str, str | int]
    key: str
    captions: tuple[str, ...]
    caption_kinds: tuple[str, ...]
    labels: tuple[str, ...]
    modality: str
    dataset: str
    group: str
    split: str
    view: str | None
    study: str | None
    licence: str
    spacing_mm: tuple[float, ...] | None
    provenance: Mapping[str, str] | None
    more_paths: tuple[str, ...] = ()
    views: tuple[str, ...] = ()

    def sample(
        self,
        image: bytes,
        suffix: str,
        more: tuple[tuple[str, bytes], ...] = (),
        *,
        found: Mapping[str, str] | None = None,
    ) -> Sample:
        """The sample with its image, or the images of its study; everything else is as planned.

        Args:
            found: what only the pixels said; joins the provenance.
        """
        return Sample(
            key=self.key,
            image=image,
            image_suffix=suffix,
            captions=self.captions,
            caption_kinds=self.caption_kinds,
            labels=self.labels,
            modality=self.modality,
            dataset=self.dataset,
            group=self.group,
            split=self.split,
            spacing_mm=self.spacing_mm,
            view=self.view,
            study=self.study,
            provenance={**(self.provenance or {}), **found} if found else self.provenance,
            more_images=more,
            views=self.views,
        )

    def rejected(self, reason: str, detail: str = "") -> Rejection:
        """Its image cannot be used."""
        return Rejection(row=self.row, path=self.path, reason=reason, detail=detail, split=self.split)


class Source(Protocol):
    """A place that samples come from; a picklable value, since worker processes get a copy.

    Attributes:
        kind: names the settings file in the output (`table` gives `table.json`).
        name: the dataset of records that name none, and the source in messages.
        settings: how records become shards.
        cheap: listing the records may be repeated for every split; else the list is kept in a temporary file.
    """

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> ShardSettings: ...
    @property
    def cheap(self) -> bool: ...

    def digest(self) -> str:
        """Changes when the source changes: what lies under one output must come from one source."""
        ...

    def records(self) -> Iterator[Record | Rejection]:
        """Every record in a fixed order, or why it is none."""
        ...

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """The image of a task as bytes and suffix ("jpg" or "png"), without metadata.

        Raises:
            RejectedImageError: with a fixed reason, and details.
            ImageError: the image does not decode.
            OSError: the file cannot be read.
        """
        ...


class RejectedImageError(ValueError):
    """An image that a source cannot use: a fixed reason and details."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def rejection_of(error: RejectedImageError | OSError, *, row: int, path: str) -> Rejection:
    """The line of a file that a source could not use while it listed its records."""
    reason, detail = (error.reason, error.detail) if isinstance(error, RejectedImageError) else unreadable(error)
    return Rejection(row=row, path=path, reason=reason, detail=detail)


def unreadable(error: OSError) -> tuple[str, str]:
    """Reason and detail of a file that the system does not give, without its path."""
    return "unreadable file", error.strerror or type(error).__name__


class Plan:
    """Every task or rejection of a source under one secret: a pure function of both, without a look at any image.

    Iterating lists the source from its start, one record in memory at a time (and a hash per record).
    """

    def __init__(self, source: Source, secret: bytes, templates: Mapping[str, Templates]) -> None:
        self._source = source
        self._settings = source.settings
        self._secret = secret
        self._scrubber = Scrubber(secret, source.settings.presidio)
        self._writer = CaptionWriter(templates, source.settings.write, secret)
        self._label_set = expanded_labels(source.settings.label_set)

    def __iter__(self) -> Iterator[Task | Rejection]:
        seen: set[int] = set()
        for record in self._source.records():
            if isinstance(record, Rejection):
                yield replace(record, path=_printable(record.path), detail=_printable(record.detail))
                continue
            if any(_printable(path) != path for path in (record.path, *record.more_paths)):
                # The names of files are bytes; hashes, JSON and terminals take text.
                yield Rejection(row=record.row, path=_printable(record.path), reason="name is not UTF-8")
                continue
            dataset = self._settings.dataset or record.dataset or self._source.name
            key = keyed_hash(self._secret, "key", dataset, record.identity)
            task = self._task(record, dataset, key)
            refused = _refused(record)
            if refused is None and not task.captions:
                kinds = " or ".join(self._settings.write)
                refused = ("no text", f"no caption, and nothing to write one of the kind {kinds} from")
            if refused is None and int(key, 16) in seen:
                refused = ("duplicate", "the same dataset and path in an earlier row")
            if refused is not None:
                yield Rejection(row=record.row, path=record.path, reason=refused[0], detail=refused[1])
                continue
            seen.add(int(key, 16))
            yield task

    def _task(self, record: Record, dataset: str, key: str) -> Task:
        settings = self._settings
        modality = settings.modality or record.modality or "unknown"
        group = keyed_hash(self._secret, "group", dataset, record.group or record.identity)
        captions = self._captions(record, key, group, modality)
        return Task(
            row=record.row,
            path=record.path,
            where=record.where,
            key=key,
            captions=tuple(captions),
            # A source that says no kinds has none for a part either.
            caption_kinds=tuple(captions.values()) if all(captions.values()) else (),
            labels=record.labels,
            modality=modality,
            dataset=dataset,
            group=group,
            split=settings.split or record.split,
            view=record.view or None,
            # A study number leads to a patient as surely as a patient number.
            study=keyed_hash(self._secret, "study", dataset, record.study) if record.study else None,
            licence=record.licence,
            spacing_mm=record.spacing_mm,
            provenance=record.provenance,
            more_paths=record.more_paths,
            views=record.views,
        )

    def _captions(self, record: Record, key: str, group: str, modality: str) -> dict[str, str]:
        """Caption to kind ("" where the source says none): those of the source, and those that are written."""
        seeds = (*record.seeds, record.group, record.study)
        scrub = self._settings.scrub and not record.coded

        def clean(text: str) -> str:
            return self._scrubber.scrub(text, group=group, seeds=seeds) if scrub else text

        kinds = record.caption_kinds or ("",) * len(record.captions)
        captions = {clean(text): kind for text, kind in zip(record.captions, kinds, strict=True)}
        if captions and not self._settings.write_always:
            return captions
        written = self._writer.write(
            record.labels,
            modality,
            absent=record.absent or [label for label in self._label_set if label not in record.labels],
            # A site is free text.
            facts={name: clean(fact) if name == "site" else fact for name, fact in record.facts.items()},
            view=record.view,
            key=key,
        )
        return {
            **(captions if all(captions.values()) else dict.fromkeys(captions, "other")),
            **{text: kind for text, kind in written.items() if text not in captions},
        }


def _printable(text: str) -> str:
    """The text with bytes that are not UTF-8 written out."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def expanded_labels(names: tuple[str, ...]) -> tuple[str, ...]:
    """The labels themselves, or those of the group of the knowledge base that a single name stands for.

    Example:
        >>> expanded_labels(("cyst", "mass")), expanded_labels(("chexpert",))[:2]
        (('cyst', 'mass'), ('no finding', 'enlarged cardiomediastinum'))
    """
    if len(names) != 1:
        return names
    base = load_base()
    if names[0] not in base.groups:
        raise ValueError(f"label_set: one name must be a group of the knowledge base; {nearest(names[0], base.groups)}")
    return tuple(base.findings[member].name for member in base.groups[names[0]].members)


def _refused(record: Record) -> tuple[str, str] | None:
    """Reason and detail of a rejection."""
    if record.split and not _SPLIT.fullmatch(record.split):
        return "bad split", f"{record.split!r} cannot be the name of a folder (letters, digits, _, + and -)"
    return None


__all__ = [
    "SPLIT_NAMES",
    "BurnedIn",
    "Plan",
    "Record",
    "RejectedImageError",
    "Rejection",
    "ShardSettings",
    "Source",
    "Task",
    "rejection_of",
    "unreadable",
]
