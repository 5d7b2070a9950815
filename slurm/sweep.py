"""A grid of commands as a job array: which tasks are done, running or failed, and the missing ones again."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clip_med.config import nearest, to_plain, validate
from clip_med.data.shard_index import write_atomically
from slurm.job import JobSpec
from slurm.record import RunStatus, note, queue, status
from slurm.script import render_array, task_line
from slurm.submit import submit_script

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9.+-]+")
# States of tasks that are not submitted again.
_CARED_FOR: Final = ("done", "running", "pending")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One point of a grid. `run` is its folder, `words` what follows `python -m`."""

    index: int
    values: dict[str, str]
    run: Path
    words: tuple[str, ...]


def expand(words: Sequence[str], grid: Mapping[str, Sequence[str]], folder: Path) -> tuple[Task, ...]:
    """A task for each combination of values, the last axis fastest.

    Args:
        words: with {AXIS} where a value of that axis stands, and {run} where the task's folder stands.
        grid: values of each axis.
        folder: of the sweep; tasks get folders in it, named by number and values.

    Raises:
        ValueError: an axis that no word uses, a placeholder that is no axis, no {run}, or a value given twice.

    Example:
        >>> tasks = expand(["clip_med", "--lr", "{lr}", "--run", "{run}"], {"lr": ["1e-3", "1e-4"]}, Path("s"))
        >>> tasks[1].words
        ('clip_med', '--lr', '1e-4', '--run', 's/0001_lr-1e-4')
    """
    used = {name for word in words for name in _PLACEHOLDER.findall(word)}
    for name in sorted(used - {*grid, "run"}):
        raise ValueError(f"{{{name}}} in the command is no axis of the grid; {nearest(name, [*grid, 'run'])}")
    for name in ("run", *grid):
        if name not in used:
            raise ValueError(f"the command must have {{{name}}} somewhere, got {' '.join(words)!r}")
    for name, values in grid.items():
        if not values or len(set(values)) != len(values) or "" in values:
            raise ValueError(f"grid {name}: values must be distinct and not empty, got {','.join(values)!r}")
    tasks: list[Task] = []
    for index, point in enumerate(itertools.product(*grid.values())):
        values = dict(zip(grid, point, strict=True))
        label = "_".join(f"{_UNSAFE.sub('-', k)}-{_UNSAFE.sub('-', v)}" for k, v in values.items())
        run = folder / f"{index:04d}_{label[:100]}"
        filled = {**values, "run": str(run)}
        replaced = tuple(_PLACEHOLDER.sub(lambda match, f=filled: f[match[1]], word) for word in words)
        tasks.append(Task(index=index, values=values, run=run, words=replaced))
    return tuple(tasks)


def submit_sweep(spec: JobSpec, words: Sequence[str], grid: Mapping[str, Sequence[str]], folder: Path) -> str:
    """Submit a grid as one job array; returns the array's number. What it is, is kept in `sweep.json` in the folder.

    Raises:
        ValueError: the folder holds a sweep already, or see `expand` and `submit_script`.
    """
    folder = folder.absolute()
    if is_sweep(folder):
        raise ValueError(f"{folder}: holds a sweep already; clip-med slurm resubmit {folder} runs what is missing")
    tasks = expand(words, grid, folder)
    axes = {name: list(values) for name, values in grid.items()}
    return _submit_new(spec, tasks, tasks, folder, {"command": list(words), "grid": axes})


def submit_commands(
    spec: JobSpec, commands: Mapping[str, Sequence[str]], folder: Path
) -> tuple[str | None, list[Task]]:
    """Submit commands as one job array, but for those of an earlier call that are done or in the queue.

    Args:
        commands: name to what follows `python -m`; the record of each is kept in `folder/NAME`.

    Returns:
        The number of the array and the tasks in it; None and [] where there is none.
    """
    folder = folder.absolute()
    tasks = _named(commands, folder)
    jobs = queue()
    missing = [task for task in tasks if status(task.run, jobs).state not in _CARED_FOR]
    if not missing:
        return None, []
    document = {"commands": {name: list(words) for name, words in commands.items()}}
    return _submit_new(spec, tasks, missing, folder, document), missing


def resubmit(folder: Path, spec: JobSpec | None = None) -> tuple[str | None, list[Task]]:
    """Submit again the tasks that are neither done nor in the queue; None and [] where there is none.

    Args:
        folder: of the sweep.
        spec: instead of the description that the sweep was submitted with, for example with more time.
    """
    folder = folder.absolute()
    missing = [task for task, one in sweep_status(folder) if one.state not in _CARED_FOR]
    if not missing:
        return None, []
    document = _document(folder)
    kept = validate(JobSpec, document["spec"]) if spec is None else spec
    return _submit(kept, missing, folder, Path(document["cwd"])), missing


def sweep_status(folder: Path) -> list[tuple[Task, RunStatus]]:
    """Every task of a sweep and where it stands."""
    jobs = queue()
    return [(task, status(task.run, jobs)) for task in sweep_tasks(folder)]


def sweep_tasks(folder: Path) -> tuple[Task, ...]:
    """The tasks of a sweep that was submitted into a folder.

    Raises:
        ValueError: there is no sweep.
    """
    document, folder = _document(folder), folder.absolute()
    if "commands" in document:
        return _named(document["commands"], folder)
    return expand(document["command"], document["grid"], folder)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / "sweep.json").is_file()


def _named(commands: Mapping[str, Sequence[str]], folder: Path) -> tuple[Task, ...]:
    return tuple(
        Task(index=index, values={}, run=folder / name, words=tuple(words))
        for index, (name, words) in enumerate(commands.items())
    )


def _submit_new(
    spec: JobSpec, tasks: Sequence[Task], chosen: Sequence[Task], folder: Path, document: Mapping[str, Any]
) -> str:
    """Submit some of the tasks of a folder, and keep there what all of them are."""
    # Rendered before anything is written: what cannot be a script leaves no folder.
    lines = [task_line(task.words, task.run) for task in tasks]
    render_array(spec, [0], name=folder.name, folder=folder, cwd=Path.cwd())
    (folder / "slurm").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "slurm/tasks.sh", "\n".join(lines) + "\n")
    job = _submit(spec, chosen, folder, Path.cwd())
    kept = {**document, "cwd": str(Path.cwd()), "spec": to_plain(spec)}
    write_atomically(folder / "sweep.json", json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    return job


def _submit(spec: JobSpec, tasks: Sequence[Task], folder: Path, cwd: Path) -> str:
    text = render_array(spec, [task.index for task in tasks], name=folder.name, folder=folder, cwd=cwd)
    for task in tasks:
        (task.run / "slurm/crashes").unlink(missing_ok=True)
    job = submit_script(text, folder / "slurm")
    for task in tasks:
        note(task.run, "submitted", f"{job}_{task.index}")
    return job


def _document(folder: Path) -> dict[str, Any]:
    if not is_sweep(folder):
        raise ValueError(f"{folder}: holds no sweep (no sweep.json); clip-med slurm sweep submits one")
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


__all__ = [
    "Task",
    "expand",
    "is_sweep",
    "resubmit",
    "submit_commands",
    "submit_sweep",
    "sweep_status",
    "sweep_tasks",
]
