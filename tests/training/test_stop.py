"""Signals of a batch system wait for the training loop; Ctrl-C does not."""

from __future__ import annotations

import os
import signal

import pytest

from clip_med.training.stop import StopSignals, hold_back


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_came_during_the_start_is_noted_when_training_begins(number: signal.Signals) -> None:
    hold_back()
    os.kill(os.getpid(), number)  # would end this process
    with StopSignals() as signals:
        assert signals.received == number.name
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_during_the_start_is_not_held_back() -> None:
    hold_back()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with StopSignals() as signals:
        assert signals.received is None
