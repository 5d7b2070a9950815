"""Any source into a shard set per split, with all that was left out listed: the one road that all sources take."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clip_med.data.shard_writer import ShardWriter, finished_shards
from clip_med.data.shards import ShardSet
from data_prep.burned_in import WORDS, blackened
from data_prep.census import Census
from data_prep.claim import claim_folder
from data_prep.listing import claim_file, listed, secret_place
from data_prep.opening import Opener, Results
from data_prep.record import Rejection, ShardSettings, Source, Task
from data_prep.rejections import REJECTED_FILE, read_rejections, write_rejections
from data_prep.resume import continued


@dataclass(frozen=True, kw_only=True)
class WriteReport:
    """What became of the records; `rows == sum(written.values()) + rejected`, always.

    Attributes:
        written: samples per split, those kept from an earlier run included.
        reasons: rejected records per reason.
        kept_splits: were complete before this run and are as they were.
        groups_in_several_splits: according to the source, and kept so on request; a leak between training and test.
        unknown_modality: records whose modality neither the source nor the settings say.
        blackened: samples with text that was painted over.
        secret: the file with the key of the hashes.
    """

    rows: int
    written: dict[str, int]
    rejected: int
    reasons: dict[str, int]
    kept_splits: tuple[str, ...]
    groups_in_several_splits: int
    unknown_modality: int
    blackened: int
    secret: Path


class RejectedRowError(ValueError):
    """With `strict`: rows that would have been rejected."""


def source_to_shards(
    source: Source,
    out: Path,
    *,
    secret_file: Path | None = None,
    workers: int = 0,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> WriteReport:
    """Write `out/SPLIT/` for every split of a source, and `out/rejected.jsonl` with what is in none.

    Samples keep the order of the source. Interrupting and repeating is safe: splits that are complete stay as they are,
    the others go on after their last full shard, with equal bytes. Keys, groups and studies are hashes keyed with the
    secret, which must not lie inside `out`: who has it can try which patient stands behind a hash.

    Args:
        secret_file: created with random content if absent; default: beside `out`, with `.secret` added to its name.
        workers: processes that read and check images; 0 uses this one. The bytes are the same.
        strict: look at every image before anything is written, and refuse if one would be rejected.
        on_progress: called with images done and images in all.

    Raises:
        ValueError: settings or folders that do not fit; `out` holds another source's shards; a patient or case that the
            source puts into several splits.
        RejectedRowError: see `strict`; `out/rejected.jsonl` is written all the same.
        OSError: a file or folder that cannot be read or written (a single image only costs its sample).
    """
    with listed(source, out, secret_file) as listing:
        claim_folder(out, claim_file(source), listing.claim)
        with Opener(source, workers=workers) as opener:
            return write_plan(
                source,
                listing.plan,
                listing.census,
                opener,
                out,
                secret_file=secret_place(out, secret_file),
                strict=strict,
                on_progress=on_progress,
            )


def write_plan(
    source: Source,
    plan: Iterable[Task | Rejection],
    census: Census,
    opener: Results,
    out: Path,
    *,
    secret_file: Path,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> WriteReport:
    """Write the tasks of a plan, which a census was taken of, with what the opener makes of them.

    Raises:
        RejectedRowError: see `source_to_shards`.
        ValueError: a split of an earlier run does not add up.
    """
    progress = _Progress(on_progress, sum(census.split_rows.values()) * (2 if strict else 1))
    kept = tuple(split for split in census.split_rows if (out / split / "dataset.json").exists())
    rejections = census.rejections + [rejection for rejection in read_rejections(out) if rejection.split in kept]
    if strict:
        _refuse_if_any(source, out, plan, census, kept, rejections, opener, progress)
    for split, rows in census.split_rows.items():
        if split in kept:
            progress.add(rows)
            continue
        lost = _write_split(out, split, plan, opener, census, source.settings, rejections, progress)
        if strict and lost:
            raise RejectedRowError(f"{source.name}: an image changed meanwhile: {lost[0].sentence()}")
        rejections += lost
    write_rejections(out, rejections)
    return _report(out, census, rejections, kept, secret_file, blacken=source.settings.burned_in == "blacken")


def _refuse_if_any(
    source: Source,
    out: Path,
    plan: Iterable[Task | Rejection],
    census: Census,
    kept: tuple[str, ...],
    known: list[Rejection],
    opener: Results,
    progress: _Progress,
) -> None:
    rejections = list(known)
    progress.add(sum(census.split_rows[split] for split in kept))
    tasks = (task for task in plan if isinstance(task, Task) and task.split not in kept)
    for result in opener.open(tasks):
        if isinstance(result, Rejection):
            rejections.append(result)
        progress.add(1)
    if rejections:
        write_rejections(out, rejections)
        rejections.sort(key=lambda rejection: rejection.row)
        raise RejectedRowError(
            f"{source.name}: {len(rejections)} of {census.rows} rows cannot be used (--strict); they are listed in "
            f"{out / REJECTED_FILE}; the first: {rejections[0].sentence()}"
        )


def _write_split(
    out: Path,
    split: str,
    plan: Iterable[Task | Rejection],
    opener: Results,
    census: Census,
    settings: ShardSettings,
    earlier: list[Rejection],
    progress: _Progress,
) -> list[Rejection]:
    """Write one split and return the rows that its images cost; without a single good image nothing is committed."""

    def tasks() -> Iterator[Task]:
        return (task for task in plan if isinstance(task, Task) and task.split == split)

    sources = {
        dataset: {
            "licence": "; ".join(sorted(found)) or "not stated",
            "captions": _said(settings),
            "pixels": WORDS[settings.burned_in],
        }
        for dataset, found in sorted(census.licences[split].items())
    }
    finished = finished_shards(out / split, settings.samples_per_shard)
    known = continued(tasks(), finished, opener) if finished else None
    if known is None:
        finished = []
    rejections, rest = known or ([], tasks())
    written = settings.samples_per_shard * len(finished)
    if finished:
        progress.add(written + len(rejections))
    with (
        _uncommitted_if_empty(out / split),
        ShardWriter(
            out / split, samples_per_shard=settings.samples_per_shard, sources=sources, keep=finished
        ) as writer,
    ):
        for result in opener.open(rest):
            if isinstance(result, Rejection):
                rejections.append(result)
            else:
                writer.add(result)
                written += 1
            progress.add(1)
        # Before the commit marker: the list of a split that is complete is complete too.
        write_rejections(out, [*earlier, *rejections])
        if not written:
            raise _NothingWrittenError
    return rejections


def _said(settings: ShardSettings) -> str:
    if not settings.scrub:
        return "as in the source, not scrubbed"
    # Not the folder that a pipeline lies in: that is nobody's business.
    presidio = "" if settings.presidio is None else f" and Presidio ({Path(settings.presidio).name})"
    return f"scrubbed by rules{presidio}"


class _NothingWrittenError(Exception):
    """Every image of a split was rejected."""


@contextlib.contextmanager
def _uncommitted_if_empty(directory: Path) -> Iterator[None]:
    try:
        yield
    except _NothingWrittenError:
        with contextlib.suppress(OSError):  # somebody else's files are in it
            directory.rmdir()


def _report(
    out: Path,
    census: Census,
    rejections: list[Rejection],
    kept: tuple[str, ...],
    secret_file: Path,
    *,
    blacken: bool,
) -> WriteReport:
    """Count what is on disk against what was read.

    Raises:
        ValueError: a split from an earlier run does not add up.
    """
    written: dict[str, int] = {}
    painted = 0
    lost = Counter(rejection.split for rejection in rejections)
    for split, rows in census.split_rows.items():
        directory = out / split
        shards = ShardSet.open(directory) if (directory / "dataset.json").exists() else ()
        written[split] = len(shards)
        if blacken and shards:
            # Read, not counted on the way: shards of an interrupted run hold some too.
            painted += sum(bool(blackened(shards.metadata(number))) for number in range(len(shards)))
        if written[split] + lost[split] != rows:
            raise ValueError(
                f"{directory}: holds {written[split]} samples, {out / REJECTED_FILE} lists {lost[split]} of its "
                f"samples, and the source has {rows}: remove {directory} and repeat"
            )
    report = WriteReport(
        rows=census.rows,
        written=written,
        rejected=len(rejections),
        reasons=dict(sorted(Counter(rejection.reason for rejection in rejections).items())),
        kept_splits=kept,
        groups_in_several_splits=len(census.divided),
        unknown_modality=census.unknown_modality,
        blackened=painted,
        secret=secret_file,
    )
    assert report.rows == sum(written.values()) + report.rejected, "a row was neither written nor rejected"
    return report


class _Progress:
    """Counts images and passes the count on."""

    def __init__(self, on_progress: Callable[[int, int], None] | None, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


__all__ = ["RejectedRowError", "WriteReport", "source_to_shards", "write_plan"]
