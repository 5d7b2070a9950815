"""The sbatch text of a job, word for word, and what a shell does with it: stand-ins play Slurm's programs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from slurm.job import JobSpec
from slurm.script import render_array, render_job, task_line

GOLDEN = Path(__file__).parent / "golden"
FULL = JobSpec(
    nodes=2,
    gpus_per_node=4,
    cpus_per_task=12,
    memory="240G",
    time="12:00:00",
    partition="gpu",
    account="imaging",
    qos="high",
    constraint="a100|h100",
    mail_user="me@example.org",
    options=("reservation=course", "exclusive"),
    warn_seconds=180,
    setup=("module load cuda",),
    environment=("NCCL_SOCKET_IFNAME=ib0", "NOTE=two words"),
    python="/shared/env/bin/python",
)
WORDS = ["clip_med", "pretrain", "my config.yaml", "--run", "/data/runs/first run"]


def rendered() -> dict[str, str]:
    run, cwd = Path("/data/runs/first run"), Path("/home/me")
    torchrun = JobSpec(
        nodes=2,
        gpus_per_node=8,
        launcher="torchrun",
        container="/images/torch.sif",
        container_mounts=("/data:/data",),
        signal="USR2",
    )
    pyxis = JobSpec(container="nvcr.io#torch", container_runtime="pyxis", container_mounts=("/a:/a", "/b:/b"))
    return {
        "gpus.sh": render_job(FULL, WORDS, name="first run", run=run, cwd=cwd),
        "torchrun.sh": render_job(torchrun, WORDS, name="first", run=run, cwd=cwd),
        "pyxis.sh": render_job(pyxis, WORDS, name="first", run=run, cwd=cwd),
        "array.sh": render_array(JobSpec(array_limit=4), [0, 2, 7], name="lr", folder=Path("/data/lr"), cwd=cwd),
    }


@pytest.mark.parametrize("name", ["gpus.sh", "torchrun.sh", "pyxis.sh", "array.sh"])
def test_the_script_word_for_word(name: str) -> None:
    text = rendered()[name]
    assert text == (GOLDEN / name).read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    ("words", "name", "run"),
    [
        (["a\nb"], "x", "x"),
        (["a"], "x\n#SBATCH --uid=0", "x"),
        (["a"], "x", "x\ny"),
        (["a"], "", "x"),
        (["a"], "x", "x\\y"),
        (["a\x1b[0m"], "x", "x"),
    ],
)
def test_control_characters_are_refused(words: list[str], name: str, run: str) -> None:
    with pytest.raises(ValueError, match=r"control characters|one line of text|backslash"):
        render_job(JobSpec(), words, name=name, run=Path(run), cwd=Path("."))


class Shell:
    """Runs a script with stand-ins for Slurm's programs, which note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls = folder / "calls"
        for program in ("bash", "date", "mkdir", "rm", "cat", "env", "sed", "sleep", "printf"):
            (self.bin / program).symlink_to(Path("/bin") / program)
        self.add("squeue", "echo RUNNING")
        self.add("scontrol", "")
        self.add("sbatch", "echo 99")
        self.add("sleep", "")

    def add(self, program: str, lines: str) -> None:
        (self.bin / program).unlink(missing_ok=True)
        (self.bin / program).write_text(f'#!/bin/bash\necho {program} "$@" >> {self.calls}\n{lines}\n')
        (self.bin / program).chmod(0o755)

    def run(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        slurm = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]", "SLURMD_NODENAME": "node7"}
        return subprocess.run(
            ["bash"], input=script, env={"PATH": str(self.bin), **slurm, **variables}, capture_output=True, text=True
        )


def events(run: Path) -> list[tuple[str, str, int]]:
    lines = [json.loads(line) for line in (run / "slurm/events.jsonl").read_text().splitlines()]
    return [(line["event"], line["job"], line["code"]) for line in lines]


def test_the_processes_get_the_words_and_the_environment(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.add("srun", 'shift 2; SLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NTASKS=8 "$@"')
    shell.add("show", 'shift 2; printf "%s\\n" "$MASTER_ADDR" "$MASTER_PORT" "$OMP_NUM_THREADS" "$NOTE" "$RANK" "$@"')
    spec = JobSpec(tasks_per_node=4, cpus_per_task=3, environment=("NOTE=it's $(touch hostile)",), python="show")
    run = tmp_path / "a $(touch hostile)'s `run`"
    script = render_job(spec, ["m", "a b", "$(touch hostile)", "'\""], name="x", run=run, cwd=tmp_path)
    done = shell.run(script)
    port = str(20000 + 10 * 123456 % 10000)
    assert done.stdout.splitlines() == [
        "node7",
        port,
        "3",
        "it's $(touch hostile)",
        "5",
        "a b",
        "$(touch hostile)",
        "'\"",
    ]
    assert not Path("hostile").exists()
    assert events(run) == [("start", "123456", 0), ("done", "123456", 0)]
    assert "scontrol" not in shell.calls.read_text()


def test_a_port_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    import socket

    shell = Shell(tmp_path)
    shell.add("srun", 'echo "$MASTER_PORT"')
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 20000 + 10 * 123 % 10000))
        taken.listen()
        done = shell.run(render_job(JobSpec(), ["m"], name="x", run=tmp_path, cwd=tmp_path), SLURM_JOB_ID="123")
    assert int(done.stdout) > 21230


REQUEUE = "scontrol requeue 123456"
RESUBMIT = "sbatch --parsable --dependency=afterany:123456 --begin=now+{} bash"


@pytest.mark.parametrize(
    ("srun", "changes", "happened", "called"),
    [
        # Saved and unfinished: whatever the exit code, and without waiting.
        (": > requeue.json", {}, [("stopped", "123456", 0)], ["sleep 0", REQUEUE]),
        (": > requeue.json; exit 1", {}, [("stopped", "123456", 1)], ["sleep 0", REQUEUE]),
        # Of a rank that died, srun ends the others by TERM: that is no stop.
        ("exit 143", {}, [("crashed", "123456", 143)], ["sleep 30", REQUEUE]),
        # Slurm has requeued or cancelled the job itself.
        (": > requeue.json", {"squeue": "echo COMPLETING"}, [("stopped", "123456", 0)], []),
        ("exit 1", {"squeue": "exit 1"}, [("crashed", "123456", 1)], []),
        # No scontrol, or one that may not.
        (
            ": > requeue.json",
            {"scontrol": None},
            [("stopped", "123456", 0), ("resubmitted", "99", 0)],
            [RESUBMIT.format(0)],
        ),
        (
            ": > requeue.json",
            {"scontrol": "exit 1", "squeue": None},
            [("stopped", "123456", 0), ("resubmitted", "99", 0)],
            ["sleep 0", REQUEUE, RESUBMIT.format(0)],
        ),
        ("exit 1", {"scontrol": None}, [("crashed", "123456", 1), ("resubmitted", "99", 0)], [RESUBMIT.format(30)]),
        # Bad input is not tried again.
        ("exit 2", {}, [("refused", "123456", 2)], []),
    ],
)
def test_what_follows_the_end_of_the_ranks(
    tmp_path: Path,
    srun: str,
    changes: dict[str, str | None],
    happened: list[tuple[str, str, int]],
    called: list[str],
) -> None:
    shell = Shell(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "requeue.json").touch()  # of an earlier start: answered
    shell.add("srun", f"cd {run}; {srun}")
    for program, lines in changes.items():
        shell.add(program, lines or "")
        if lines is None:
            (shell.bin / program).unlink()
    done = shell.run(render_job(JobSpec(), ["m"], name="x", run=run, cwd=tmp_path))
    assert events(run) == [("start", "123456", 0), *happened], done.stderr
    assert [line for line in shell.calls.read_text().splitlines() if not line.startswith(("srun", "squeue"))] == called


def test_a_crash_is_followed_by_so_many_starts_with_growing_pauses(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.add("srun", "exit 137")
    script = render_job(JobSpec(max_crashes=3, crash_backoff_s=5), ["m"], name="x", run=tmp_path / "r", cwd=tmp_path)
    for _ in range(4):
        assert shell.run(script).returncode == 137
    assert [event for event, _, _ in events(tmp_path / "r")] == ["start", "crashed"] * 3 + ["start", "failed"]
    calls = shell.calls.read_text().splitlines()
    assert [line for line in calls if line.startswith("sleep")] == ["sleep 5", "sleep 10", "sleep 20"]
    assert calls.count(REQUEUE) == 3


def test_a_task_of_an_array_runs_its_own_line(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.add("srun", f'printf "%s\\n" "${{@:8}}"; : > "{tmp_path}/1 b/requeue.json"')
    (tmp_path / "slurm").mkdir()
    lines = [task_line(["m", f"$(rm) {i}"], tmp_path / f"{i} b") for i in range(3)]
    (tmp_path / "slurm/tasks.sh").write_text("\n".join(lines) + "\n")
    (shell.bin / "scontrol").unlink()
    script = render_array(JobSpec(python="python"), [1], name="x", folder=tmp_path, cwd=tmp_path)
    done = shell.run(script, SLURM_ARRAY_JOB_ID="77", SLURM_ARRAY_TASK_ID="1")
    assert done.stdout.splitlines() == ["-m", "m", "$(rm) 1"], done.stderr
    assert events(tmp_path / "1 b") == [("start", "77_1", 0), ("stopped", "77_1", 0), ("resubmitted", "99_1", 0)]
    assert "sbatch --parsable --array=1 --dependency=afterany:123456 --begin=now+0 bash" in shell.calls.read_text()


def test_setup_that_fails_starts_nothing(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.add("srun", "")
    script = render_job(JobSpec(setup=("false",)), ["m"], name="x", run=tmp_path, cwd=tmp_path)
    assert shell.run(script).returncode == 1
    assert events(tmp_path) == [("start", "123456", 0)]
    assert not shell.calls.exists()


if __name__ == "__main__":
    # Writes the golden scripts anew; the difference is then to be read.
    assert os.getcwd()
    for file, text in rendered().items():
        (GOLDEN / file).write_text(text)
