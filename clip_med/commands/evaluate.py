"""`clip-med eval`: zero-shot classification, findings and retrieval of a run or a model folder."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import as_json, page_file

if TYPE_CHECKING:
    from zero_shot.evaluation import Evaluation


def add_parser(commands: Any) -> None:
    """Add `eval`."""
    text = "zero-shot classification, findings and retrieval, with bootstrap intervals"
    parser = commands.add_parser(
        "eval",
        help=text,
        description=text + ". Results of a run are kept in RUN/eval/NAME.json and shown in RUN/report.html. Image "
        "features are kept by digests of weights, preprocessing, precision and data, so that another evaluation of the "
        "same images, such as one with other prompts, encodes none. See docs/evaluation.md.",
        epilog="example: clip-med eval runs/corpus --config configs/eval/corpus.yaml",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help=MODEL)
    parser.add_argument("--config", metavar="CONFIG", type=Path, required=True, help="a YAML file or a shipped name")
    parser.add_argument(
        "--report", metavar="FILE", type=page_file, help="write the HTML report here (default: in the run)"
    )
    parser.add_argument("--no-images", action="store_true", help="leave all images out of the report")
    parser.add_argument(
        "--scores",
        metavar="DIR",
        type=Path,
        help="write keys, patients, labels and scores of every image, and of retrieval how every query fared, as "
        "TASK.scores.npz: from these every figure can be computed again, and clip-med compare reads them",
    )
    add_cache(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(call=_eval, takes_overrides=True)


def _eval(arguments: argparse.Namespace) -> int:
    from clip_med.config import load_config
    from zero_shot.config import EvalConfig

    config = load_config(EvalConfig, arguments.config, arguments.overrides)
    document, evaluation = evaluate_folder(
        arguments.model,
        config,
        name=arguments.config.stem,
        device=arguments.device,
        report=arguments.report,
        images=not arguments.no_images,
        cache=chosen_cache(arguments, arguments.model),
    )
    from clip_med.distributed import place
    from zero_shot import table
    from zero_shot.scores import write_scores

    if place(os.environ).rank:
        # Every rank has the results; the first gives them.
        return 0
    if arguments.scores is not None:
        write_scores(arguments.scores, evaluation.scores())
    if arguments.json:
        print(as_json(document))
    else:
        print(table.markdown(evaluation) if arguments.markdown else table.plain(evaluation), end="")
    return 0


def evaluate_folder(
    model: Path,
    config: Any,
    *,
    name: str,
    device: str,
    report: Path | None,
    images: bool = True,
    cache: Path | None = None,
) -> tuple[Any, Any]:
    """Evaluate a run or model folder; of a run, keep the results and write the report, with or without images.

    Args:
        cache: folder of image features; None keeps none.

    Returns (JSON, evaluation).
    """
    from clip_med.commands.progress import ItemDisplay
    from clip_med.config import config_hash
    from clip_med.data.shard_index import write_atomically
    from clip_med.distributed import place, process_group
    from clip_med.models.folder import load_folder, resolve_folder
    from clip_med.training.metrics_log import read_metrics
    from zero_shot.report import write_report
    from zero_shot.report_maps import similarity_maps
    from zero_shot.report_run import what_was_run
    from zero_shot.suite import evaluate

    folder = resolve_folder(model)
    is_run = _is_run(model)
    target = report or (model / "report.html" if is_run else None)
    if is_run:
        _check_writable(model, folder)
    similarity = None
    with process_group(device) as chosen, ItemDisplay() as display:  # type: ignore[arg-type]
        encoder = load_folder(folder).to(chosen)
        evaluation = evaluate(encoder, config, cache=cache, on_progress=display.on_item, sharded=True)
        if target is not None and images and place(os.environ).rank == 0:
            similarity = similarity_maps(encoder, evaluation)
    document = {"model": str(folder), "config_hash": config_hash(config), **evaluation.to_dict()}
    if place(os.environ).rank:
        return document, evaluation
    if is_run:
        (model / "eval").mkdir(exist_ok=True)
        write_atomically(model / "eval" / f"{name}.json", as_json(document, indent=1) + "\n")
    came = _came(evaluation, str(chosen), cache)
    if target is not None:
        metrics = read_metrics(model / "metrics.jsonl") if is_run else []
        write_report(
            target,
            title=f"{model.resolve().name}: {name}",
            metrics=metrics,
            evaluation=evaluation,
            run=what_was_run({"model": folder}, [config], settings=[("image features", came)]),
            similarity=similarity,
            images=images,
            seed=config.seed,
        )
        print(f"report: {target}", file=sys.stderr)
    return document, evaluation


def _came(evaluation: Evaluation, device: str, cache: Path | None) -> str:
    """How many image features were encoded and how many read; with a cache it is said on stderr too."""
    from clip_med.models.feature_cache import kept_files

    came = f"{evaluation.encoded:,} encoded on {device}"
    if cache is not None:
        came += f", {evaluation.read:,} read from {cache}"
        files, size = kept_files(cache)
        print(f"image features: {came}, which holds {files} files, {size / 1e6:.1f} MB", file=sys.stderr)
    return came


def _check_writable(run: Path, folder: Path) -> None:
    """Before the evaluation, whose results would be lost.

    Raises:
        ValueError: the run is another's, say; its model alone can be evaluated.
    """
    kept = run / "eval"
    if not os.access(kept if kept.exists() else run, os.W_OK):
        raise ValueError(f"{run}: cannot be written, and results of a run are kept in it; give its model, {folder}")


def _is_run(model: Path) -> bool:
    return (model / "latest.json").is_file()


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add `--cache` and `--no-cache`, for image features."""
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--cache", metavar="DIR", type=Path, help="keep image features here (default: RUN/features)")
    kept.add_argument("--no-cache", action="store_true", help="keep image features in memory only")


def chosen_cache(arguments: argparse.Namespace, model: Path) -> Path | None:
    """The folder of image features of a model: the one asked for, a run's own, or none."""
    if arguments.no_cache:
        return None
    return arguments.cache or (model / "features" if _is_run(model) else None)


__all__ = ["add_cache", "add_parser", "chosen_cache", "evaluate_folder"]
