"""What long work shows: a bar on a terminal, a plain line now and then elsewhere. All of it on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from clip_med.training.trainer import StepReport

# Where nobody watches, a line as often as one would look.
_SECONDS_BETWEEN_LINES: Final = 15.0


class TrainDisplay:
    """Shows the steps of a training run."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._plain = not console.is_terminal
        self._task = None
        self._last_line = 0.0

    def __enter__(self) -> TrainDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._plain:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, highlight=False, markup=False)

    def on_step(self, report: StepReport) -> None:
        """Receives the reports of `train`."""
        text = (
            f"loss {report.loss:.3f}  lr {report.learning_rate:.1e}  scale {report.logit_scale:.1f}  "
            f"{report.samples_per_second:.0f} samples/s"
            f"{'' if report.mfu is None else f'  mfu {report.mfu:.1%}'}"
        )
        if self._plain:
            now = time.monotonic()
            if now - self._last_line >= _SECONDS_BETWEEN_LINES or report.step == report.total_steps:
                print(f"step {report.step}/{report.total_steps}  {text}", file=sys.stderr, flush=True)
                self._last_line = now
            return
        if self._task is None:
            self._task = self._bar.add_task(text, total=report.total_steps)
        self._bar.update(self._task, completed=report.step, description=text)


class ItemDisplay:
    """Shows how many items of a piece of work are done: a bar for each on a terminal; nothing when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._plain = not quiet and not console.is_terminal
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._done: dict[str, int] = {}

    def __enter__(self) -> ItemDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_item(self, name: str, done: int, total: int) -> None:
        """Of the work `name`, `done` of `total` items are finished."""
        now = time.monotonic()
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total, rate="")
        if name not in self._done or done < self._done[name]:
            # What an earlier run has done comes at once and says nothing of the rate; a smaller number begins anew.
            self._began[name] = (now, done)
        self._done[name] = done
        seconds, count = now - self._began[name][0], done - self._began[name][1]
        rate = count / seconds if seconds > 0 else 0.0
        self._bar.update(self._tasks[name], completed=done, total=total, rate=f"{rate:,.0f}/s")
        if self._plain and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            left = f", {_time(round((total - done) / rate))} left" if rate else ""
            print(f"{name} {done:,}/{total:,}, {rate:,.0f}/s{left}", file=sys.stderr, flush=True)
            self._last_line = now


def _time(seconds: int) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> _time(3725)
        '1:02:05'
    """
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


__all__ = ["ItemDisplay", "TrainDisplay"]
