"""A Slurm job as readable sbatch text: a pure function of its description. Nothing is submitted here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from clip_med.config import NonNegativeInt, PositiveInt, config


@config
class JobSpec:
    """What to ask Slurm for; None leaves a choice to the cluster.

    Example:
        >>> "#SBATCH --nodes=2" in render_job(JobSpec(nodes=2), ["clip-med", "--help"], name="x", log=Path("x.log"))
        True
    """

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    """One process is started per GPU; without GPUs, `tasks_per_node` of them."""
    tasks_per_node: PositiveInt = 1
    cpus_per_task: PositiveInt = 8
    memory: str | None = None
    """Per node, for example 240G."""
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    mail_user: str | None = None
    warn_seconds: Annotated[int, Ge(30)] = 120
    """A signal this long before the time limit makes every rank save and stop. Slurm may send it a minute early."""
    setup: tuple[str, ...] = ()
    """Shell lines before the job, for example `module load cuda` or `source .venv/bin/activate`."""
    environment: tuple[str, ...] = ()
    """NAME=VALUE of settings that the job exports, for example NCCL_SOCKET_IFNAME=ib0."""

    def __post_init__(self) -> None:
        """Refuse what would not survive the shell or would be two lines of a script."""
        for name in ("memory", "time", "partition", "account", "qos", "constraint", "mail_user"):
            value = getattr(self, name)
            if value is not None and (not value or any(c.isspace() for c in value)):
                raise ValueError(f"{name} must be one word, got {value!r}")
        for entry in self.environment:
            name, equals, _ = entry.partition("=")
            if not equals or not name.isidentifier() or "\n" in entry:
                raise ValueError(f"environment entries have the form NAME=VALUE, got {entry!r}")

    @property
    def processes_per_node(self) -> int:
        """Processes that srun starts on each node."""
        return self.gpus_per_node or self.tasks_per_node


def render_job(spec: JobSpec, command: Sequence[str], *, name: str, log: Path) -> str:
    """The sbatch script that runs `command` in every process of the job.

    The processes find each other through the variables that torchrun would set: the first node is the meeting place,
    and the port follows from the job's number, so that two jobs on one node do not collide. USR1 is sent to the
    processes `warn_seconds` before the limit, and the trainer then saves and stops. Slurm itself requeues the job after
    preemption and node failure; after the time limit, submitting the script again continues the run.

    Args:
        command: words; quoted here.
        log: file of the output; %j is the job's number.
    """
    options = {
        "job-name": name,
        "nodes": spec.nodes,
        "ntasks-per-node": spec.processes_per_node,
        "gpus-per-node": spec.gpus_per_node or None,
        "cpus-per-task": spec.cpus_per_task,
        "mem": spec.memory,
        "time": spec.time,
        "partition": spec.partition,
        "account": spec.account,
        "qos": spec.qos,
        "constraint": spec.constraint,
        "mail-user": spec.mail_user,
        "mail-type": "END,FAIL" if spec.mail_user else None,
        "output": log,
        "signal": f"USR1@{spec.warn_seconds}",
    }
    lines = ["#!/bin/bash", *(f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None)]
    # The same file across requeues; and Slurm itself requeues after preemption and node failure.
    lines += ["#SBATCH --open-mode=append", "#SBATCH --requeue", "set -euo pipefail", *spec.setup]
    lines += [f"export {key}={shlex.quote(value)}" for key, _, value in (e.partition("=") for e in spec.environment)]
    lines += [
        'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        # 20000 to 29999: below the range from which Linux takes ports for outgoing connections.
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
        'export WORLD_SIZE="$SLURM_NTASKS" OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"',
        # Rank variables exist in the processes only, hence the inner shell.
        f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(_in_rank(command))}",
    ]
    return "\n".join(lines) + "\n"


def _in_rank(command: Sequence[str]) -> str:
    return f'RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" exec {shlex.join(command)}'


__all__ = ["JobSpec", "render_job"]
