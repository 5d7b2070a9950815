"""The watchdog and the time limit, by clocks that the tests set."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_med.training.stop import TimeLimit
from clip_med.training.watchdog import EXIT_HUNG, Watchdog


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_no_step_in_time_dumps_all_stacks_and_leaves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clock, left = Clock(), list[int]()
    watchdog = Watchdog(60.0, tmp_path, 3, clock=clock, leave=left.append)
    watchdog.tick("step 8")
    clock.now += 59.0
    assert not watchdog.check()
    watchdog.tick("step 9")
    clock.now += 61.0
    assert watchdog.check()
    assert left == [EXIT_HUNG]
    said = (tmp_path / "stacks-rank3.txt").read_text()
    assert said.startswith("watchdog: step 9 has not ended for 61 s (limit 60 s)")
    assert "test_no_step_in_time_dumps_all_stacks_and_leaves" in said


def test_slow_things_may_take_longer_and_only_they(tmp_path: Path) -> None:
    clock, left = Clock(), list[int]()
    watchdog = Watchdog(60.0, tmp_path, 0, clock=clock, leave=left.append)
    watchdog.tick("the evaluation", times=4.0)
    clock.now += 239.0
    assert not watchdog.check()
    watchdog.tick("step 2")
    clock.now += 61.0
    assert watchdog.check()


def test_a_folder_that_cannot_be_written_does_not_keep_it(tmp_path: Path) -> None:
    clock, left = Clock(), list[int]()
    watchdog = Watchdog(1.0, tmp_path / "gone", 0, clock=clock, leave=left.append)
    clock.now += 2.0
    assert watchdog.check()
    assert left == [EXIT_HUNG]


def test_none_watches_nothing(tmp_path: Path) -> None:
    clock, left = Clock(), list[int]()
    with Watchdog(None, tmp_path, 0, clock=clock, leave=left.append) as watchdog:
        watchdog.tick("step 1")
        clock.now += 1e9
    assert left == []


def test_the_time_limit_leaves_room_for_a_step_and_a_save() -> None:
    clock = Clock()
    limit = TimeLimit(10.0, since=clock.now - 60.0, clock=clock)  # nine minutes are left
    limit.begin_step()
    clock.now += 20.0
    limit.end_step()
    # What is needed: 20 s for another step, 1.5 times the slowest save, and 30 s.
    clock.now = 1000.0 + 540.0 - 20.0 - 1.5 * 40.0 - 30.0 - 0.5
    assert limit.reached(40.0) is None
    clock.now += 1.0
    assert limit.reached(40.0) == "time limit"
    assert limit.reached(0.0) is None
    assert TimeLimit(None, since=0.0).reached(1e9) is None
