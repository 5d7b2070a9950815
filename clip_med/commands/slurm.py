"""`clip-med slurm`: submit runs and sweeps to Slurm, and look after them by their folders."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clip_med.commands.printing import as_json, print_values

if TYPE_CHECKING:
    from slurm.job import JobSpec

# Seconds between two looks at a log that is followed.
_FOLLOW_S: Final = 0.5
_CONFIG_HELP: Final = (
    "the job: a YAML file or a shipped name, see configs/slurm; values can be given as --job.KEY VALUE"
)


def add_parser(commands: Any) -> None:
    """Add `slurm render`, `submit`, `status`, `logs`, `cancel`, `requeue`, `sweep` and `resubmit`."""
    parser = commands.add_parser("slurm", help="submit pretraining and sweeps to Slurm, and look after them")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, call, text in (
        ("render", _render, "print the script of a pretraining job; nothing is submitted"),
        ("submit", _submit, "submit a pretraining job, which requeues itself until the run is finished"),
    ):
        action = _add(
            actions, name, call, text, "configs/pretrain/demo.yaml --run runs/first --config slurm/gpu --job.nodes 2"
        )
        action.add_argument("pretrain", metavar="CONFIG", type=Path, help="as for clip-med pretrain")
        action.add_argument("--run", metavar="DIR", type=Path, required=True, help="the run folder, on a shared disk")
        action.add_argument("--config", metavar="JOB", type=Path, required=True, help=_CONFIG_HELP)
        action.add_argument("--eval", metavar="CONFIG", type=Path, help="as for clip-med pretrain")
        action.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
        action.set_defaults(takes_overrides=True)
    for name, call, text in (
        ("status", _status, "where a run or each task of a sweep stands"),
        ("logs", _logs, "print the output of a run's newest job"),
        ("cancel", _cancel, "cancel a run's job; the ranks still save, and repeating `submit` continues"),
        ("requeue", _requeue, "start a run again: requeue its job, or submit it as before if that is over"),
    ):
        action = _add(actions, name, call, text, "runs/first")
        action.add_argument("run", metavar="DIR", type=Path, help="the run folder")
        if name == "logs":
            action.add_argument("-f", "--follow", action="store_true", help="go on until the job has left the queue")
    _add_sweep(actions)
    action = _add(
        actions,
        "resubmit",
        _resubmit,
        "submit the tasks of a sweep that are neither done nor in the queue",
        "sweeps/lr",
    )
    action.add_argument("folder", metavar="DIR", type=Path, help="folder of the sweep")
    action.add_argument(
        "--config", metavar="JOB", type=Path, help="another description of the job, e.g. with more time"
    )
    action.set_defaults(takes_overrides=True)


def _add(
    actions: Any, name: str, call: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name, help=text, description=text, epilog=f"example: clip-med slurm {name} {example}", allow_abbrev=False
    )
    if name not in ("render", "logs"):
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(call=call)
    return parser


def _add_sweep(actions: Any) -> None:
    action = _add(
        actions,
        "sweep",
        _sweep,
        "submit a grid of commands as one job array",
        "sweeps/lr --config slurm/gpu --grid lr=1e-4,3e-4 --grid seed=0,1,2 -- pretrain pretrain/demo --run {run} "
        "--train.optim.lr {lr} --train.seed {seed}",
    )
    action.add_argument("folder", metavar="DIR", type=Path, help="gets one folder per task")
    action.add_argument("--config", metavar="JOB", type=Path, required=True, help=_CONFIG_HELP)
    action.add_argument(
        "--grid", metavar="AXIS=A,B", action="append", required=True, help="values of one axis; all combinations run"
    )
    action.add_argument(
        "command",
        metavar="COMMAND",
        nargs="+",
        help="after --: what follows clip-med, with {AXIS} for its value and {run} for the task's folder",
    )
    action.set_defaults(takes_overrides=True)


def job_spec(config: Path, overrides: Sequence[str]) -> tuple[JobSpec, list[str]]:
    """The job's description, and the overrides that are not its own (`--job.KEY`)."""
    from dataclasses import replace

    from clip_med.config import load_config
    from slurm.job import JobSpec

    own: list[str] = []
    others: list[str] = []
    target = others
    for word in overrides:
        if word.startswith("--"):
            target = own if word.startswith("--job.") else others
        target.append("--" + word.removeprefix("--job.") if target is own and word.startswith("--") else word)
    spec = load_config(JobSpec, config, own)
    if spec.python is None and spec.container is None:
        # The program that submits is the one that will run: no environment needs to be activated.
        spec = replace(spec, python=sys.executable)
    return spec, others


def _pretrain_job(arguments: argparse.Namespace) -> tuple[JobSpec, list[str]]:
    """The job and the words of `clip-med pretrain`; a bad configuration is refused before it waits in the queue."""
    from clip_med.config import load_config
    from clip_med.pretrain import PretrainConfig

    spec, overrides = job_spec(arguments.config, arguments.overrides)
    config = load_config(PretrainConfig, arguments.pretrain, overrides)
    if config.train.batch_size % spec.ranks:
        raise ValueError(
            f"train.batch_size {config.train.batch_size} is no multiple of the job's {spec.ranks} processes"
        )
    words = ["clip_med", "pretrain", str(arguments.pretrain), "--run", str(arguments.run.absolute())]
    if arguments.eval is not None:
        words += ["--eval", str(arguments.eval)]
    return spec, [*words, "--device", arguments.device, *overrides]


def _render(arguments: argparse.Namespace) -> int:
    from slurm.script import render_job

    spec, words = _pretrain_job(arguments)
    run = arguments.run.absolute()
    print(render_job(spec, words, name=run.name, run=run, cwd=Path.cwd()), end="")
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    from slurm.submit import submit_run

    spec, words = _pretrain_job(arguments)
    print_values(arguments, {"job": submit_run(spec, words, run=arguments.run), "run": str(arguments.run)})
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from slurm.record import count_states, queue, status
    from slurm.sweep import is_sweep, sweep_status

    if is_sweep(arguments.run):
        statuses = [one for _, one in sweep_status(arguments.run)]
    else:
        statuses = [status(arguments.run, queue())]
    counts = count_states(statuses)
    if arguments.json:
        print(as_json({"counts": counts, "runs": [one.to_dict() for one in statuses]}))
        return 0
    rows = [
        (Path(s.run).name, s.state, s.job or "", "" if s.step is None else f"{s.step:,}", str(s.starts), s.detail)
        for s in statuses
    ]
    _table(("run", "state", "job", "step", "starts", "detail"), rows)
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _logs(arguments: argparse.Namespace) -> int:
    from slurm.record import current_job
    from slurm.submit import active_job

    job = current_job(arguments.run)
    # A task of a sweep writes into the sweep's folder.
    places = [folder / "slurm" / f"{job}.log" for folder in (arguments.run, arguments.run.absolute().parent)]
    shown = 0
    while True:
        # Asked first: what is written before the job leaves the queue is printed.
        goes_on = arguments.follow and active_job(arguments.run) is not None
        file = next((place for place in places if place.is_file()), None)
        if file is not None:
            with file.open("rb") as stream:
                stream.seek(shown)
                new = stream.read()
            shown += len(new)
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()
        if not goes_on:
            break
        time.sleep(_FOLLOW_S)
    if file is None:
        raise ValueError(f"{places[0]}: job {job} has written nothing yet")
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from slurm.submit import cancel

    print_values(arguments, {"cancelled": cancel(arguments.run)})
    return 0


def _requeue(arguments: argparse.Namespace) -> int:
    from slurm.submit import requeue

    print_values(arguments, {"job": requeue(arguments.run), "run": str(arguments.run)})
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from slurm.sweep import submit_sweep, sweep_tasks

    # `--job.nodes 2` would leave the 2 to the command.
    wrong = [word for word in arguments.overrides if not word.startswith("--job.") or "=" not in word]
    if wrong:
        raise ValueError(f"unknown words before --: {' '.join(wrong)}; write --job.KEY=VALUE, and the command after --")
    spec, _ = job_spec(arguments.config, arguments.overrides)
    grid: dict[str, list[str]] = {}
    for axis in arguments.grid:
        name, equals, values = axis.partition("=")
        if not equals or not name or name == "run" or name in grid:
            raise ValueError(f"--grid {axis}: expected a new AXIS=A,B,C; `run` is the task's folder")
        grid[name] = values.split(",")
    job = submit_sweep(spec, ["clip_med", *arguments.command], grid, arguments.folder)
    tasks = len(sweep_tasks(arguments.folder))
    print_values(arguments, {"job": job, "tasks": tasks, "folder": str(arguments.folder)})
    return 0


def _resubmit(arguments: argparse.Namespace) -> int:
    from slurm.sweep import resubmit

    spec = job_spec(arguments.config, arguments.overrides)[0] if arguments.config is not None else None
    if spec is None and arguments.overrides:
        raise ValueError(f"{' '.join(arguments.overrides)}: give --config too, which these values change")
    job, tasks = resubmit(arguments.folder, spec)
    print_values(arguments, {"job": job, "tasks": [task.run.name for task in tasks]})
    return 0


__all__ = ["add_parser", "job_spec"]
