"""The part of a machine's cores that is this process's own, where several processes of a run share it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping


def own_cores(environment: Mapping[str, str] = os.environ, affinity: int | None = None) -> int:
    """Cores for this process's threads and workers, at least 1.

    Those it may run on, at most as many as Slurm gives each task (a cluster may not bind tasks to their cores), or an
    equal part among the tasks on this node where Slurm was not told; and of these an equal part for each process that
    torchrun started here.

    Args:
        affinity: cores that the process may run on; None asks the system.

    Example:
        >>> own_cores({"SLURM_CPUS_PER_TASK": "12"}, affinity=96), own_cores({"LOCAL_WORLD_SIZE": "8"}, affinity=96)
        (12, 12)
    """
    cores = len(os.sched_getaffinity(0)) if affinity is None else affinity
    if "SLURM_CPUS_PER_TASK" in environment:
        cores = min(cores, int(environment["SLURM_CPUS_PER_TASK"]))
    elif "SLURM_STEP_TASKS_PER_NODE" in environment:
        # "4(x2),1": four tasks on each of two nodes, one on the third. The most on a node serves all.
        tasks = [int(count) for count in re.findall(r"(\d+)(?:\(x\d+\))?", environment["SLURM_STEP_TASKS_PER_NODE"])]
        cores = min(cores, int(environment.get("SLURM_CPUS_ON_NODE", cores))) // max(tasks, default=1)
    return max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", "1")))


__all__ = ["own_cores"]
