"""`clip-med` whose rank 0 waits after the step that RUN/hold names, until the file is gone or a stop signal comes.

    python -m tests.slurm.held pretrain CONFIG --run RUN ...

So a test can do something to a job at a known step, however fast or slow the machine is. Every start adds the first
step it made to RUN/first_steps, for a start that is killed says nothing at its end.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from clip_med.cli import main
from clip_med.commands.progress import TrainDisplay
from clip_med.training.trainer import StepReport

RUN = Path(sys.argv[sys.argv.index("--run") + 1])
HOLD = RUN / "hold"
STEPS: list[int] = []
NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def hold(step: int) -> None:
    came: list[int] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in NUMBERS}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before[number](number, frame)

    for number in NUMBERS:
        signal.signal(number, note)
    while not came and HOLD.exists() and HOLD.read_text() == str(step):
        time.sleep(0.05)
    for number in NUMBERS:
        signal.signal(number, before[number])


def on_step(self: TrainDisplay, report: StepReport, show: Any = TrainDisplay.on_step) -> None:
    if not STEPS:
        with (RUN / "first_steps").open("a") as file:
            file.write(f"{report.step}\n")
    STEPS.append(report.step)
    show(self, report)
    hold(report.step)


if __name__ == "__main__":
    TrainDisplay.on_step = on_step  # type: ignore[method-assign]
    sys.exit(main())
