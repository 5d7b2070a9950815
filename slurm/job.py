"""What to ask of Slurm, as a configuration, and the values that may stand in it."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from annotated_types import Ge

from clip_med.config import NonNegativeInt, PositiveInt, config

# Slurm's own syntax needs no more; what a shell or sbatch's reader of #SBATCH lines would act on is not among it.
_WORD: Final = re.compile(r"[A-Za-z0-9_.,:@%+/&|*()\[\]=~!-]+")
_TIME: Final = re.compile(r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+(:\d+(:\d+)?)?")


@config
class JobSpec:
    """A job; None leaves a choice to the cluster.

    Example:
        >>> JobSpec(nodes=2, gpus_per_node=4).ranks
        8
    """

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    """One process is started per GPU; without GPUs, `tasks_per_node` of them."""
    tasks_per_node: PositiveInt = 1
    cpus_per_task: PositiveInt = 8
    """Cores for each process: its threads and its loader's workers."""
    memory: str | None = None
    """Per node, for example 240G."""
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    array_limit: PositiveInt | None = None
    """Tasks of a sweep that may run at once."""
    mail_user: str | None = None
    mail_type: str = "END,FAIL"
    """When to write to `mail_user`."""
    options: tuple[str, ...] = ()
    """Further options of sbatch without the dashes, for example reservation=course."""
    signal: Literal["USR1", "USR2", "TERM"] = "USR1"
    """What announces the time limit; every rank then stops at the same step and saves."""
    warn_seconds: Annotated[int, Ge(30)] = 120
    """How long before the limit, at least; Slurm may be a minute early. Must cover one step and one save."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """srun: one Slurm task per process; torchrun: one per node, which starts the processes."""
    python: str | None = None
    """The interpreter; None: that which submits, or `python` of the container."""
    container: str | None = None
    """Image that the processes run in; the script itself, and so its requeueing, stays outside."""
    container_runtime: Literal["apptainer", "pyxis"] = "apptainer"
    container_mounts: tuple[str, ...] = ()
    """FROM:TO of folders that the container sees."""
    setup: tuple[str, ...] = ()
    """Shell lines before the job, for example `module load cuda` or `source .venv/bin/activate`."""
    environment: tuple[str, ...] = ()
    """NAME=VALUE of settings that the job exports, for example NCCL_SOCKET_IFNAME=ib0."""
    max_crashes: NonNegativeInt = 3
    """A crashed job is started again at most this many times in the life of a submission."""
    crash_backoff_s: NonNegativeInt = 30
    """Seconds before the first new start after a crash; twice as long before each further one."""

    def __post_init__(self) -> None:
        """Refuse what would not survive the shell or would be two lines of a script."""
        for name in ("memory", "partition", "account", "qos", "constraint", "mail_user", "mail_type"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise ValueError(f"{name} must be one word of letters, digits and Slurm's signs, got {value!r}")
        if not _TIME.fullmatch(self.time):
            raise ValueError(f"time must be minutes, HH:MM:SS or DAYS-HH:MM:SS, got {self.time!r}")
        for option in self.options:
            if not _WORD.fullmatch(option) or option.startswith("-"):
                raise ValueError(f"options have the form NAME=VALUE or NAME, without dashes, got {option!r}")
        for entry in self.environment:
            name, equals, value = entry.partition("=")
            if not equals or not name.isidentifier() or not name.isascii() or has_control(value):
                raise ValueError(f"environment entries have the form NAME=VALUE, got {entry!r}")
        for name in ("setup", "container_mounts"):
            for line in getattr(self, name):
                if has_control(line):
                    raise ValueError(f"{name}: each entry is one line, got {line!r}")
        for name in ("container", "python"):
            value = getattr(self, name)
            if value is not None and (not value or has_control(value)):
                raise ValueError(f"{name} must be one line, got {value!r}")

    @property
    def ranks_per_node(self) -> int:
        """Processes of the run on each node."""
        return self.gpus_per_node or self.tasks_per_node

    @property
    def ranks(self) -> int:
        """Processes of the run."""
        return self.nodes * self.ranks_per_node


def has_control(text: str) -> bool:
    """Whether a text has line breaks or other control characters, or is not text."""
    return any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 or c in "\x85\u2028\u2029" for c in text)


__all__ = ["JobSpec", "has_control"]
