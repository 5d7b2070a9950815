"""`clip-med data SOURCE`: run it in this process, or in parts that may be jobs of Slurm."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clip_med.commands.printing import print_values
from clip_med.commands.progress import ItemDisplay

if TYPE_CHECKING:
    from data_prep.parts import Parts
    from data_prep.record import Source
    from data_prep.writing import WriteReport
    from slurm.job import JobSpec

_PARTS: Final = 16
# Folder of the record of the job that merges, among those of the parts.
_MERGE: Final = "merge"


def run(build: Callable[[argparse.Namespace], Source], arguments: argparse.Namespace) -> int:
    """What the options ask for: all of the source, its parts as jobs, a list of parts, one part, or their merge."""
    if arguments.overrides and arguments.slurm is None:
        raise ValueError(f"unrecognised arguments: {' '.join(arguments.overrides)}")
    source = build(arguments)
    # A job has the words that submitted it, and those that say which part it is.
    if arguments.part is not None:
        return _part(source, arguments)
    if arguments.merge:
        return _merge(source, arguments)
    if arguments.slurm is not None:
        return _submit(source, arguments)
    if arguments.parts is not None:
        return _list(source, arguments)
    return _whole(source, arguments)


def _whole(source: Source, arguments: argparse.Namespace) -> int:
    from data_prep.writing import source_to_shards

    with ItemDisplay(quiet=arguments.json) as display:
        report = source_to_shards(
            source,
            arguments.out,
            secret_file=arguments.secret,
            workers=arguments.workers,
            strict=arguments.strict,
            on_progress=partial(display.on_item, "images"),
        )
    return _print_report(report, arguments)


def _list(source: Source, arguments: argparse.Namespace) -> int:
    parts = _listed(source, arguments)
    print_values(arguments, {"parts": len(parts.first_rows), "missing": parts.missing(), "folder": str(parts.folder)})
    return 0


def _part(source: Source, arguments: argparse.Namespace) -> int:
    from data_prep.parts import part_folder, parts_folder, write_part
    from slurm.stopping import requeued_on_signals

    number: int = arguments.part
    with (
        requeued_on_signals(part_folder(parts_folder(arguments.out), number)),
        ItemDisplay(quiet=arguments.json) as display,
    ):
        report = write_part(
            source,
            arguments.out,
            number,
            secret_file=arguments.secret,
            workers=arguments.workers,
            strict=arguments.strict,
            on_progress=partial(display.on_item, "images"),
        )
    values = {"part": number, "rows": report.rows, "written": report.written, "reasons": report.reasons}
    print_values(arguments, values)
    return 0


def _merge(source: Source, arguments: argparse.Namespace) -> int:
    from data_prep.parts import merge_parts, parts_folder
    from slurm.stopping import requeued_on_signals

    with (
        requeued_on_signals(parts_folder(arguments.out) / _MERGE),
        ItemDisplay(quiet=arguments.json) as display,
    ):
        report = merge_parts(
            source, arguments.out, secret_file=arguments.secret, on_progress=partial(display.on_item, "images")
        )
    return _print_report(report, arguments)


def _submit(source: Source, arguments: argparse.Namespace) -> int:
    """Submit the parts that are neither written nor in the queue, and a merge after the last of them."""
    from clip_med.commands.slurm import job_spec
    from data_prep.parts import part_folder
    from slurm.sweep import submit_commands

    # In two words, the value could be taken for an argument of the source.
    wrong = [word for word in arguments.overrides if not word.startswith("--job.") or "=" not in word]
    if wrong:
        raise ValueError(f"unrecognised arguments: {' '.join(wrong)}; values of the job are --job.KEY=VALUE")
    spec, _ = job_spec(arguments.slurm, arguments.overrides)
    if spec.ranks != 1:
        raise ValueError(
            f"{arguments.slurm}: a part is one process with --workers of its own, the job has {spec.ranks}; set "
            "nodes and tasks_per_node to 1 and gpus_per_node to 0"
        )
    parts = _listed(source, arguments)
    if parts.merged(arguments.out):
        return _merge(source, arguments)
    commands = {
        part_folder(parts.folder, number).name: _again(arguments, "--part", str(number))
        for number in range(len(parts.first_rows))
    }
    job, tasks = submit_commands(spec, commands, parts.folder)
    merge = _submit_merge(spec, _again(arguments, "--merge"), parts.folder, anew=job is not None)
    submitted = [task.run.name for task in tasks]
    print_values(arguments, {"job": job, "submitted": submitted, "merge": merge, "folder": str(parts.folder)})
    return 0


def _submit_merge(spec: JobSpec, words: list[str], folder: Path, *, anew: bool) -> str:
    """Submit the merge, to begin when every part has ended in whatever way: it names those that failed.

    Args:
        anew: parts were submitted, which a merge that is in the queue does not wait for.
    """
    from slurm.record import queue, status
    from slurm.submit import cancel, submit_run
    from slurm.sweep import sweep_status

    run = folder / _MERGE
    before = status(run, queue())
    if before.state in ("pending", "running"):
        if not anew:
            return str(before.job)
        cancel(run)
    jobs = [one.job for _, one in sweep_status(folder) if one.job and one.state in ("pending", "running")]
    arrays = dict.fromkeys(job.partition("_")[0] for job in jobs)
    after = (f"dependency=afterany:{':'.join(arrays)}",) if arrays else ()
    return submit_run(dataclasses.replace(spec, options=(*spec.options, *after)), words, run=run)


def _listed(source: Source, arguments: argparse.Namespace) -> Parts:
    from data_prep.parts import list_parts

    count = _PARTS if arguments.parts is None else arguments.parts
    return list_parts(source, arguments.out, count, secret_file=arguments.secret)


def _again(arguments: argparse.Namespace, *more: str) -> list[str]:
    """The words of this command, `data SOURCE ...`, with more options; a job runs them after `python -m`."""
    action, source, *rest = arguments.words
    return ["clip_med", action, source, *more, *rest]


def _print_report(report: WriteReport, arguments: argparse.Namespace) -> int:
    from data_prep.rejections import REJECTED_FILE

    values: dict[str, Any] = {**vars(report), "kept_splits": list(report.kept_splits), "secret": str(report.secret)}
    print_values(arguments, values)
    warnings = {
        "nothing that this command reads was found in the source: no row, so no shard": not report.rows,
        f"{report.rejected} rows are in no shard; {arguments.out / REJECTED_FILE} says why": report.rejected,
        f"{report.groups_in_several_splits} groups are in several splits": report.groups_in_several_splits,
        f"{report.blackened} samples have text that was painted over": report.blackened,
        f"{report.unknown_modality} rows have the modality 'unknown'; see --modality": report.unknown_modality,
    }
    for text, number in warnings.items():
        if number:
            print(f"warning: {text}", file=sys.stderr)
    return 0 if sum(report.written.values()) else 1


__all__ = ["run"]
