"""A source in parts, for more than one machine: listed once, each part written by itself, then laid into one output.

`OUT.parts/`, beside the output, holds `parts.json` (the settings), `plan/0000.jsonl` and so on (the tasks of each part,
in the order of the source, with paths and without pixels), `listed.json` (written when the list is complete) and a
folder per part: `0000/shards/SPLIT/` and, when all of it is written, `0000/done.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from clip_med.data.shard_index import write_atomically
from clip_med.data.shards import ShardSet
from data_prep.census import take_census
from data_prep.claim import claim_folder
from data_prep.listing import Listing, claim_file, listed, secret_place, settings_claim
from data_prep.opening import Opener
from data_prep.part_results import DONE_FILE, PartResults, part_folder
from data_prep.record import Source
from data_prep.stored_plan import PlanFiles, line_of
from data_prep.writing import WriteReport, write_plan

_CLAIM: Final = "parts.json"
_LISTED: Final = "listed.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """The parts of an output.

    Attributes:
        folder: where they lie.
        first_rows: the row that each part begins with, ascending.
        splits: that the source has images in.
    """

    folder: Path
    first_rows: tuple[int, ...]
    splits: tuple[str, ...]

    def plan(self, number: int | None = None) -> PlanFiles:
        """The tasks of a part, or of all."""
        numbers = range(len(self.first_rows)) if number is None else [number]
        return PlanFiles([_plan_file(self.folder, one) for one in numbers])

    def missing(self) -> list[int]:
        """Numbers of the parts that are not completely written."""
        return [one for one in range(len(self.first_rows)) if not (part_folder(self.folder, one) / DONE_FILE).exists()]

    def merged(self, out: Path) -> bool:
        """Whether every split lies in the output."""
        return all((out / split / "dataset.json").exists() for split in self.splits)


def parts_folder(out: Path) -> Path:
    """Where the parts of an output lie: beside it."""
    return out.with_name(out.name + ".parts")


def list_parts(source: Source, out: Path, count: int, *, secret_file: Path | None = None) -> Parts:
    """List a source and divide it into so many parts of equal length, unless that has been done.

    Raises:
        ValueError: fewer than one part, or more than rows; `out` or its parts belong to another source, other settings
            or another number of parts; or see `listed`.
    """
    if count < 1:
        raise ValueError(f"parts must be 1 or more, got {count}")
    folder = parts_folder(out)
    if (folder / _LISTED).exists():
        claim = {"source_sha256": source.digest(), **settings_claim(source, out, secret_file), "parts": count}
        claim_folder(folder, _CLAIM, claim)
    else:
        with listed(source, out, secret_file) as listing:
            if count > listing.census.rows:
                raise ValueError(f"{source.name}: has {listing.census.rows} rows, which cannot be {count} parts")
            claim_folder(out, claim_file(source), listing.claim)
            claim_folder(folder, _CLAIM, {**listing.claim, "parts": count})
            # The lists name the files of the source.
            folder.chmod(0o700)
            _write_lists(folder, listing, count)
    return _read_parts(folder)


def write_part(
    source: Source,
    out: Path,
    number: int,
    *,
    secret_file: Path | None = None,
    workers: int = 0,
    strict: bool = False,
    on_progress: Progress | None = None,
) -> WriteReport:
    """Write the samples of one part, which goes on where it was interrupted; see `source_to_shards` for the arguments.

    Raises:
        ValueError: the source was not listed in parts, or with other settings; no such part.
        RejectedRowError: with `strict`.
    """
    parts = _open_parts(source, out, secret_file)
    if not 0 <= number < len(parts.first_rows):
        raise ValueError(f"part {number}: {parts.folder} has the parts 0 to {len(parts.first_rows) - 1}")
    folder = part_folder(parts.folder, number)
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    with Opener(source, workers=workers) as opener:
        report = write_plan(
            source,
            parts.plan(number),
            take_census(parts.plan(number)),
            opener,
            shards,
            secret_file=secret_place(out, secret_file),
            strict=strict,
            on_progress=on_progress,
        )
    digests = {split: ShardSet.open(shards / split).digest for split, count in report.written.items() if count}
    write_atomically(folder / DONE_FILE, json.dumps({"rows": report.rows, "digests": digests}, indent=1) + "\n")
    return report


def merge_parts(
    source: Source, out: Path, *, secret_file: Path | None = None, on_progress: Progress | None = None
) -> WriteReport:
    """Lay the samples of all parts into the shards that a single process would have written, byte for byte.

    Every sample is read back, checked against its checksum and against the list, and counted. Interrupting and
    repeating is safe.

    Raises:
        ValueError: parts that are not complete, or that do not hold what the list says; each is named.
        ShardError: a part is damaged.
    """
    parts = _open_parts(source, out, secret_file)
    claim = json.loads((parts.folder / _CLAIM).read_text(encoding="utf-8"))
    del claim["parts"]
    claim_folder(out, claim_file(source), claim)
    if (missing := parts.missing()) and not parts.merged(out):
        folders = ", ".join(str(part_folder(parts.folder, number)) for number in missing)
        raise ValueError(f"{len(missing)} of {len(parts.first_rows)} parts are not complete: {folders}")
    return write_plan(
        source,
        parts.plan(),
        take_census(parts.plan()),
        PartResults(parts.folder, parts.first_rows),
        out,
        secret_file=secret_place(out, secret_file),
        on_progress=on_progress,
    )


def _open_parts(source: Source, out: Path, secret_file: Path | None = None) -> Parts:
    """The parts that a source was listed in.

    Raises:
        ValueError: it was not, or with other settings.
    """
    folder = parts_folder(out)
    if not (folder / _LISTED).exists():
        raise ValueError(f"{folder}: holds no complete list of parts; make it with --parts N or --slurm")
    # Without the digest of the source: every part would list all of it again.
    claim_folder(folder, _CLAIM, settings_claim(source, out, secret_file))
    return _read_parts(folder)


def _write_lists(folder: Path, listing: Listing, count: int) -> None:
    rows = listing.census.rows
    _plan_file(folder, 0).parent.mkdir(exist_ok=True)
    first_rows: list[int] = []
    items = iter(listing.plan)
    last = 0
    for number in range(count):
        size = rows * (number + 1) // count - rows * number // count
        with _plan_file(folder, number).open("w", encoding="utf-8") as file:
            for place, item in enumerate(islice(items, size)):
                assert item.row > last, "the rows of a source must count upwards: they lead to the part"
                last = item.row
                if place == 0:
                    first_rows.append(item.row)
                file.write(line_of(item))
    document = {"first_rows": first_rows, "splits": list(listing.census.split_rows)}
    write_atomically(folder / _LISTED, json.dumps(document) + "\n")


def _read_parts(folder: Path) -> Parts:
    document = json.loads((folder / _LISTED).read_text(encoding="utf-8"))
    return Parts(folder, tuple(document["first_rows"]), tuple(document["splits"]))


def _plan_file(folder: Path, number: int) -> Path:
    return folder / "plan" / f"{number:04d}.jsonl"


__all__ = ["Parts", "list_parts", "merge_parts", "part_folder", "parts_folder", "write_part"]
