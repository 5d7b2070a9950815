"""`clip-med data SOURCE`: what the actions of all sources have in common."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clip_med.commands.data_run import run

if TYPE_CHECKING:
    from data_prep.record import ShardSettings, Source

    SettingsT = TypeVar("SettingsT", bound=ShardSettings)

WINDOWS = ("file", "lung", "bone", "soft_tissue", "brain", "mediastinum")


@dataclass(frozen=True, kw_only=True)
class SourceCommand:
    """A source as an action of `clip-med data`: all that the command line knows of it.

    Attributes:
        text: what it does, without a full stop; `note` adds to it.
        example: what follows the name.
        options: adds the arguments that no other source has.
        build: makes the source of them, with its settings (see `settings`).
    """

    name: str
    text: str
    note: str
    example: str
    options: Callable[[Any], None]
    build: Callable[[argparse.Namespace], Source]


def add_source(actions: Any, source: SourceCommand) -> None:
    """The action of a source, with the options that every source has and its own."""
    parser = actions.add_parser(
        source.name,
        help=source.text,
        description=f"{source.text}. {source.note} What is left out is counted and listed in OUT/rejected.jsonl. "
        "Interrupting and repeating is safe.",
        epilog=f"example: clip-med data {source.name} {source.example}",
        allow_abbrev=False,
    )
    source.options(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="gets one folder per split")
    for field in ("modality", "dataset", "split"):
        parser.add_argument(f"--{field}", metavar="TEXT", help=f"the {field} of every sample, whatever the source says")
    _add_splitting(parser)
    _add_captions(parser)
    _add_writing(parser)
    _add_parts(parser)
    # Values of the job, --job.KEY, with --slurm.
    parser.set_defaults(call=partial(run, source.build), takes_overrides=True)


def _add_splitting(parser: Any) -> None:
    parser.add_argument(
        "--fractions",
        metavar="SHARE",
        type=float,
        nargs=3,
        default=[0.8, 0.1, 0.1],
        help="train, val, test, where the source names no split; groups stay together; default 0.8 0.1 0.1",
    )
    parser.add_argument("--stratify", action="store_true", help="give every label these shares")
    parser.add_argument(
        "--splits-from",
        metavar="DIR",
        type=Path,
        help="an earlier OUT with the same secret: its groups keep their splits",
    )
    parser.add_argument(
        "--overlap",
        default="refuse",
        choices=("refuse", "keep", "drop"),
        help="of a patient or case that the source puts into several splits; drop: it stays in the last of train, val "
        "and test only; default refuse",
    )


def _add_captions(parser: Any) -> None:
    parser.add_argument("--templates", metavar="FILE.yaml", type=Path, help="sentences for samples with a label only")
    parser.add_argument(
        "--write",
        nargs="+",
        default=["label"],
        choices=("label", "finding", "absent", "metadata", "knowledge"),
        help="captions that are written for samples without any: bare labels, sentences with articles, what is absent, "
        "age band, sex, site and view, and what the knowledge base says; default label",
    )
    parser.add_argument("--write-always", action="store_true", help="write them for samples with captions too")
    parser.add_argument(
        "--label-set",
        metavar="LABEL",
        nargs="+",
        default=[],
        help="all labels that were looked for, or a group of the knowledge base: what an image lacks is absent",
    )
    parser.add_argument(
        "--scrub",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="replace names, dates, numbers, addresses in captions, as far as rules find them (see docs/data_prep.md); "
        "on unless you switch it off, which public sets can do",
    )
    add_presidio(parser)


def _add_writing(parser: Any) -> None:
    parser.add_argument(
        "--burned-in",
        choices=("ignore", "quarantine", "blacken"),
        help="of images with text in their pixels, found by rapidocr: nobody looks, they are left out, or the text is "
        "painted over; default: quarantine for dicom and reports, else ignore",
    )
    parser.add_argument("--max-side", metavar="PIXELS", type=int, help="scale larger images down")
    parser.add_argument("--samples-per-shard", metavar="N", type=int, default=1000, help="default 1000")
    parser.add_argument(
        "--secret", metavar="FILE", type=Path, help="key of the hashes; default: OUT.secret, beside OUT"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="processes that check images; default 0")
    parser.add_argument("--strict", action="store_true", help="look at every image first and refuse all if one is bad")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _add_parts(parser: Any) -> None:
    group = parser.add_argument_group(
        "more machines than one", "parts of the input lie in OUT.parts, beside OUT, until they are laid into OUT"
    )
    group.add_argument(
        "--slurm",
        metavar="JOB",
        type=Path,
        help="run parts and merge as jobs of Slurm; repeated: only what is missing. JOB: a YAML file or a shipped "
        "name, see configs/slurm; its values can be given as --job.KEY=VALUE",
    )
    group.add_argument(
        "--parts", metavar="N", type=int, help="how many; without --slurm they are listed only; default 16"
    )
    one = group.add_mutually_exclusive_group()
    one.add_argument("--part", metavar="I", type=int, help="write one part, 0 to N - 1")
    one.add_argument("--merge", action="store_true", help="lay the parts into OUT")


def add_group_pattern(parser: Any) -> None:
    """The option that finds the patient in a path."""
    parser.add_argument("--group-pattern", metavar="REGEX", help="its one group finds the patient in a path")


def add_presidio(parser: Any) -> None:
    """The option that adds Presidio to the rules of the scrubber."""
    parser.add_argument(
        "--presidio",
        metavar="PIPELINE",
        help="also replace what Presidio finds with this spaCy pipeline, installed (en_core_web_lg) or in a folder; "
        "default: rules only",
    )


def add_window(parser: Any, default: str) -> None:
    """The option that names a window of CT."""
    parser.add_argument("--window", default="file", choices=WINDOWS, help=f"of CT; default: {default}")


def settings(kind: type[SettingsT], arguments: argparse.Namespace, **more: Any) -> SettingsT:
    """The configuration of a source: each of its fields from `more`, else from the option of that name if it was given.

    Raises:
        ConfigError: a value that the configuration refuses.
    """
    from clip_med.config import validate

    names = [field.name for field in dataclasses.fields(kind)]
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return validate(kind, {**plain, **more})


def folder(path: Path, *, named: str = "") -> Path:
    """A folder that exists.

    Args:
        named: the option that it was given with.

    Raises:
        ValueError: names the path.
    """
    if not path.is_dir():
        raise ValueError(f"{f'{named} ' if named else ''}{path}: no such folder")
    return path


def file(path: Path) -> Path:
    """A file that exists.

    Raises:
        ValueError: names the path.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path


@contextmanager
def naming_extra(extra: str) -> Iterator[None]:
    """Say which extra brings a package that is not installed.

    Raises:
        ValueError: with the line to type.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'clip-med[{extra}]'") from error


__all__ = [
    "SourceCommand",
    "add_group_pattern",
    "add_presidio",
    "add_source",
    "add_window",
    "file",
    "folder",
    "naming_extra",
    "settings",
]
