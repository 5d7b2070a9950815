"""`clip-med tune`: adapt a frozen model to a few labelled images of each class, by one method or a grid of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import as_json

if TYPE_CHECKING:
    from clip_med.prompt_learning.tune import Cell
    from clip_med.prompt_learning.tune_config import TuneConfig

_TEXT = "adapt a frozen model to a few labelled images of each class"


def add_parser(commands: Any) -> None:
    """Add `tune`, `tune grid` and `tune table`."""
    parser = commands.add_parser(
        "tune",
        help=_TEXT,
        description=f"{_TEXT}, and score it on the test split. Settings of the method and of its optimiser are "
        "given by --set; those not given are the published ones. `clip-med tune grid` runs "
        "many methods, shots and seeds, `clip-med tune table` shows them.",
        epilog="example: clip-med tune --method biomedcoop --shots 16 --data shards/busi --model runs/corpus "
        "--descriptions prompts.json --json",
        allow_abbrev=False,
    )
    parser.add_argument("--method", metavar="NAME", help="such as coop, biomedcoop, tip_adapter, linear_probe")
    parser.add_argument("--shots", metavar="K", type=int, default=16, help="images of each class; 0: all (%(default)s)")
    parser.add_argument("--data", metavar="SHARDS", type=Path, help="folder with train, test and perhaps val")
    parser.add_argument("--model", metavar="MODEL", type=Path, help=MODEL)
    parser.add_argument("--dataset", metavar="NAME", help="only samples of this data set")
    parser.add_argument("--classes", metavar="LABEL", nargs="+", default=[], help="labels (default: all of train)")
    parser.add_argument(
        "--template", metavar="TEXT", nargs="+", default=["a photo of a {}."], help="zero-shot prompts (%(default)s)"
    )
    parser.add_argument(
        "--descriptions", metavar="FILE", help="JSON: class name to sentences; or `knowledge`: the shipped base's"
    )
    parser.add_argument(
        "--views", metavar="M", type=int, default=1, help="views of each image, augmented ones included"
    )
    parser.add_argument("--no-val", action="store_true", help="choose nothing on validation images")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of learning (%(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="append the row to DIR/results.jsonl")
    _shared(parser, cache="in memory")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="settings such as method.n_ctx=4 method.position=front fit.epochs=50 fit.lr=0.002",
    )
    parser.set_defaults(call=_tune)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=False)
    _add_grid(actions)
    _add_table(actions)


def _shared(parser: argparse.ArgumentParser, *, cache: str) -> None:
    parser.add_argument("--cache", metavar="DIR", type=Path, help=f"keep image features here (default: {cache})")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_grid(actions: Any) -> None:
    text = "run every task, method, number of shots and seed of a configuration"
    grid = actions.add_parser(
        "grid",
        help=text,
        description=text + ". Rows go to OUT/results.jsonl; cells that have one are not run again, so that repeating "
        "the command continues. A cell that fails is named and the others go on. Of a Slurm array each task can run "
        "a part: --part 3/8.",
        epilog="example: clip-med tune grid configs/tune/busi.yaml --out runs/few-shot",
        allow_abbrev=False,
    )
    grid.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file or a shipped name")
    grid.add_argument("--out", metavar="DIR", type=Path, required=True, help="gets results.jsonl, and features/")
    grid.add_argument("--part", metavar="I/N", help="only every N-th cell, from the I-th on (0 .. N-1)")
    grid.add_argument("--list", action="store_true", help="print the cells and which are done; run none")
    _shared(grid, cache="OUT/features")
    grid.set_defaults(call=_grid, takes_overrides=True)


def _add_table(actions: Any) -> None:
    text = "mean, standard deviation and interval over seeds, and a plot over shots"
    table = actions.add_parser(
        "table",
        help=text,
        description=text,
        epilog="example: clip-med tune table runs/few-shot --plot shots.png",
        allow_abbrev=False,
    )
    table.add_argument("folders", metavar="DIR", type=Path, nargs="+", help="each with results.jsonl")
    table.add_argument("--metric", choices=("top1", "balanced"), default="top1", help="default: top1")
    table.add_argument("--plot", metavar="FILE", type=Path, help="accuracy over shots, PNG or SVG")
    table.add_argument("--markdown", action="store_true", help="print Markdown tables")
    table.add_argument("--json", action="store_true", help="print one JSON object")
    table.set_defaults(call=_table)


def _tune(arguments: argparse.Namespace) -> int:
    from clip_med.prompt_learning.results import append_rows
    from clip_med.prompt_learning.tune import cells

    for name in ("method", "data", "model"):
        if getattr(arguments, name) is None:
            raise ValueError(f"--{name} is missing; or name an action: clip-med tune grid, clip-med tune table")
    config = _one(arguments)
    (cell,) = cells(config)
    (row,) = _run(arguments, config, [cell])[0]
    if arguments.out is not None:
        append_rows(arguments.out, [row])
    if arguments.json:
        print(as_json(row))
    else:
        told = f", {row['descriptions']} descriptions of each class" if row["descriptions"] else ""
        print(f"{cell.label}: {row['support']} training and {row['validation']} validation images{told}")
        print(f"top-1 {row['top1']:.3f}, balanced accuracy {row['balanced']:.3f} on {row['n']:,} test images")
    return 0


def _one(arguments: argparse.Namespace) -> TuneConfig:
    """The grid of one cell that the options describe."""
    from clip_med.config import apply_overrides, nearest
    from clip_med.prompt_learning.fitting import FitConfig
    from clip_med.prompt_learning.methods import KINDS, published_fit
    from clip_med.prompt_learning.tune_config import FewShotTask, TuneConfig

    if arguments.method not in KINDS:
        raise ValueError(f"--method {arguments.method}: {nearest(arguments.method, KINDS)}")
    if arguments.shots < 0:
        raise ValueError(f"--shots must be 0 (all) or more, got {arguments.shots}")
    own, fit = _divided(arguments.set)
    kind = KINDS[arguments.method]
    method = apply_overrides(kind, kind(), own) if own else kind()
    fits: dict[str, FitConfig] = {}
    if fit:
        count = max(arguments.shots, 1) * max(len(arguments.classes), 2)
        published = published_fit(method, shots=arguments.shots or None, images=count)
        fits[arguments.method] = apply_overrides(FitConfig, published, fit)
    val = arguments.data / "val"
    return TuneConfig(
        model=str(arguments.model),
        tasks=(
            FewShotTask(
                name=arguments.dataset or arguments.data.name,
                train=str(arguments.data / "train"),
                val=str(val) if val.is_dir() else None,
                test=str(arguments.data / "test"),
                dataset=arguments.dataset,
                classes={label: label for label in arguments.classes},
                templates=tuple(arguments.template),
                descriptions=arguments.descriptions,
            ),
        ),
        methods=(method,),
        shots=(arguments.shots,),
        seeds=(arguments.seed,),
        validate=not arguments.no_val,
        views=arguments.views,
        fits=fits,
    )


def _divided(settings: list[str]) -> tuple[list[str], list[str]]:
    """Words for the settings of the method and for those of the fit."""
    parts: dict[str, list[str]] = {"method": [], "fit": []}
    for setting in settings:
        key, equals, value = setting.partition("=")
        part, dot, name = key.partition(".")
        if part not in parts or not (dot and name and equals):
            raise ValueError(f"--set {setting}: expected method.KEY=VALUE or fit.KEY=VALUE")
        parts[part] += [f"--{name}", value]
    return parts["method"], parts["fit"]


def _run(arguments: argparse.Namespace, config: TuneConfig, chosen: list[Cell]) -> list[list[dict[str, Any]]]:
    """The rows of each cell; errors go through."""
    from clip_med.commands.progress import ItemDisplay
    from clip_med.distributed import process_group
    from clip_med.prompt_learning.tune import Grid

    with process_group(arguments.device) as device, ItemDisplay() as display:
        grid = Grid(
            config,
            cache=arguments.cache,
            device=str(device),
            on_progress=lambda done, total: display.on_item("images", done, total),
        )
        return [grid.run(cell) for cell in chosen]


def _grid(arguments: argparse.Namespace) -> int:
    from clip_med.commands.progress import ItemDisplay
    from clip_med.config import load_config
    from clip_med.distributed import process_group
    from clip_med.prompt_learning.results import FILE, append_rows, read_rows
    from clip_med.prompt_learning.tune import Grid, cells
    from clip_med.prompt_learning.tune_config import TuneConfig

    config = load_config(TuneConfig, arguments.config, arguments.overrides)
    out: Path = arguments.out
    done = {row["cell"] for row in read_rows(out)} if (out / FILE).is_file() else set()
    chosen = _part(list(cells(config)), arguments.part)
    missing = [cell for cell in chosen if cell.id not in done]
    if arguments.list:
        states = [(cell.index, "done" if cell.id in done else "missing", cell.label) for cell in chosen]
        if arguments.json:
            print(as_json({"cells": [dict(zip(("index", "state", "cell"), state, strict=True)) for state in states]}))
            return 0
        for index, state, label in states:
            print(f"{index:5}  {state:7}  {label}")
        return 0
    failed: list[str] = []
    if missing:
        with process_group(arguments.device) as device, ItemDisplay() as display:
            grid = Grid(config, cache=arguments.cache or out / "features", device=str(device))
            for number, cell in enumerate(missing, 1):
                try:
                    append_rows(out, grid.run(cell))
                except ValueError as error:
                    # Another method or number of shots may well work: the others go on, and the exit code tells.
                    failed.append(f"{cell.label}: {error}")
                    print(f"failed: {failed[-1]}", file=sys.stderr)
                display.on_item("cells", number, len(missing))
    counts = {"cells": len(chosen), "done_before": len(chosen) - len(missing), "run": len(missing) - len(failed)}
    if arguments.json:
        print(as_json({**counts, "failed": failed, "results": str(out / FILE)}))
    else:
        print(", ".join(f"{name}: {value}" for name, value in {**counts, "failed": len(failed)}.items()))
        print(f"clip-med tune table {out} shows the rows")
    return 1 if failed else 0


def _part(every: list[Cell], part: str | None) -> list[Cell]:
    if part is None:
        return every
    first, slash, parts = part.partition("/")
    if not (slash and first.isdecimal() and parts.isdecimal() and int(first) < int(parts)):
        raise ValueError(f"--part {part}: expected I/N with I from 0 to N - 1, such as 0/4")
    return every[int(first) :: int(parts)]


def _table(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from clip_med.prompt_learning.results import read_rows, summarise
    from clip_med.prompt_learning.results_table import harmonic_rows, plot, tables

    rows = [row for folder in arguments.folders for row in read_rows(folder)]
    found = summarise(rows, arguments.metric)
    if arguments.plot is not None:
        plot(found, arguments.plot, metric=arguments.metric)
        print(f"plot: {arguments.plot}", file=sys.stderr)
    means = harmonic_rows(rows, arguments.metric)
    if arguments.json:
        summaries = [asdict(summary) for summary in found]
        print(as_json({"metric": arguments.metric, "summaries": summaries, "harmonic": means}))
    else:
        print(tables(found, means, markdown=arguments.markdown))
    return 0


__all__ = ["add_parser"]
