"""`clip-med robustness`: how a zero-shot classifier answers when images, prompts or patients are others."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import add_report, as_json, give

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zero_shot.result import Result
    from zero_shot.robustness import TaskRobustness
    from zero_shot.table import Lines


def add_parser(commands: Any) -> None:
    """Add `robustness`."""
    text = "corruptions, prompts, subgroups, unknown images and calibration of zero-shot classification"
    parser = commands.add_parser(
        "robustness",
        help=text,
        description=text + ", for every classification task of an evaluation. Results of a run are kept in "
        "RUN/eval/NAME.robustness.json.",
        epilog="example: clip-med robustness runs/corpus --config eval/corpus --levels 1 3 5 --by modality --limit 200",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help=MODEL)
    parser.add_argument("--config", metavar="EVAL", type=Path, required=True, help="a YAML file or a shipped name")
    parser.add_argument(
        "--corruption", metavar="KIND", nargs="*", help="noise, blur, contrast, jpeg, rotation, crop, marker (all)"
    )
    parser.add_argument("--levels", metavar="N", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="1 to 5 (all)")
    parser.add_argument(
        "--by", metavar="KEY", nargs="+", default=[], help="subgroups: modality, dataset, split, view, provenance.NAME"
    )
    parser.add_argument("--limit", metavar="N", type=int, help="images of each task, spread evenly over it")
    parser.add_argument("--alpha", type=float, default=0.1, help="share of conformal sets that may miss (%(default)s)")
    parser.add_argument(
        "--regions", metavar="N", type=int, help="look for spurious regions (RaVL) among N x N cells of each image"
    )
    parser.add_argument("--seed", type=int, default=0, help="of corruptions, halves and intervals (%(default)s)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON here as well")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="write reliability and corruption curves as PNG here")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add_report(parser)
    parser.set_defaults(call=_robustness)


def _robustness(arguments: argparse.Namespace) -> int:
    from clip_med.commands.progress import ItemDisplay
    from clip_med.config import config_hash, load_config, validate
    from clip_med.data.shard_index import write_atomically
    from clip_med.distributed import process_group
    from clip_med.models.folder import load_folder, resolve_folder
    from zero_shot.config import EvalConfig
    from zero_shot.robustness import RobustnessConfig, robustness

    evaluation = load_config(EvalConfig, arguments.config)
    values: dict[str, Any] = {name: getattr(arguments, name) for name in ("levels", "by", "limit", "alpha", "seed")}
    if arguments.corruption is not None:
        values["corruptions"] = arguments.corruption
    options = validate(RobustnessConfig, values)
    folder = resolve_folder(arguments.model)
    with process_group(arguments.device) as chosen, ItemDisplay() as display:
        encoder = load_folder(folder).to(chosen)
        found = robustness(encoder, evaluation, options, on_progress=display.on_item)
        regions = [] if arguments.regions is None else _regions(encoder, evaluation, arguments, display)
    document = {
        "model": str(folder),
        "config_hash": config_hash(evaluation),
        "options": {**values, "corruptions": list(options.corruptions)},
        "tasks": [task.to_dict() for task in found],
        "regions": regions,
    }
    text = as_json(document, indent=1) + "\n"
    if (arguments.model / "latest.json").is_file():
        (arguments.model / "eval").mkdir(exist_ok=True)
        write_atomically(arguments.model / "eval" / f"{arguments.config.stem}.robustness.json", text)
    if arguments.out is not None:
        write_atomically(arguments.out, text)
    if arguments.plots is not None:
        _plots(found, arguments.plots)
    give(
        arguments,
        document,
        [*(table for task in found for table in _tables(task)), *map(_region_table, regions)],
        title=f"{arguments.model.resolve().name}: robustness on {arguments.config.stem}",
        models={"model": folder},
        configs=[evaluation],
    )
    return 0


def _regions(encoder: Any, evaluation: Any, arguments: argparse.Namespace, display: Any) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from zero_shot.config import ClassificationTask
    from zero_shot.regions import discover_regions
    from zero_shot.task_images import ShardSets, labelled

    tasks = [task for task in evaluation.tasks if isinstance(task, ClassificationTask)]
    sets, rows = ShardSets(), list[dict[str, Any]]()
    for number, task in enumerate(tasks, start=1):
        images = labelled(task, sets, limit=arguments.limit)
        found = discover_regions(
            encoder, images, arguments.regions, batch_size=evaluation.batch_size, seed=arguments.seed
        )
        cells = arguments.regions**2
        flagged: list[dict[str, Any]] = []
        for cluster in found.flagged:
            plain = asdict(cluster)
            members = plain.pop("regions")
            plain["regions"] = [[images.samples[r // cells].key, r % cells] for r in members]
            plain["gaps"] = [
                {**gap, "label": list(task.prompts.classes)[gap["label"]]} for gap in plain["gaps"] if gap["gap"]
            ]
            flagged.append(plain)
        rows.append(
            {
                "task": task.name,
                "images": len(images.indices),
                "cells": cells,
                "clusters": found.clusters,
                "silhouette": found.silhouette,
                "flagged": flagged,
            }
        )
        display.on_item("regions", number, len(tasks))
    return rows


def _plots(found: tuple[TaskRobustness, ...], directory: Path) -> None:
    from zero_shot.robustness_plots import corruption_png, reliability_png

    directory.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(found, start=1):
        name = f"{number}.{re.sub(r'[^A-Za-z0-9]+', '_', task.name)}"
        (directory / f"{name}.reliability.png").write_bytes(reliability_png(task))
        if task.corrupted:
            (directory / f"{name}.corruptions.png").write_bytes(corruption_png(task))


def _tables(task: TaskRobustness) -> Iterator[tuple[str, Lines]]:
    from zero_shot.table import cell

    yield f"{task.name}: {task.n:,} images", [["images", "top-1"], ["as they are", cell(task.clean)]]
    if task.corrupted:
        levels = list(dict.fromkeys(one.level for one in task.corrupted))
        lines = [["corruption", *(f"level {level}" for level in levels), "change at the last [95 %]"]]
        for kind in dict.fromkeys(one.corruption for one in task.corrupted):
            own = [one for one in task.corrupted if one.corruption == kind]
            lines.append([kind, *(f"{one.top1.value:.3f}" for one in own), _signed(own[-1].change)])
        mean = "" if task.mean_corrupted is None else f", their mean {cell(task.mean_corrupted)}"
        yield f"{task.name}: top-1 under corruptions{mean}", lines
    lines = [["template", "top-1"], *([r.name, cell(r)] for r in (*task.prompts.templates, task.prompts.together))]
    yield f"{task.name}: prompts; answers changed between two templates: {task.prompts.changed:.3f}", lines
    lines = [["subgroups by", "worst", "gap", "subgroups", "too few images"]]
    for table in task.subgroups:
        worst, gap = ("" if r is None else cell(r) for r in (table.worst, table.gap))
        lines.append([table.key, worst, gap, str(len(table.results)), str(len(table.too_few))])
    yield f"{task.name}: subgroups", lines
    own = task.calibration
    lines = [["calibration", "ECE", "Brier", "NLL"]]
    for name, errors in (("as it is", own.before), (f"temperature x {own.temperature:.3f}", own.after)):
        lines.append([name, *(f"{errors[key]:.3f}" for key in ("ece", "brier", "nll"))])
    sets = f"conformal sets for {1 - own.alpha:.0%}: coverage {own.coverage:.3f}, mean size {own.size:.2f}"
    yield f"{task.name}: {sets}" + (f"; {own.note}" if own.note else ""), lines
    if task.unknown:
        lines = [["unknown images by", "AUROC", "FPR95", "known", "unknown"]]
        for name, one in task.unknown.items():
            lines.append([name, f"{one.auroc:.3f}", f"{one.fpr95:.3f}", f"{one.known:,}", f"{one.unknown:,}"])
        yield f"{task.name}: images of other tasks", lines


def _region_table(row: dict[str, Any]) -> tuple[str, Lines]:
    lines = [["cells", "influence", "gaps"]]
    for one in row["flagged"]:
        gaps = ", ".join(f"{gap['label']} {gap['gap']:+.2f}" for gap in one["gaps"])
        lines.append([str(len(one["regions"])), f"{one['influence']:.2f}", gaps])
    return f"{row['task']}: {len(row['flagged'])} of {row['clusters']} clusters of cells flagged", lines


def _signed(result: Result) -> str:
    return f"{result.value:+.3f} [{result.low:+.3f}, {result.high:+.3f}]"


__all__ = ["add_parser"]
