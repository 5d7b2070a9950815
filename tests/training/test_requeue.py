"""A run that was asked to stop leaves word that it wants to be started again, and only then."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from clip_med.pretrain import pretrain
from clip_med.training.run_folder import RunFolder
from clip_med.training.trainer import StepReport, TrainSummary
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def stopped_run(shards: Path, run: Path, number: signal.Signals, at: int = 3) -> TrainSummary:
    def stop(report: StepReport) -> None:
        if report.step == at:
            # Not when the signal comes: only once there is a checkpoint to go on from.
            assert not (run / "requeue.json").exists()
            os.kill(os.getpid(), number)

    return pretrain(tiny_config(shards), run, on_step=stop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_stopped_run_asks_to_be_started_again(shards: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    assert not stopped_run(shards, run, number).finished
    assert json.loads((run / "requeue.json").read_text()) == {"step": 4, "samples": 32, "reason": number.name}
    assert json.loads((run / "latest.json").read_text())["step"] == 4
    # The next start takes the request down as soon as the run is its own.
    with RunFolder(run, tiny_config(shards)):
        assert not (run / "requeue.json").exists()


def test_a_start_that_is_refused_leaves_the_request(shards: Path, tmp_path: Path) -> None:
    stopped_run(shards, tmp_path, signal.SIGTERM)
    with pytest.raises(ValueError, match="other settings"):
        pretrain(tiny_config(shards, seed=1), tmp_path)
    assert (tmp_path / "requeue.json").exists()


def test_neither_ctrl_c_nor_the_end_asks_for_anything(shards: Path, tmp_path: Path) -> None:
    assert stopped_run(shards, tmp_path / "run", signal.SIGINT).stopped_by == "SIGINT"
    assert not (tmp_path / "run/requeue.json").exists()
    assert stopped_run(shards, tmp_path / "run", signal.SIGTERM, at=11).finished
    assert not (tmp_path / "run/requeue.json").exists()
