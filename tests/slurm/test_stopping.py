"""A process that ends when Slurm asks for it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from slurm.stopping import requeued_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_the_process_in_order_with_word_that_work_is_left(tmp_path: Path, number: signal.Signals) -> None:
    run, before = tmp_path / "run", signal.getsignal(number)
    ended: list[str] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # While what was open is closed.
            ended.append("closed")

    with pytest.raises(SystemExit) as caught, requeued_on_signals(run):
        work()
    assert caught.value.code == 128 + number
    assert ended == ["closed"]
    assert json.loads((run / "requeue.json").read_text()) == {"reason": number.name}
    assert signal.getsignal(number) is before


def test_work_that_ends_leaves_nothing(tmp_path: Path) -> None:
    with requeued_on_signals(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
