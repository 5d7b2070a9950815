"""`clip-med pretrain`: train a dual encoder, or continue a run that was stopped."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from clip_med.commands.printing import as_json


def add_parser(commands: Any) -> None:
    """Add `pretrain`."""
    text = "train a dual encoder; repeating the command continues a run that was stopped or killed"
    parser = commands.add_parser(
        "pretrain",
        help=text,
        description=text
        + ". Values of the configuration can be given as --KEY VALUE; the kind of a part and what is null cannot.",
        epilog="example: clip-med pretrain configs/pretrain/demo.yaml --run runs/first --train.seed 1 "
        "--train.optim.lr 3e-4. On several GPUs: torchrun --nproc-per-node 8 -m -- clip_med pretrain ...",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, or the name of a shipped one")
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="the run folder")
    parser.add_argument(
        "--eval",
        metavar="CONFIG",
        type=Path,
        help="evaluate at the end and, with train.eval_every_samples, before it; a pretrained model also before the "
        "first step, with a table of what it gained and forgot",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument(
        "--allow-data-change",
        action="store_true",
        help="continue a run although its shards or their mixture have changed: the samples come in another order",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.set_defaults(call=_pretrain, takes_overrides=True)


def _pretrain(arguments: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        if "SLURM_JOB_ID" in os.environ:
            from clip_med.training.stop import held_back

            # Before torch is imported.
            stack.enter_context(held_back())
        return _train(arguments)


def _train(arguments: argparse.Namespace) -> int:
    from clip_med.commands.forgetting import ForgettingGuard
    from clip_med.commands.progress import TrainDisplay
    from clip_med.config import load_config
    from clip_med.pretrain import PretrainConfig, pretrain

    config = load_config(PretrainConfig, arguments.config, arguments.overrides)
    guard: ForgettingGuard | None = None
    with TrainDisplay() as display:
        if arguments.eval is not None:
            from zero_shot.config import EvalConfig

            guard = ForgettingGuard(
                config.model, load_config(EvalConfig, arguments.eval), arguments.run, arguments.device, display.say
            )
        summary = pretrain(
            config,
            arguments.run,
            evaluators=[] if guard is None else [guard.evaluator],
            device=arguments.device,
            allow_data_change=arguments.allow_data_change,
            on_built=None if guard is None else guard.before,
            on_start=display.say,
            on_step=display.on_step,
        )
    changes = guard.compare(summary.checkpoint / "model") if guard is not None and summary.finished else []
    if arguments.json:
        print(
            as_json(
                {
                    "run": str(arguments.run),
                    "checkpoint": str(summary.checkpoint),
                    "step": summary.step,
                    "samples": summary.samples,
                    "started_at_step": summary.started_at_step,
                    "finished": summary.finished,
                    "stopped_by": summary.stopped_by,
                    "seconds": round(summary.seconds, 1),
                    "results": [result.to_dict() for result in summary.results],
                    "forgetting": [change.to_dict() for change in changes],
                }
            )
        )
    elif summary.finished:
        if changes:
            from zero_shot.forgetting import plain

            print(plain(changes))
        print(f"{summary.samples:,} samples seen; model: {summary.checkpoint / 'model'}")
    if not summary.finished:
        print(f"stopped by {summary.stopped_by} after step {summary.step}; repeat to continue", file=sys.stderr)
    # A job that was asked to stop and saved did what it should; Ctrl-C ends with the shell's usual code.
    return 130 if summary.stopped_by == "SIGINT" else 0


__all__ = ["add_parser"]
