"""`clip-med merge-compare`: ways of using a pretrained and a fine-tuned model together, on the same images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.printing import add_report, give

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clip_med.models.interpolate import ModelFamily
    from zero_shot.merge_methods import MergeOutcome
    from zero_shot.table import Lines


def add_parser(commands: Any) -> None:
    """Add `merge-compare`."""
    text = "compare WiSE-FT, soups, ensembles and test-time merging (T3) of a pretrained and a fine-tuned model"
    parser = commands.add_parser(
        "merge-compare",
        help=text,
        description=text + " by top-1 on every classification task of an evaluation, as it is and under corruptions. "
        "Sample-wise T3 makes a model for every image: use --limit.",
        epilog="example: clip-med merge-compare models/pretrained runs/tuned --eval eval/corpus --corruption noise "
        "--limit 100",
    )
    parser.add_argument("first", metavar="A", type=Path, help="the pretrained model: a run or a model folder")
    parser.add_argument("second", metavar="B", type=Path, help="the fine-tuned model")
    parser.add_argument("--soup", metavar="MODEL", type=Path, nargs="+", default=[], help="more fine-tuned models")
    parser.add_argument(
        "--greedy-on",
        metavar="CONFIG",
        type=Path,
        help="validation tasks by which a greedy soup of all is chosen",
    )
    parser.add_argument("--eval", metavar="CONFIG", type=Path, required=True, help="a YAML file or a shipped name")
    parser.add_argument("--alpha", metavar="ALPHA", type=float, nargs="+", default=[0.5], help="WiSE-FT (default: 0.5)")
    parser.add_argument("--batch", metavar="N", type=int, default=32, help="images of batch-wise T3 (%(default)s)")
    parser.add_argument("--no-sample-wise", action="store_true", help="leave out the T3 that makes a model per image")
    parser.add_argument("--low", type=float, default=0.0, help="lower bound of T3's weight (%(default)s)")
    parser.add_argument("--high", type=float, default=1.0, help="upper bound of T3's weight (%(default)s)")
    parser.add_argument("--corruption", metavar="KIND", nargs="+", default=[], help="see clip-med robustness --help")
    parser.add_argument("--level", metavar="N", type=int, default=3, help="of the corruptions, 1 to 5 (%(default)s)")
    parser.add_argument("--base", metavar="TASK", nargs="+", default=[], help="tasks whose classes were trained")
    parser.add_argument("--novel", metavar="TASK", nargs="+", default=[], help="tasks whose classes were not")
    parser.add_argument("--limit", metavar="N", type=int, help="images of each task, spread evenly over it")
    parser.add_argument("--seed", type=int, default=0, help="of corruptions and intervals (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add_report(parser)
    parser.set_defaults(call=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from clip_med.commands.progress import ItemDisplay
    from clip_med.config import load_config, nearest, validate
    from clip_med.distributed import process_group
    from clip_med.models.folder import resolve_folder
    from clip_med.models.interpolate import ModelFamily
    from zero_shot.config import EvalConfig
    from zero_shot.merge_methods import MergeConfig, compare_merges

    evaluation = load_config(EvalConfig, arguments.eval)
    names = [task.name for task in evaluation.tasks if task.kind == "classification"]
    if bool(arguments.base) != bool(arguments.novel):
        raise ValueError("--base and --novel go together: their harmonic mean needs both")
    for name in (*arguments.base, *arguments.novel):
        if name not in names:
            raise ValueError(f"task {name!r} is no classification task of {arguments.eval}; {nearest(name, names)}")
    if arguments.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {arguments.batch}")
    settings = [
        {"batch": batch, "form": form, "weights": weights, "low": arguments.low, "high": arguments.high}
        for batch in ([arguments.batch] if arguments.no_sample_wise else [arguments.batch, None])
        for form in ("published", "centred")
        for weights in ("pt", "ft")
    ]
    options = validate(
        MergeConfig,
        {
            "alphas": arguments.alpha,
            "t3": settings,
            "corruptions": arguments.corruption,
            "level": arguments.level,
            "limit": arguments.limit,
            "seed": arguments.seed,
        },
    )
    models = [arguments.first, arguments.second, *arguments.soup]
    family = ModelFamily(models)
    with process_group(arguments.device) as chosen, ItemDisplay() as display:
        family.encoder.to(chosen)
        greedy = None if arguments.greedy_on is None else _greedy(family, len(models), arguments.greedy_on)
        found = compare_merges(family, len(models), evaluation, options, greedy=greedy, on_progress=display.on_item)
    means = _means(found, arguments.base, arguments.novel)
    outcomes = [one.to_dict() for one in found]
    document: dict[str, Any] = {"models": [str(model) for model in models], "greedy_soup": greedy}
    document |= {"outcomes": outcomes, "means": means}
    give(
        arguments,
        document,
        _tables(found, means),
        title=f"Ways of using {len(models)} models together on {arguments.eval.stem}",
        models={f"model {number}": resolve_folder(model) for number, model in enumerate(models, start=1)},
        configs=[evaluation],
    )
    return 0


def _greedy(family: ModelFamily, count: int, config: Path) -> tuple[float, ...]:
    """Weights of a greedy soup by the mean top-1 of an evaluation, which must not be on test data."""
    from clip_med.config import load_config
    from zero_shot.config import EvalConfig
    from zero_shot.merging import greedy_soup
    from zero_shot.suite import evaluate

    validation = load_config(EvalConfig, config)
    if not any(task.kind == "classification" for task in validation.tasks):
        raise ValueError(f"{config}: a greedy soup is chosen by classification tasks, and there is none")

    def score(weights: Sequence[float]) -> float:
        mean = evaluate(family.mix(weights), validation).mean_top1
        assert mean is not None
        return mean.value

    return greedy_soup(count, score)


def _means(found: tuple[MergeOutcome, ...], base: list[str], novel: list[str]) -> list[dict[str, Any]]:
    """Unweighted means over tasks, by condition and method; with base and novel tasks also those and their HM."""
    from zero_shot.merging import harmonic_mean

    rows: list[dict[str, Any]] = []
    for condition, method in dict.fromkeys((one.condition, one.method) for one in found):
        own = {one.task: one for one in found if (one.condition, one.method) == (condition, method)}

        def mean(tasks: list[str], own: dict[str, MergeOutcome] = own) -> float:
            return sum(own[task].top1.value for task in tasks) / len(tasks)

        row: dict[str, Any] = {"condition": condition, "method": method, "mean_top1": mean(list(own))}
        row["merges"] = sum(one.merges for one in own.values())
        row["fine_tuned"] = sum(one.fine_tuned for one in own.values()) / len(own)
        if base:
            row |= {"base": mean(base), "novel": mean(novel)}
            row["harmonic_mean"] = harmonic_mean(row["base"], row["novel"])
        rows.append(row)
    return rows


def _tables(found: tuple[MergeOutcome, ...], means: list[dict[str, Any]]) -> list[tuple[str, Lines]]:
    """Per condition: one row per method with the mean, and each task's top-1 and change from the fine-tuned model."""
    tasks = list(dict.fromkeys(one.task for one in found))
    tables: list[tuple[str, Lines]] = []
    for condition in dict.fromkeys(row["condition"] for row in means):
        rows = [row for row in means if row["condition"] == condition]
        extra = [name for name in ("base", "novel", "harmonic_mean") if name in rows[0]]
        lines = [["method", "mean top-1", *extra, "weight of B", "models made", *tasks]]
        for row in rows:
            cells = [row["method"], f"{row['mean_top1']:.3f}", *(f"{row[name]:.3f}" for name in extra)]
            cells += [f"{row['fine_tuned']:.3f}", f"{row['merges']:,}"]
            for task in tasks:
                (one,) = [o for o in found if (o.task, o.condition, o.method) == (task, condition, row["method"])]
                change = one.change
                cells.append(f"{one.top1.value:.3f} ({change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}])")
            lines.append(cells)
        tables.append((f"{condition}: top-1 (paired change from B [95 %])", lines))
    return tables


__all__ = ["add_parser"]
