"""A process of a job that ends in order when Slurm asks for it, and leaves word that work is left."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from clip_med.data.shard_index import write_atomically

_SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def requeued_on_signals(run: Path) -> Iterator[None]:
    """End this process on TERM, USR1 and USR2 as if it had been left, after `requeue.json` is written into `run`.

    The script of the job then starts it again at once, and counts no crash. Further signals are ignored.

    Raises:
        SystemExit: 128 and the number of the signal.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        for ignored in _SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / "requeue.json", json.dumps({"reason": signal.Signals(number).name}) + "\n")
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["requeued_on_signals"]
