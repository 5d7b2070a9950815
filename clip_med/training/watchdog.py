"""A process whose steps stop coming ends itself and says where it hung, so that the batch system can start it again."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

# EX_TEMPFAIL of sysexits.h: a failure that trying again may mend.
EXIT_HUNG: Final = 75


class Watchdog:
    """While open, ends the process with exit code 75 when no `tick` has come for `seconds`.

    The stacks of all threads go to stderr and to `FOLDER/stacks-rankN.txt` first. A thread watches; as no thread runs
    while a call keeps the interpreter's lock, a timer of `faulthandler` stands behind it and ends the process with exit
    code 1 after twice that time.

    Args:
        seconds: None watches nothing.
        clock: counts seconds.
        leave: ends the process.
    """

    def __init__(
        self,
        seconds: float | None,
        folder: Path,
        rank: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._seconds, self._clock, self._leave = seconds, clock, leave
        self._file = folder / f"stacks-rank{rank}.txt"
        self._allowed = seconds or 0.0
        self._last = clock()
        self._what = "the first step"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            self._last = self._clock()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def tick(self, what: str, *, times: float = 1.0) -> None:
        """Something has ended, and `what` follows; it may take so many times the limit."""
        self._last, self._what = self._clock(), what
        self._allowed = times * (self._seconds or 0.0)

    def check(self) -> bool:
        """Whether time is up; if it is, dump the stacks and leave."""
        waited = self._clock() - self._last
        if waited <= self._allowed:
            return False
        line = f"watchdog: {self._what} has not ended for {waited:.0f} s (limit {self._allowed:.0f} s); all stacks:\n"
        # stderr first: the folder may be what hangs.
        os.write(self._stderr(), line.encode())
        faulthandler.dump_traceback(self._stderr(), all_threads=True)
        # The same is on stderr: a disk that is full or gone must not keep the process from leaving.
        with contextlib.suppress(OSError), self._file.open("w", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        self._leave(EXIT_HUNG)
        return True

    @staticmethod
    def _stderr() -> int:
        return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2

    def _watch(self) -> None:
        assert self._seconds is not None
        interval = min(self._seconds / 4, 10.0)
        try:
            while not self._ended.wait(interval):
                if self.check():
                    return
                # Renewed each time: it only fires when this thread cannot run.
                faulthandler.dump_traceback_later(interval + 2 * self._seconds, exit=True, file=self._stderr())
        finally:
            faulthandler.cancel_dump_traceback_later()


__all__ = ["EXIT_HUNG", "Watchdog"]
