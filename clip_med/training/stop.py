"""Signals that ask a job to stop: noted, never acted on inside the handler."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final

# TERM: preemption and `scancel`; USR1, USR2: Slurm's warning before the time limit; INT: Ctrl-C.
SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


# Not Ctrl-C: who presses it waits for the program to end.
_HELD_BACK: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def hold_back() -> None:
    """Let the stop signals of a batch system wait until `StopSignals` can note them.

    A job may be preempted while its ranks still import torch, for 5 to 20 s; dying of the signal would look like a
    crash. Threads and processes that are started meanwhile inherit this.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)


class StopSignals:
    """While open, notes the first stop signal in `received`; a second Ctrl-C interrupts at once.

    Signals that waited since `hold_back` arrive on opening. Python only runs handlers in the main thread of a process:
    elsewhere nothing is caught.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name


__all__ = ["SIGNALS", "StopSignals", "hold_back"]
