"""Submission through submitit, and what follows by run folder: cancel, requeue, submit again.

Of submitit only the submission is used: it writes our script as its submission file, calls sbatch and reads the job's
number. Its own batch script would ignore TERM and save on rank 0 inside a signal handler, where collectives deadlock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_med.config import to_plain, validate
from clip_med.data.shard_index import write_atomically
from slurm.job import JobSpec
from slurm.record import ACTIVE, current_job, note, queue, run_program
from slurm.script import render_job


def submit_script(text: str, folder: Path) -> str:
    """Hand a script to sbatch, from this machine and working directory; returns the job's number.

    Args:
        folder: for the script's copy `JOB_submission.sh`; created if needed.

    Raises:
        ValueError: submitit is not installed, or sbatch refuses; with its own words.
    """
    try:
        from submitit.core.utils import FailedJobError
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError as error:
        raise ValueError(f"needs the extra: pip install 'clip-med[slurm]' ({error})") from error

    class ScriptExecutor(SlurmExecutor):
        """Submits a finished script instead of one that unpickles a function."""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return command

    folder.mkdir(parents=True, exist_ok=True)
    try:
        return ScriptExecutor(folder)._submit_command(text).job_id
    except FailedJobError as error:
        raise ValueError(f"sbatch refused the job: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        raise ValueError(f"{error}") from error


def submit_run(spec: JobSpec, words: Sequence[str], *, run: Path, cwd: Path | None = None) -> str:
    """Submit `python -m WORDS` as a job that keeps its record in `run`; returns the job's number.

    The description is kept in `run/slurm.json`, so that the run can be submitted again as it was.

    Args:
        cwd: working directory of the job; None: this process's.

    Raises:
        ValueError: the run's job is still pending or running, or see `submit_script`.
    """
    run, cwd = run.absolute(), (cwd or Path.cwd()).absolute()
    busy = active_job(run)
    if busy is not None:
        raise ValueError(f"{run}: job {busy} of this run is still in the queue; clip-med slurm cancel {run}")
    text = render_job(spec, words, name=run.name, run=run, cwd=cwd)
    # None of the crashes that this submission is allowed is used up.
    (run / "slurm/crashes").unlink(missing_ok=True)
    job = submit_script(text, run / "slurm")
    document = {"job": job, "command": list(words), "cwd": str(cwd), "spec": to_plain(spec)}
    write_atomically(run / "slurm.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    note(run, "submitted", job)
    return job


def active_job(run: Path) -> str | None:
    """The run's job if it is pending or running."""
    if not (run / "slurm/events.jsonl").is_file():
        return None
    job = current_job(run)
    state, _ = queue().get(job, ("", ""))
    return job if state in (*ACTIVE, "PENDING") else None


def requeue(run: Path) -> str:
    """Start a run again: requeue its job where it is still in the queue, submit it as it was where it is not.

    Raises:
        ValueError: the run was never submitted, or Slurm refuses.
    """
    run = run.absolute()
    if (job := active_job(run)) is not None:
        run_program("scontrol", "requeue", job)
        return job
    document = _stored(run / "slurm.json")
    spec = validate(JobSpec, document["spec"])
    return submit_run(spec, document["command"], run=run, cwd=Path(document["cwd"]))


def cancel(run: Path) -> str:
    """Cancel a run's job; its ranks still save what they have. Returns the job's number.

    Raises:
        ValueError: it has no job in the queue.
    """
    job = active_job(run)
    if job is None:
        raise ValueError(f"{run}: job {current_job(run)} is not in the queue")
    run_program("scancel", job)
    note(run, "cancelled", job)
    return job


def _stored(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent}: was not submitted to Slurm from here (no {file.name}); clip-med slurm submit")
    return json.loads(file.read_text(encoding="utf-8"))


__all__ = ["active_job", "cancel", "requeue", "submit_run", "submit_script"]
