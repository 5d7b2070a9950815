"""Every process of a run gets its part of the cores."""

from __future__ import annotations

import pytest

from clip_med.data.cores import own_cores


@pytest.mark.parametrize(
    ("environment", "affinity", "cores"),
    [
        ({}, 8, 8),
        ({"LOCAL_WORLD_SIZE": "4"}, 8, 2),
        ({"LOCAL_WORLD_SIZE": "4"}, 2, 1),
        ({"SLURM_CPUS_PER_TASK": "3"}, 96, 3),  # not bound
        ({"SLURM_CPUS_PER_TASK": "12"}, 6, 6),  # bound to fewer
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_CPUS_ON_NODE": "32"}, 96, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_CPUS_ON_NODE": "32"}, 16, 8),
        ({"SLURM_CPUS_PER_TASK": "96", "LOCAL_WORLD_SIZE": "8"}, 96, 12),  # torchrun under srun
    ],
)
def test_the_part_of_the_cores(environment: dict[str, str], affinity: int, cores: int) -> None:
    assert own_cores(environment, affinity) == cores


def test_without_an_affinity_the_system_is_asked() -> None:
    import os

    assert own_cores({}) == len(os.sched_getaffinity(0))
