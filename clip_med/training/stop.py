"""What asks a run to stop: signals, noted and never acted on inside the handler, and the end of its time."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Final

# TERM: preemption and `scancel`; USR1, USR2: Slurm's warning before the time limit; INT: Ctrl-C.
SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

TIME_LIMIT: Final = "time limit"
# All reasons, in the order in which they win when ranks have different ones: a user's Ctrl-C over all.
REASONS: Final = (TIME_LIMIT, "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT")
# Seconds kept for what is not measured: leaving the process group, the interpreter's end, a slower save.
_MARGIN: Final = 30.0
# Not Ctrl-C: who presses it waits for the program to end.
_HELD_BACK: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let the stop signals of a batch system wait until `StopSignals` can note them, or until the end of this.

    A job may be preempted while its ranks still import torch, for 5 to 20 s; dying of the signal would look like a
    crash. Threads and processes that are started meanwhile inherit this; threads that exist already do not, and would
    receive the signal: use it before torch is imported.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignals:
    """While open, notes the first stop signal in `received`; a second Ctrl-C interrupts at once.

    Signals that waited since `held_back` arrive on opening. Python only runs handlers in the main thread of a process:
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


class TimeLimit:
    """Says when a run must stop so that its last checkpoint is written before its time is up.

    What is left must hold the slowest step and one and a half times the slowest save that were seen, and 30 seconds.

    Args:
        minutes: counted from `since`, as `clock` tells it; None is no limit.
        clock: counts seconds.
    """

    def __init__(self, minutes: float | None, since: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if minutes is None else since + 60.0 * minutes
        self._slowest, self._began = 0.0, clock()

    def begin_step(self) -> None:
        """A step begins; what came before it (evaluation, a save) is not counted as one."""
        self._began = self._clock()

    def end_step(self) -> None:
        """The step has ended."""
        self._slowest = max(self._slowest, self._clock() - self._began)

    def reached(self, save_seconds: float) -> str | None:
        """`TIME_LIMIT` when the current step must be the last. `save_seconds`: the slowest save so far."""
        if self._end is None:
            return None
        needed = self._slowest + 1.5 * save_seconds + _MARGIN
        return TIME_LIMIT if self._clock() + needed >= self._end else None


__all__ = ["REASONS", "SIGNALS", "TIME_LIMIT", "StopSignals", "TimeLimit", "held_back"]
