"""`clip-med demo`: the whole path on procedural phantoms, from drawing to the report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from clip_med.commands.printing import as_json

# Samples per split: 90 in a row hold every combination once.
COUNTS: Final = {"train": 7200, "test": 900, "heldout": 900}


def add_parser(commands: Any) -> None:
    """Add `demo`."""
    text = "draw phantoms, pretrain on them, evaluate on combinations never trained on, write a report"
    parser = commands.add_parser(
        "demo",
        help=text,
        description=text + ". Repeating the command continues what was interrupted.",
        epilog="example: clip-med demo --run runs/demo",
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="DIR", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(call=_demo, takes_overrides=True)


def _demo(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    from clip_med.commands.evaluate import evaluate_folder
    from clip_med.commands.progress import ItemDisplay, TrainDisplay
    from clip_med.config import load_config
    from clip_med.pretrain import PretrainConfig, pretrain
    from data_prep.phantoms.write import write_phantoms
    from zero_shot import table

    phantoms = arguments.run / "phantoms"
    config = load_config(PretrainConfig, "pretrain/demo", arguments.overrides)
    config = dataclasses.replace(config, shards=(str(phantoms / "train"),))
    print("1/3 drawing phantoms", file=sys.stderr)
    with ItemDisplay(quiet=arguments.json) as display:
        progress = partial(display.on_item, "drawing")
        write_phantoms(phantoms, COUNTS, size=_image_size(config), workers=2, on_progress=progress)
    print("2/3 pretraining", file=sys.stderr)
    with TrainDisplay() as display:
        summary = pretrain(
            config, arguments.run, device=arguments.device, on_start=display.say, on_step=display.on_step
        )
    if not summary.finished:
        print(f"stopped by {summary.stopped_by} after step {summary.step}; repeat to continue", file=sys.stderr)
        return 130 if summary.stopped_by == "SIGINT" else 0
    print("3/3 evaluating", file=sys.stderr)
    document, evaluation = evaluate_folder(
        arguments.run,
        demo_evaluation(phantoms),
        name="demo",
        device=arguments.device,
        report=None,
        cache=arguments.run / "features",
    )
    seconds = time.monotonic() - began
    if arguments.json:
        print(as_json({**document, "seconds": round(seconds, 1)}))
    else:
        print(table.plain(evaluation), end="")
        print(f"{seconds:.0f} s in all. Tasks named 'unseen' hold only combinations that training never showed.")
    return 0


def demo_evaluation(phantoms: Path) -> Any:
    """Per modality: the findings on new images of known combinations, and all combinations on the held-out ones."""
    from data_prep.phantoms.captions import combination_prompts, finding_prompts
    from data_prep.phantoms.tables import MODALITIES
    from zero_shot.config import ClassificationTask, EvalConfig, RetrievalTask

    tasks: list[ClassificationTask | RetrievalTask] = []
    for modality in MODALITIES:
        tasks.append(
            ClassificationTask(
                name=f"{modality}: findings",
                shards=str(phantoms / "test"),
                modalities=(modality,),
                prompts=finding_prompts(modality),
            )
        )
    for modality in MODALITIES:
        tasks.append(
            ClassificationTask(
                name=f"{modality}: unseen combinations",
                shards=str(phantoms / "heldout"),
                modalities=(modality,),
                prompts=combination_prompts(modality),
            )
        )
    tasks.append(RetrievalTask(name="all modalities", shards=str(phantoms / "test")))
    return EvalConfig(tasks=tuple(tasks))


def _image_size(config: Any) -> int:
    """Phantoms are drawn at the size that the model sees."""
    return getattr(config.model, "image_size", 96)


__all__ = ["add_parser", "demo_evaluation"]
