"""Where a run stands, from its record and the queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slurm import record
from slurm.record import count_states, current_job, events_file, note, read_events, run_program, status


def write(run: Path, *events: tuple[str, str]) -> Path:
    for event, job in events:
        note(run, event, job)
    return run


START = (("submitted", "7"), ("start", "7"))


@pytest.mark.parametrize(
    ("events", "queue", "state", "detail"),
    [
        ((), {}, "none", "never submitted"),
        ((("submitted", "7"),), {"7": ("PENDING", "Priority")}, "pending", "Priority"),
        (START, {"7": ("RUNNING", "None")}, "running", "RUNNING"),
        (START, {"7": ("COMPLETING", "None")}, "running", "COMPLETING"),
        ((*START, ("stopped", "7")), {"7": ("PENDING", "BeginTime")}, "pending", "BeginTime"),
        # The record knows the end before the queue does.
        ((*START, ("done", "7")), {"7": ("COMPLETING", "None")}, "done", ""),
        ((*START, ("refused", "7")), {"7": ("FAILED", "NonZeroExitCode")}, "failed", "bad input"),
        ((*START, ("failed", "7")), {}, "failed", "after the last allowed crash"),
        (START, {"7": ("OUT_OF_MEMORY", "OutOfMemory")}, "failed", "Slurm says OUT_OF_MEMORY"),
        (START, {"8": ("RUNNING", "None")}, "failed", "ended without a word"),
        ((*START, ("cancelled", "7"), ("stopped", "7")), {"7": ("CANCELLED", "None")}, "cancelled", "CANCELLED"),
        ((*START, ("stopped", "7"), ("resubmitted", "8")), {"8": ("PENDING", "Dependency")}, "pending", "Dependency"),
    ],
)
def test_the_state_of_a_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: tuple[tuple[str, str], ...],
    queue: dict[str, tuple[str, str]],
    state: str,
    detail: str,
) -> None:
    monkeypatch.setattr(record, "_accounted", lambda job: "")
    one = status(write(tmp_path, *events), queue)
    assert one.state == state
    assert detail in one.detail
    assert one.job == (events[-1][1] if events else None)


def test_counts_of_starts_stops_and_crashes_begin_anew_with_each_submission(tmp_path: Path) -> None:
    write(tmp_path, *START, ("crashed", "7"), ("start", "7"), ("failed", "7"))
    (tmp_path / "latest.json").write_text(json.dumps({"step": 40, "finished": False}))
    one = status(tmp_path, {})
    assert (one.starts, one.stops, one.crashes, one.step, one.finished) == (2, 0, 2, 40, False)
    write(tmp_path, ("submitted", "9"))
    assert [event["job"] for event in read_events(tmp_path)] == ["9"]
    assert count_states([one, status(tmp_path, {"9": ("RUNNING", "")})]) == {"failed": 1, "running": 1}


def test_a_job_that_was_quicker_than_the_note_of_its_submission_is_done(tmp_path: Path) -> None:
    write(tmp_path, *START, ("failed", "7"), ("start", "8"), ("done", "8"), ("submitted", "8"))
    assert [event["event"] for event in read_events(tmp_path)] == ["submitted", "start", "done"]
    assert status(tmp_path, {}).state == "done"


def test_accounting_is_asked_through_submitit_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {
        "sacct": "echo 'JobID|State|NodeList'; echo '7|CANCELLED by 0|node1'; echo '7.batch|CANCELLED|node1'",
        "scontrol": "echo 'AccountingStorageType = accounting_storage/slurmdbd'",
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    one = status(write(tmp_path / "run", *START), {})
    assert (one.state, one.detail) == ("cancelled", "Slurm says CANCELLED by 0")


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was not submitted to Slurm from here"):
        current_job(tmp_path)
    write(tmp_path, *START)
    with events_file(tmp_path).open("a") as file:
        file.write('{"event": "do')
    with pytest.raises(ValueError, match=r"events.jsonl:3: not a line of the record"):
        read_events(tmp_path)


def test_programs_that_are_absent_or_say_no_are_errors_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error:' >&2; echo 'no controller' >&2; exit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + ":/bin")
    with pytest.raises(ValueError, match="squeue failed: slurm_load_jobs error: no controller"):
        record.queue()
    with pytest.raises(ValueError, match="nothing-such not found"):
        run_program("nothing-such")
