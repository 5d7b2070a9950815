"""Pretraining on two nodes of a real Slurm ends with the same bits, whatever happens to the job on its way.

Every run is held after step 6, where the fault is done to it; checkpoints come every four steps.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from clip_med.cli import main
from clip_med.config import load_config
from slurm.job import JobSpec
from slurm.record import queue, read_events, status
from slurm.submit import active_job, submit_run
from tests.slurm.cluster import Cluster
from tests.slurm.fault_table import TABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HELD_AT = 6
STEPS = 20
# Runs at a time: on two cores, more of them only wait for each other.
AT_ONCE = 3


def tensors(run: Path) -> dict[str, bytes]:
    """Weights and optimiser state of the last checkpoint; which rank's file holds a tensor may differ."""
    folder = run / json.loads((run / "latest.json").read_text())["checkpoint"]
    found: dict[str, bytes] = {}
    for file in folder.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            key = f"{file.parent.name}/{name}"
            assert key not in found
            found[key] = tensor.numpy().tobytes()
    assert {key.split("/")[0] for key in found} == {"model", "state"}
    return found


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    return [loss for _, loss in found]


def logged_steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return sum('"loss"' in line for line in file.read_text().splitlines()) if file.exists() else 0


def log_of(run: Path) -> str:
    return "\n".join(file.read_text() for file in sorted((run / "slurm").glob("*.log")))


@dataclass
class Case:
    """A run under way on a pair of nodes of its own."""

    cluster: Cluster
    run: Path
    pair: int
    tiny: Path
    spec: JobSpec
    job: str = ""

    @property
    def second_node(self) -> str:
        return f"node{2 * self.pair}"

    def submit(self, **changes: Any) -> None:
        spec = dataclasses.replace(self.spec, constraint=f"pair{self.pair}", **changes)
        words = ["tests.slurm.held", "pretrain", str(self.tiny), "--run", str(self.run), "--device", "cpu", "--json"]
        self.job = submit_run(spec, words, run=self.run)

    def release(self) -> None:
        (self.run / "hold").unlink()

    def wait_until_held(self) -> None:
        self.cluster.wait_for("the held step", lambda: logged_steps(self.run) >= HELD_AT, seconds=240)

    def wait_until_left(self) -> None:
        self.cluster.wait_for("the end of this start", lambda: self.cluster.state(self.job) != "RUNNING", seconds=100)

    def wait_until_done(self) -> None:
        def ended() -> bool:
            one = status(self.run, queue())
            if one.state == "pending":
                self.cluster.lift_hold(str(one.job))
            return one.state not in ("pending", "running")

        self.cluster.wait_for("the end of the run", ended, seconds=200)
        one = status(self.run, queue())
        assert one.state == "done", (one, read_events(self.run), log_of(self.run))


def preempt(case: Case) -> None:
    case.cluster.call(
        *("sbatch", "--partition=main", "--nodes=2", "--exclusive", f"--constraint=pair{case.pair}"),
        *("--output=/dev/null", "--wrap=sleep 1"),
    )
    case.wait_until_left()


def time_limit(case: Case) -> None:
    # The limit is moved close: Slurm counts it in minutes and looks at it every half minute, so the warning of 30 s
    # comes at once or within half a minute.
    *_, minutes, seconds = [
        "0",
        *case.cluster.call("squeue", "--noheader", f"--jobs={case.job}", "-o", "%M").split(":"),
    ]
    limit = (int(minutes) * 60 + int(seconds) + 35) // 60 + 1
    case.cluster.call("scontrol", "update", f"jobid={case.job}", f"TimeLimit={limit}")
    case.wait_until_left()
    case.cluster.call("scontrol", "update", f"jobid={case.job}", "TimeLimit=30")


def requeue_by_hand(case: Case) -> None:
    case.cluster.call("scontrol", "requeue", case.job)
    case.wait_until_left()


def node_down(case: Case) -> None:
    case.cluster.call("scontrol", "update", f"nodename={case.second_node}", "state=down", "reason=test")
    case.wait_until_left()
    # An operator does not see it come back while what ran there is still ending.
    case.cluster.wait_for("the end of its processes", lambda: not case.cluster.ranks(case.job), seconds=60)
    back(case)


def back(case: Case) -> None:
    def idle() -> bool:
        case.cluster.call("scontrol", "update", f"nodename={case.second_node}", "state=resume", check=False)
        shown = case.cluster.call("sinfo", "--noheader", f"--nodes={case.second_node}", "--partition=main", "-o", "%T")
        return shown == "idle"

    case.cluster.wait_for("the node", idle, seconds=60)


def slurmd_killed(case: Case) -> None:
    case.cluster.kill_node(case.second_node)
    case.release()
    case.wait_until_left()
    case.cluster.start_node(case.second_node)
    back(case)


def rank_killed(case: Case) -> None:
    os.kill(case.cluster.ranks(case.job)[1], signal.SIGKILL)
    case.release()
    case.wait_until_left()


def signalled(case: Case) -> None:
    case.cluster.call("scancel", "--signal=USR2", case.job)
    case.wait_until_left()


def one_node_left(case: Case) -> None:
    signalled(case)
    case.cluster.call("scancel", case.job)
    case.cluster.wait_for("an empty place", lambda: active_job(case.run) is None)
    case.submit(nodes=1)


@dataclass(frozen=True)
class Fault:
    """What is done, the job it is done to, and the step that the next start must go on from."""

    title: str
    do: Callable[[Case], None]
    resumes_from: int = HELD_AT + 1
    changes: tuple[tuple[str, Any], ...] = ()
    # False: sums over the batch come in another order.
    exact: bool = True
    node_returns: bool = False


FAULTS = {
    "preempted": Fault("preempted by a job of higher priority", preempt, changes=(("partition", "preempt"),)),
    "time-limit": Fault("time limit, USR1 before it", time_limit),
    "requeued": Fault("scontrol requeue", requeue_by_hand),
    "node-down": Fault("a node set down", node_down, node_returns=True),
    "slurmd-killed": Fault("kill -9 of a node's slurmd and all its processes", slurmd_killed, 4, node_returns=True),
    "rank-killed": Fault("kill -9 of rank 1", rank_killed, 4),
    "torchrun": Fault("USR2 under torchrun", signalled, changes=(("launcher", "torchrun"),)),
    "no-scontrol": Fault("USR2, no scontrol on the nodes", signalled),
    "one-node": Fault("USR2, then submitted on one node", one_node_left, exact=False),
}


def resumed_from(run: Path) -> int:
    """The step from which the run was first continued, by a start that may have been killed itself."""
    first, second, *_ = [int(step) for step in (run / "first_steps").read_text().split()]
    assert first == 1
    return second - 1


@pytest.fixture
def spec() -> JobSpec:
    """The shipped description for two nodes on one machine."""
    return dataclasses.replace(load_config(JobSpec, "slurm/local"), python=sys.executable)


@pytest.fixture
def bin_without_scontrol(tmp_path: Path) -> Path:
    """Every program that a node has, but scontrol."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name != "scontrol":
            (folder / program.name).symlink_to(program)
    return folder


def survive(case: Case, fault: Fault) -> float:
    """Do it to a run of its own; returns the seconds until the run was done."""
    began = time.monotonic()
    case.run.mkdir(parents=True)
    (case.run / "hold").write_text(str(HELD_AT))
    case.submit()
    case.wait_until_held()
    fault.do(case)
    (case.run / "hold").unlink(missing_ok=True)
    case.wait_until_done()
    return time.monotonic() - began


def uninterrupted(cluster: Cluster, tiny_yaml: Path, run: Path) -> Path:
    """The run that nothing is done to, submitted by the command as it stands in the manual."""
    command = ["slurm", "submit", str(tiny_yaml), "--run", str(run), "--config", "slurm/local", "--device", "cpu"]
    assert main([*command, "--job.constraint", "pair1"]) == 0
    Case(cluster, run, 1, tiny_yaml, JobSpec()).wait_until_done()
    assert [start["world_size"] for start in json.loads((run / "environment.json").read_text())] == [2]
    assert [event["event"] for event in read_events(run)] == ["submitted", "start", "done"]
    assert read_events(run)[-1]["nodes"] == "node[1-2]"
    return run


def check(case: Case, fault: Fault, whole: Path, seconds: float) -> None:
    """Hold a run that survived to the one that nothing was done to; adds a line to the table."""
    started = len(json.loads((case.run / "environment.json").read_text()))
    same = tensors(case.run) == tensors(whole) and losses(case.run) == losses(whole)
    ratio = max(abs(ours / theirs - 1) for ours, theirs in zip(losses(case.run), losses(whole), strict=True))
    word = "equal, bit for bit" if same else f"losses within {ratio:.0e}"
    TABLE.append((fault.title, str(started), str(resumed_from(case.run)), f"{seconds:.0f}", word))
    # Another sequence of batches would differ in the first digits.
    assert same if fault.exact else ratio < 1e-4
    # A job whose node comes back at once can be ended once more by late word of its first start.
    assert started == 2 or (fault.node_returns and started == 3)
    assert resumed_from(case.run) == fault.resumes_from
    resubmitted = [event["event"] for event in read_events(case.run)].count("resubmitted")
    assert resubmitted == (fault is FAULTS["no-scontrol"])


# One test for all, because they wait for Slurm and for each other's processors side by side.
def test_runs_end_with_the_same_bits_whatever_was_done_to_them(
    cluster: Cluster, spec: JobSpec, bin_without_scontrol: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    # For working on one: ONLY_FAULTS="preempted requeued".
    names = os.environ.get("ONLY_FAULTS", "").split() or list(FAULTS)
    cases: dict[str, Case] = {}
    for pair, name in enumerate(names, start=2):
        job = dataclasses.replace(spec, **dict(FAULTS[name].changes))
        if name == "no-scontrol":
            job = dataclasses.replace(job, setup=(f"export PATH={bin_without_scontrol}",))
        cases[name] = Case(cluster, tmp_path / name, pair, tiny_yaml, job)
    whole = uninterrupted(cluster, tiny_yaml, tmp_path / "whole")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {name: pool.submit(survive, case, FAULTS[name]) for name, case in cases.items()}
    failed: list[str] = []
    for name, future in futures.items():
        try:
            check(cases[name], FAULTS[name], whole, future.result())
        except (AssertionError, TimeoutError, subprocess.SubprocessError) as error:
            failed.append(f"{name}: {error}\n{read_events(cases[name].run)}\n{log_of(cases[name].run)}")
    assert not failed, "\n\n".join(failed)
