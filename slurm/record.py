"""What became of a job: the record that its script keeps in the run folder, and Slurm's word for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

State = Literal["done", "running", "pending", "failed", "cancelled", "none"]
# Events after which the run waits for nothing any more.
_ENDED: Final[Mapping[str, State]] = {
    "done": "done",
    "failed": "failed",
    "refused": "failed",
}
# Slurm's words for a job that has nodes.
ACTIVE: Final = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run under Slurm. `detail` says in Slurm's words or ours why it is not done; `starts` counts its starts."""

    run: str
    state: State
    job: str | None
    detail: str
    starts: int
    stops: int
    crashes: int
    step: int | None
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return dict(vars(self))


def events_file(run: Path) -> Path:
    """Where the record of a run lies."""
    return run / "slurm/events.jsonl"


def note(run: Path, event: str, job: str) -> None:
    """Add a line to the record, as the job's script does."""
    line = {"event": event, "job": job, "start": 0, "code": 0, "nodes": "", "time": int(time.time())}
    events_file(run).parent.mkdir(parents=True, exist_ok=True)
    with events_file(run).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_events(run: Path) -> list[dict[str, Any]]:
    """The record since the last submission, oldest first; [] where there is none.

    Raises:
        ValueError: a line that is not of the record.
    """
    if not events_file(run).is_file():
        return []
    found: list[dict[str, Any]] = []
    lines = events_file(run).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            if event["event"] == "submitted":
                # A quick job may have begun its record before sbatch's caller noted the submission.
                found = [event, *(early for early in found if early["job"] == event["job"])]
            else:
                found.append(event)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{events_file(run)}:{number}: not a line of the record: {line[:80]!r}") from error
    return found


def current_job(run: Path) -> str:
    """Slurm's number of the run's newest job.

    Raises:
        ValueError: the run was never submitted.
    """
    events = read_events(run)
    if not events:
        raise ValueError(f"{run}: was not submitted to Slurm from here (no {events_file(run)}); clip-med slurm submit")
    return str(events[-1]["job"])


def queue() -> dict[str, tuple[str, str]]:
    """State and reason of each of this user's jobs that Slurm still knows, by number (JOB or JOB_TASK).

    Raises:
        ValueError: no Slurm here, or it does not answer.
    """
    listed = run_program("squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i|%T|%r")
    rows = (line.split("|", 2) for line in listed.splitlines() if line.count("|") >= 2)
    return {job.strip(): (state.strip(), reason.strip()) for job, state, reason in rows}


def status(run: Path, jobs: Mapping[str, tuple[str, str]]) -> RunStatus:
    """Where a run stands, from its record, its newest checkpoint and the queue (see `queue`)."""
    events = read_events(run)
    kinds = [event["event"] for event in events]
    job = str(events[-1]["job"]) if events else None
    slurm, reason = jobs.get(job, ("", "")) if job is not None else ("", "")
    state: State
    if not events:
        state, detail = "none", "never submitted"
    elif kinds[-1] in _ENDED:
        state = _ENDED[kinds[-1]]
        detail = "" if state == "done" else _why(events[-1])
    elif slurm == "PENDING":
        state, detail = "pending", reason
    elif slurm in ACTIVE:
        state, detail = "running", slurm
    else:
        slurm = slurm or _accounted(str(job))
        state = "cancelled" if "cancelled" in kinds or slurm.startswith("CANCELLED") else "failed"
        detail = f"Slurm says {slurm}" if slurm else "ended without a word: killed, out of memory, or its node failed"
    latest = _latest(run)
    return RunStatus(
        run=str(run),
        state=state,
        job=job,
        detail=detail,
        starts=kinds.count("start"),
        stops=kinds.count("stopped"),
        crashes=kinds.count("crashed") + kinds.count("failed"),
        step=latest.get("step"),
        finished=bool(latest.get("finished")),
    )


def count_states(statuses: Iterable[RunStatus]) -> dict[str, int]:
    """How many runs are in each state; states without a run are left out."""
    counts: dict[str, int] = {}
    for one in statuses:
        counts[one.state] = counts.get(one.state, 0) + 1
    return counts


def run_program(*command: str) -> str:
    """What one of Slurm's programs prints.

    Raises:
        ValueError: it is not installed, or says no; with its own words.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} not found: this needs a machine from which Slurm can be reached")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise ValueError(f"{command[0]} failed: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


def _why(event: Mapping[str, Any]) -> str:
    if event["event"] == "refused":
        return "bad input (exit code 2), see the log"
    return f"exit code {event['code']} after the last allowed crash, see the log"


def _accounted(job: str) -> str:
    """The state of an old job from Slurm's accounting, through submitit; "" where either is absent."""
    try:
        from submitit.slurm.slurm import SlurmInfoWatcher
    except ImportError:
        return ""
    if shutil.which("sacct") is None or not _has_accounting():
        return ""
    state = SlurmInfoWatcher().get_state(job, mode="force")
    return "" if state == "UNKNOWN" else state


def _has_accounting() -> bool:
    """Whether sacct has a database; without one it fails, and submitit would log that as a warning each time."""
    return "accounting_storage/none" not in run_program("scontrol", "show", "config")


def _latest(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "latest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


__all__ = [
    "ACTIVE",
    "RunStatus",
    "State",
    "count_states",
    "current_job",
    "events_file",
    "note",
    "queue",
    "read_events",
    "run_program",
    "status",
]
