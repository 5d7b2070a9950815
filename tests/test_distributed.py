"""The place of a process, from environments of torchrun and Slurm as they are found."""

from __future__ import annotations

import pytest

from clip_med.distributed import Place, first_host, place, process_group

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NODELIST": "gpu[12-13]",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        (TORCHRUN, Place(rank=5, world_size=8, local_rank=1)),
        # torchrun inside a step of srun: its own variables decide.
        (SRUN | TORCHRUN, Place(rank=5, world_size=8, local_rank=1)),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Place()),
        (SRUN, Place(rank=6, world_size=8, local_rank=2, address="tcp://gpu12:24562")),
        (SRUN | {"MASTER_PORT": "4000"}, Place(rank=6, world_size=8, local_rank=2, address="tcp://gpu12:4000")),
        # A step on some of the job's nodes: rank 0 is on the first node of the step.
        (
            SRUN | {"SLURM_STEP_NODELIST": "gpu13", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"},
            Place(rank=3, world_size=4, local_rank=2, address="tcp://gpu13:24562"),
        ),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Place()),
        # `srun -n 1` inside a batch job of eight tasks.
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Place()),
        # The batch script itself: Slurm counts the job's tasks there too, but starts one process.
        ({k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"} | {"SLURM_PROCID": "0"}, Place()),
        (SRUN | {"SLURM_STEP_ID": "4294967291", "SLURM_PROCID": "0"}, Place()),
        # A shell that salloc opened.
        (SRUN | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}, Place()),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "a[1-4]"}, Place()),
    ],
)
def test_the_place_of_a_process(environment: dict[str, str], expected: Place) -> None:
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "4"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT missing"),
        (TORCHRUN | {"RANK": "first"}, "RANK must be a whole number, got 'first'"),
        ({k: v for k, v in SRUN.items() if k != "SLURM_JOB_NODELIST"}, "SLURM_JOB_NODELIST"),
        ({k: v for k, v in SRUN.items() if k != "SLURM_JOB_ID"}, "SLURM_JOB_ID is missing"),
        (SRUN | {"SLURM_JOB_NODELIST": ",node1"}, "no Slurm host list"),
    ],
)
def test_environments_that_do_not_fit_are_refused_by_name(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        place(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node[1-3,7]", "node1"),
        ("node[003-012]", "node003"),
        ("node[7,1-3],other[1-2]", "node7"),
        ("a-b.cluster.org,c", "a-b.cluster.org"),
        ("rack[2-3]-node[08-09]", "rack2-node08"),
        ("login,node[1-2]", "login"),
    ],
)
def test_the_first_host_of_compressed_lists(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_jobs_and_steps_side_by_side_get_ports_of_their_own() -> None:
    ports = {
        place(SRUN | {"SLURM_JOB_ID": str(900000 + job), "SLURM_STEP_ID": str(step)}).address
        for job in range(100)
        for step in range(10)
    }
    assert len(ports) == 1000


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu") as device:
        assert device.type == "cpu"
        assert not dist.is_initialized()
