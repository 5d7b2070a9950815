"""Worker processes from their first moment on."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from torch.utils.data import Dataset

from clip_med.data import stream


class Numbers(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.skipif(sys.platform != "linux", reason="workers that are not forked do not see the replacement")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_before_a_worker_ignores_it_is_held_back(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Found in CI: a scheduler's signal between the fork and the first line of a worker killed it and the trainer."""
    really = stream._start_worker

    def signalled(worker: int) -> None:
        os.kill(os.getpid(), number)
        really(worker)

    monkeypatch.setattr(stream, "_start_worker", signalled)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    items = stream.Stream(Numbers(), range(4), workers=2, prefetch=2)
    try:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        assert list(items) == [0, 1, 2, 3]
    finally:
        items.close()
