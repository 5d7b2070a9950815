"""`clip-med merge`: a model between a pretrained and a fine-tuned one, and how much of either it keeps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clip_med.commands.printing import as_json


def add_parser(commands: Any) -> None:
    """Add `merge`."""
    text = "interpolate the weights of two models of one architecture (WiSE-FT)"
    parser = commands.add_parser(
        "merge",
        help=text,
        description=text
        + ": (1 - ALPHA) A + ALPHA B. With several values of ALPHA and --eval, a table shows what each "
        "keeps of A and of B.",
        epilog="example: clip-med merge models/pretrained runs/tuned --alpha 0 0.25 0.5 0.75 1 --eval eval/corpus; "
        "then: clip-med merge models/pretrained runs/tuned --alpha 0.5 --out models/merged",
    )
    parser.add_argument("first", metavar="A", type=Path, help="a run or a model folder, usually the pretrained model")
    parser.add_argument("second", metavar="B", type=Path, help="a run or a model folder, usually the fine-tuned model")
    parser.add_argument(
        "--alpha", metavar="ALPHA", type=float, nargs="+", default=[0.5], help="weight of B, 0 to 1 (default: 0.5)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write the model here (a new folder; one ALPHA)")
    parser.add_argument("--eval", metavar="CONFIG", type=Path, help="evaluate every ALPHA; a YAML file or shipped name")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(call=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    alphas, out = arguments.alpha, arguments.out
    if not all(0.0 <= alpha <= 1.0 for alpha in alphas) or len(set(alphas)) != len(alphas):
        raise ValueError(f"--alpha takes distinct numbers from 0 to 1, got {alphas}")
    if out is None and arguments.eval is None:
        raise ValueError("give --out (write the model), --eval (evaluate it), or both")
    if out is not None and len(alphas) > 1:
        raise ValueError(f"--out writes one model; give one --alpha, got {alphas}")
    from clip_med.models.folder import save_folder
    from clip_med.models.interpolate import ModelFamily

    family = ModelFamily([arguments.first, arguments.second])
    if out is not None:
        save_folder(family.between(alphas[0]), out)
    evaluations = [] if arguments.eval is None else _evaluations(family, alphas, arguments.eval, arguments.device)
    if arguments.json:
        results = [
            {"alpha": alpha, **evaluation.to_dict()} for alpha, evaluation in zip(alphas, evaluations, strict=False)
        ]
        document = {"a": str(arguments.first), "b": str(arguments.second), "model": out and str(out)}
        print(as_json({**document, "alpha": alphas, "evaluations": results}))
        return 0
    if evaluations:
        print(_table(alphas, evaluations), end="")
    if out is not None:
        print(f"{out}: {1 - alphas[0]:g} of {arguments.first} and {alphas[0]:g} of {arguments.second}")
    return 0


def _evaluations(family: Any, alphas: list[float], config: Path, device: str) -> list[Any]:
    from clip_med.commands.progress import ItemDisplay
    from clip_med.config import load_config
    from clip_med.distributed import process_group
    from zero_shot.config import EvalConfig
    from zero_shot.suite import evaluate

    tasks = load_config(EvalConfig, config)
    evaluations: list[Any] = []
    with process_group(device) as chosen, ItemDisplay() as display:  # type: ignore[arg-type]
        for alpha in alphas:

            def step(name: str, done: int, total: int, alpha: float = alpha) -> None:
                display.on_item(f"alpha {alpha:g}: {name}", done, total)

            evaluations.append(evaluate(family.between(alpha).to(chosen), tasks, on_progress=step))
    return evaluations


def _table(alphas: list[float], evaluations: list[Any]) -> str:
    """One row per ALPHA; the mean top-1 over tasks, then the first metric of each task."""
    from zero_shot import table

    several = len([task for task in evaluations[0].tasks if task.kind == "classification"]) > 1
    header = ["alpha", *(["mean top-1"] if several else [])]
    header += [f"{task.name}: {task.results[0].name}" for task in evaluations[0].tasks]
    lines = [header]
    for alpha, evaluation in zip(alphas, evaluations, strict=True):
        mean = [table.cell(evaluation.mean_top1)] if several else []
        lines.append([f"{alpha:g}", *mean, *(table.cell(task.results[0]) for task in evaluation.tasks)])
    return "\n".join(table.aligned(lines)) + "\n"


__all__ = ["add_parser"]
