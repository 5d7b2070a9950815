"""Signals of a batch system wait for the training loop; Ctrl-C does not. In processes of their own, with one thread."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from clip_med.training.stop import StopSignals, held_back
assert "torch" not in sys.modules  # it starts threads
with held_back():
    os.kill(os.getpid(), int(sys.argv[1]))
    print("still here", flush=True)
    if sys.argv[2] == "train":
        with StopSignals() as signals:
            print(signals.received, flush=True)
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
print("end")
"""


def outcome(number: signal.Signals, follows: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", PROGRAM, str(int(number)), follows]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    return process.returncode, process.stdout.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_came_during_the_start_is_noted_when_training_begins(number: signal.Signals) -> None:
    assert outcome(number, "train") == (0, ["still here", number.name, "end"])


def test_a_signal_that_nobody_noted_takes_effect_at_the_end() -> None:
    assert outcome(signal.SIGTERM, "nothing") == (-signal.SIGTERM, ["still here"])


def test_ctrl_c_is_not_held_back() -> None:
    code, lines = outcome(signal.SIGINT, "train")
    assert code != 0
    assert lines == []
