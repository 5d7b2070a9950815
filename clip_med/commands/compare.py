"""`clip-med compare`: several models on several sets, and which differences are more than chance."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.evaluate import add_cache, chosen_cache
from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import as_json

if TYPE_CHECKING:
    from zero_shot.comparison import Comparison, Metric
    from zero_shot.config import EvalConfig
    from zero_shot.prompt_choice import PromptChoice
    from zero_shot.report_run import WhatWasRun
    from zero_shot.scores import Scores

METRICS = ("top-1", "balanced accuracy", "macro AUROC")
USUAL: tuple[Metric, ...] = ("top-1", "macro AUROC")


def add_parser(commands: Any) -> None:
    """Add `compare`."""
    text = "compare models task by task and over all tasks, with paired tests and mean ranks"
    parser = commands.add_parser(
        "compare",
        help=text,
        description=text
        + f". A MODEL is {MODEL}, or a folder of scores (NAME.scores.npz, as --out and clip-med probe write them); "
        "NAME=PATH names it. See docs/evaluation.md.",
        epilog="example: clip-med compare runs/a runs/b --data eval/corpus --validation val --out comparison",
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="two or more")
    parser.add_argument(
        "--data", metavar="CONFIG", type=Path, nargs="+", default=[], help="evaluations: YAML files or shipped names"
    )
    parser.add_argument(
        "--validation",
        metavar="SPLIT",
        nargs="+",
        default=[],
        help="choose prompts for each model on the first of these splits beside a task's own (or locations, with a /) "
        "that has images of the task",
    )
    parser.add_argument(
        "--metric", nargs="+", choices=METRICS, help=f"default: those of {', '.join(USUAL)} that some task has"
    )
    parser.add_argument("--level", type=float, default=0.05, help="of the tests, after Holm's correction (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of intervals and tests (%(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="write JSON, HTML, figures and scores (a new folder)")
    add_cache(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(call=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from clip_med.config import load_config
    from zero_shot.comparison import compare_scores, measurable
    from zero_shot.comparison_views import notes, prompt_table, tables
    from zero_shot.config import EvalConfig
    from zero_shot.table import text

    if arguments.out is not None and arguments.out.exists():
        raise ValueError(f"{arguments.out}: exists; a comparison is written to a new folder")
    if not 0 < arguments.level < 1:
        raise ValueError(f"--level must lie in (0, 1), got {arguments.level}")
    paths = _named(arguments.models)
    configs = [load_config(EvalConfig, path) for path in arguments.data]
    scores, choices = _scored(paths, configs, arguments)
    asked: list[Metric] = arguments.metric or [m for m in USUAL if measurable(scores, m)] or list(USUAL)
    metrics = list(dict.fromkeys(asked))
    comparisons = [compare_scores(scores, metric=m, level=arguments.level, seed=arguments.seed) for m in metrics]
    document = {
        "models": {name: str(path) for name, path in paths.items()},
        "data": [str(path) for path in arguments.data],
        "validation": arguments.validation,
        "prompts": {name: {task: choice.to_dict() for task, choice in own.items()} for name, own in choices.items()},
        "comparisons": [comparison.to_dict() for comparison in comparisons],
    }
    if arguments.out is not None:
        _write(arguments.out, document, comparisons, scores, choices, _run(paths, configs, arguments))
    if arguments.json:
        print(as_json(document))
        return 0
    found = [table for comparison in comparisons for table in tables(comparison)]
    if choices:
        found.append(prompt_table(choices))
    remarks = [line for comparison in comparisons for line in notes(comparison)]
    print(text(found, remarks, markdown=arguments.markdown))
    return 0


def _named(models: list[str]) -> dict[str, Path]:
    """Path of each model by its name: the last part of the path unless one is given."""
    from clip_med.models.folder import is_name

    paths: dict[str, Path] = {}
    for given in models:
        name, separator, rest = given.partition("=")
        path = Path(rest if separator else given)
        name = name if separator else path.resolve().name
        if not name or "/" in name:
            raise ValueError(f"{given}: expected PATH or NAME=PATH, a name without /")
        if name in paths:
            raise ValueError(f"two models are called {name}: write NAME={path}")
        if not path.is_dir() and not is_name(path):
            raise ValueError(f"{path}: no such folder")
        paths[name] = path
    if len(paths) < 2:
        raise ValueError(f"a comparison needs at least two models, got {', '.join(paths)}")
    return paths


def _scored(
    paths: dict[str, Path], configs: list[EvalConfig], arguments: argparse.Namespace
) -> tuple[dict[str, dict[str, Scores]], dict[str, dict[str, PromptChoice]]]:
    """Scores by model and task, read or made, and the prompts that were chosen."""
    from clip_med.commands.progress import ItemDisplay
    from clip_med.distributed import process_group
    from clip_med.models.folder import load_folder, resolve_folder
    from zero_shot.encoded import Encoded
    from zero_shot.said import Said
    from zero_shot.scores import has_scores, read_scores
    from zero_shot.scoring import choose_for_tasks, evaluated_sets, score_tasks, validation_sets

    read = {name: read_scores(path) for name, path in paths.items() if has_scores(path)}
    run = {name: resolve_folder(path) for name, path in paths.items() if name not in read}
    if run and not arguments.data:
        raise ValueError(f"{', '.join(run)}: no folder of scores; give --data to evaluate models")
    tasks = [task.name for config in configs for task in config.tasks]
    if twice := [name for name in tasks if tasks.count(name) > 1]:
        raise ValueError(f"--data: two tasks are called {twice[0]}")
    choices: dict[str, dict[str, PromptChoice]] = {}
    validation = [validation_sets(config, arguments.validation) if arguments.validation else {} for config in configs]
    tested = [evaluated_sets(config, own) for config, own in zip(configs, validation, strict=True)] if run else []
    with process_group(arguments.device) as chosen, ItemDisplay() as display:
        for name, folder in run.items():
            encoder = load_folder(folder).to(chosen)

            def step(task: str, done: int, total: int, name: str = name) -> None:
                display.on_item(f"{name}: {task}", done, total)

            read[name] = {}
            encoded = Encoded(encoder, cache=chosen_cache(arguments, paths[name]), on_progress=step)
            for config, choosing, images in zip(configs, validation, tested, strict=True):
                said = Said(encoded, config)
                own = choose_for_tasks(said, choosing)
                if own:
                    choices.setdefault(name, {}).update(own)
                read[name] |= score_tasks(said, images, chosen=own)
    return {name: read[name] for name in paths}, choices


def _run(paths: dict[str, Path], configs: list[EvalConfig], arguments: argparse.Namespace) -> WhatWasRun:
    from clip_med.models.folder import resolve_folder
    from zero_shot.report_run import what_was_run
    from zero_shot.scores import has_scores

    models = {name: path if has_scores(path) else resolve_folder(path) for name, path in paths.items()}
    tests = [("tests", f"seed {arguments.seed}, level {arguments.level:g} after Holm's correction")]
    return what_was_run(models, configs, settings=tests, timed=False)


def _write(
    out: Path,
    document: dict[str, Any],
    comparisons: list[Comparison],
    scores: dict[str, dict[str, Scores]],
    choices: dict[str, dict[str, PromptChoice]],
    run: WhatWasRun,
) -> None:
    from clip_med.data.shard_index import write_atomically
    from zero_shot.comparison_views import write_figure, write_page
    from zero_shot.scores import write_scores

    out.mkdir(parents=True)
    for name, own in scores.items():
        write_scores(out / "scores" / name, own)
    for comparison in comparisons:
        if comparison.critical is not None:
            for suffix in ("svg", "png"):
                write_figure(comparison, out / f"ranks.{comparison.metric.replace(' ', '_')}.{suffix}")
    write_page(out / "comparison.html", comparisons, choices, "Comparison of " + ", ".join(scores), run)
    write_atomically(out / "comparison.json", as_json(document, indent=1) + "\n")


__all__ = ["add_parser"]
