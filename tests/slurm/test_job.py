"""The sbatch text of a job, word for word, and that a shell accepts it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from clip_med.config import ConfigError, validate
from slurm.job import JobSpec, render_job

GOLDEN = """#!/bin/bash
#SBATCH --job-name=first run
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --mem=240G
#SBATCH --time=12:00:00
#SBATCH --partition=gpu
#SBATCH --output=runs/first/slurm-%j.log
#SBATCH --signal=USR1@180
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail
module load cuda
export NCCL_SOCKET_IFNAME=ib0
export NOTE='two words'
export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export WORLD_SIZE="$SLURM_NTASKS" OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"
srun --kill-on-bad-exit=1 bash -c 'RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" exec clip-med pretrain '"'"'my config.yaml'"'"' --run runs/first'
"""  # noqa: E501 - a line of the script
SPEC = JobSpec(
    nodes=2,
    gpus_per_node=4,
    cpus_per_task=12,
    memory="240G",
    time="12:00:00",
    partition="gpu",
    warn_seconds=180,
    setup=("module load cuda",),
    environment=("NCCL_SOCKET_IFNAME=ib0", "NOTE=two words"),
)
COMMAND = ["clip-med", "pretrain", "my config.yaml", "--run", "runs/first"]


def test_the_script_word_for_word() -> None:
    assert render_job(SPEC, COMMAND, name="first run", log=Path("runs/first/slurm-%j.log")) == GOLDEN


def test_the_processes_get_their_ranks_and_the_words_of_the_command(tmp_path: Path) -> None:
    """The script runs under a shell, with stand-ins for Slurm's two programs."""
    (tmp_path / "srun").write_text('#!/bin/bash\nshift\nSLURM_PROCID=5 SLURM_LOCALID=1 "$@"\n')
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho node7\necho node8\n")
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    show = ["python3", "-c", "import os, sys; print(*(os.environ[n] for n in sys.argv[1].split()), sys.argv[2])"]
    names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS NOTE"
    spec = JobSpec(nodes=2, tasks_per_node=4, environment=("NOTE=it's",))
    script = render_job(spec, [*show, names, "a b"], name="x", log=Path("x.log"))
    slurm = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "123456",
        "SLURM_NTASKS": "8",
        "SLURM_CPUS_PER_TASK": "3",
    }
    done = subprocess.run(
        ["bash"], input=script, env={"PATH": f"{tmp_path}:/usr/bin:/bin", **slurm}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "5 1 8 node7 23456 3 it's a b", done.stderr


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"partition": "a b"}, "partition must be one word"),
        ({"environment": ["NOVALUE"]}, "NAME=VALUE"),
        ({"environment": ["A=1\nrm"]}, "NAME=VALUE"),
        ({"nodes": 0}, "nodes = 0"),
        ({"partitoin": "gpu"}, "did you mean 'partition'"),
    ],
)
def test_what_would_break_the_script_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(JobSpec, values)
