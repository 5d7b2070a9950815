"""Faults of groups of processes: ranks killed or stopped at random moments, and groups of other sizes that go on."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from clip_med.training.metrics_log import read_metrics
from clip_med.training.watchdog import EXIT_HUNG
from tests.rank_server import RankServer
from tests.tiny_run import final_tensors
from tests.training import rank_work

pytestmark = pytest.mark.slow


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def finished(run: Path) -> bool:
    return (run / "latest.json").exists() and json.loads((run / "latest.json").read_text())["finished"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in a thread"])
def test_kill_9_of_one_or_all_ranks_changes_no_bit(
    ranks: RankServer, shards: Path, tmp_path: Path, asynchronous: bool
) -> None:
    """At random moments of steps and saves, again and again until the run is done, and then the next run."""
    train = {"async_checkpoint": asynchronous, "samples": 64}
    ranks.results(2, rank_work.run, str(shards), str(tmp_path / "whole"), train)
    whole = final_tensors(tmp_path / "whole")
    rng, kills, number = random.Random(int(asynchronous)), 0, 0
    while kills < 12:
        number += 1
        run = tmp_path / f"run-{number}"
        while not finished(run):
            victims = rng.choice(([0], [1], [0, 1]))
            ended = ranks.run(2, rank_work.run_killed, str(shards), str(run), train, victims, rng.randrange(3, 70))
            killed = [rank for rank in range(2) if ended[rank].code == -signal.SIGKILL]
            assert set(killed) <= set(victims), ended
            if killed and len(killed) == 1 and victims != killed:
                # The other victim saw its peer go before its own moment came.
                assert ended[1 - killed[0]].code != 0
            kills += bool(killed)
        assert final_tensors(run) == whole
        assert losses(run) == losses(tmp_path / "whole")


def test_a_stopped_rank_makes_the_others_dump_and_leave(ranks: RankServer, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = ranks.run(2, rank_work.run_stopped, str(shards), str(run), {"watchdog_seconds": 4.0}, 1, 5)
    assert ended[0].code == EXIT_HUNG, ended[0].output
    assert ended[1].code == -signal.SIGKILL  # the test's server ends what is stopped, as a batch system does
    said = (run / "stacks-rank0.txt").read_text()
    assert "watchdog: step 6 has not ended" in said
    assert "gradients" in said
    assert "watchdog: step 6 has not ended" in ended[0].output
    ranks.results(2, rank_work.run, str(shards), str(run), {})
    assert finished(run)


def test_a_step_that_hangs_ends_the_process(ranks: RankServer, shards: Path, tmp_path: Path) -> None:
    [ended] = ranks.run(1, rank_work.run_stopped, str(shards), str(tmp_path / "run"), {"watchdog_seconds": 2.0}, -1, 3)
    assert ended.code == EXIT_HUNG, ended.output
    assert "watchdog: step 3 has not ended" in (tmp_path / "run/stacks-rank0.txt").read_text()


def test_an_unforeseen_error_in_a_save_ends_all_ranks_at_once(ranks: RankServer, shards: Path, tmp_path: Path) -> None:
    """The time-out of half an hour would be the test's own end."""
    train = {"max_failed_saves": 1}
    ended = ranks.run(2, rank_work.run_broken, str(shards), str(tmp_path / "run"), train)
    assert "RuntimeError: no such thing as state" in ended[1].output
    assert "rank 1: RuntimeError('no such thing as state')" in ended[0].output
    assert not (tmp_path / "run/latest.json").exists()
    assert all(each.code not in (0, None) for each in ended)


@pytest.mark.parametrize("parallel", [None, "fsdp"], ids=["ddp", "fsdp"])
def test_one_two_four_and_one_process_go_on_from_each_other(
    ranks: RankServer, shards: Path, tmp_path: Path, parallel: str | None
) -> None:
    """The loss of every step is that of one process up to rounding; a group that went astray would show."""
    train = {} if parallel is None else {"parallel": parallel}
    ranks.results(1, rank_work.run, str(shards), str(tmp_path / "one"), train)
    run = tmp_path / "changing"
    for world, until in ((1, 3), (2, 6), (4, 9), (1, 12)):
        assert ranks.results(world, rank_work.run_until, str(shards), str(run), train, until) == [until] * world
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), abs=2e-4)
