"""Program for test_kill.py: runs that are killed with SIGKILL, each in a forked child of one warm process.

    python -m tests.training.killed_runs SHARDS OUT calls|moments

`calls` kills a run at its first, second, third ... call of a function by which a save reaches the disk, and continues
it; `moments` kills runs again and again at random times until they are done. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clip_med.pretrain import pretrain
from clip_med.training.config import ScheduleConfig
from tests.tiny_run import final_tensors, tiny_config

# Each is called several times by a save: before it, in the middle of it and after its commit.
STEPS_OF_A_SAVE = ((os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"))


def in_child(work: Callable[[], object], *, seconds: float | None = None) -> int:
    """Fork, run, and kill after some seconds; returns the exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_call(number: int) -> None:
    """Make this process kill itself before the `number`-th call of a function that a save uses."""
    calls = [0]

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        return call

    for module, name in STEPS_OF_A_SAVE:
        setattr(module, name, wrapped(getattr(module, name)))


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def main() -> None:
    shards, out, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    # Two saves, the second of which deletes the first; or six.
    train = {"samples": 16, "save_every_samples": 8, "keep": 1, "schedule": ScheduleConfig()}
    config = tiny_config(shards, **(train if mode == "calls" else {}))
    # Here too, so that the children find every module imported: on one thread, nothing is lost in a fork.
    pretrain(config, out / "warm")
    began = time.monotonic()
    assert in_child(lambda: pretrain(config, out / "whole")) == 0
    duration = time.monotonic() - began
    kills, different, leftovers = 0, [], 0
    rng = random.Random(0)
    for attempt in range(1, 1000 if mode == "calls" else 5):
        run = out / f"run-{attempt}"
        if mode == "calls":
            status = in_child(lambda n=attempt, r=run: (kill_at_call(n), pretrain(config, r)))
        else:
            status = -signal.SIGKILL
            while (run / "latest.json").exists() is False or not json.loads((run / "latest.json").read_text())[
                "finished"
            ]:
                status = in_child(lambda r=run: pretrain(config, r), seconds=rng.uniform(0.2, 0.7) * duration)
                kills += status == -signal.SIGKILL
                leftovers += any(run.rglob("*.tmp-*"))
        if mode == "calls" and status == 0:
            break
        kills += mode == "calls"
        leftovers += mode == "calls" and any(run.rglob("*.tmp-*"))
        assert in_child(lambda r=run: pretrain(config, r)) == 0
        if (
            final_tensors(run) != final_tensors(out / "whole")
            or losses(run) != losses(out / "whole")
            or any(run.rglob("*.tmp-*"))
        ):
            different.append(run.name)
        shutil.rmtree(run)
    print(json.dumps({"kills": kills, "interrupted_saves": leftovers, "different": different}))


if __name__ == "__main__":
    main()
