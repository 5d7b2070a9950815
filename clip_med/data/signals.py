"""A batch system signals a process and all that it has started: worker processes leave the answer to their parent."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

_OF_THE_SCHEDULER: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def signals_held_back() -> Generator[None]:
    """Until the end of the block; processes started in it begin that way, so that none dies before it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_SCHEDULER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """In a worker, first of all: only its parent decides when to stop."""
    for ignored in _OF_THE_SCHEDULER:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_SCHEDULER)


__all__ = ["ignore_signals", "signals_held_back"]
