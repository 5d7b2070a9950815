"""Program for test_ranks.py: one rank of a tiny run; its place comes from the environment, as under torchrun.

python -m tests.training.rank_run SHARDS RUN
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from clip_med.pretrain import pretrain
from tests.tiny_run import tiny_config

if __name__ == "__main__":
    torch.set_num_threads(1)
    stop_at = int(os.environ.get("STOP_AT", "0"))

    def on_step(report: object) -> None:
        # Only rank 0 reports, and only it is told to stop: the others must stop at the same step.
        if stop_at and getattr(report, "step", 0) == stop_at:
            os.kill(os.getpid(), 15)

    summary = pretrain(tiny_config(Path(sys.argv[1])), Path(sys.argv[2]), device="cpu", on_step=on_step)
    print(summary.step, summary.finished, summary.stopped_by)
    assert not dist.is_initialized()
    sys.stdout.flush()
    # gloo's threads can outlive the interpreter's teardown.
    os._exit(0)
