"""`clip-med probe`: a linear probe on frozen image features, multi-class or multi-label, on all images or a few."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import add_report, give

if TYPE_CHECKING:
    from zero_shot.probing import ProbeOutcome
    from zero_shot.table import Lines


def add_parser(commands: Any) -> None:
    """Add `probe`."""
    text = "fit a linear probe to frozen image features and score it on the test split"
    parser = commands.add_parser(
        "probe",
        help=text,
        description=text + ". The strength of the penalty is chosen on the split val, or by cross-validation within "
        "train where there is none; never on test.",
        epilog="example: clip-med probe --data shards/busi --model runs/corpus --out scores/probe",
        allow_abbrev=False,
    )
    parser.add_argument("--data", metavar="SHARDS", type=Path, required=True, help="folder with train, test, maybe val")
    parser.add_argument("--model", metavar="MODEL", type=Path, required=True, help=MODEL)
    parser.add_argument("--dataset", metavar="NAME", help="only samples of this data set")
    parser.add_argument("--classes", metavar="LABEL", nargs="+", default=[], help="labels (default: all of train)")
    parser.add_argument("--multi-label", action="store_true", help="images may have any number of the labels")
    parser.add_argument("--shots", metavar="K", type=int, default=0, help="images of each class (default: all)")
    parser.add_argument("--no-val", action="store_true", help="choose by cross-validation even where there is a val")
    parser.add_argument("--C", metavar="C", type=float, nargs="+", default=[], help="values to choose from, ascending")
    parser.add_argument("--standardize", action="store_true", help="divide features by their standard deviation first")
    parser.add_argument("--unbalanced", action="store_true", help="do not weigh classes equally")
    parser.add_argument("--seed", type=int, default=0, help="of draws, folds and intervals (%(default)s)")
    parser.add_argument("--cache", metavar="DIR", type=Path, help="keep image features here (default: in memory)")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="write scores of every test image, for clip-med compare"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add_report(parser)
    parser.set_defaults(call=_probe)


def _probe(arguments: argparse.Namespace) -> int:
    from clip_med.commands.progress import ItemDisplay
    from clip_med.distributed import process_group
    from clip_med.models.folder import load_folder, resolve_folder
    from clip_med.prompt_learning.tune_data import Encoding
    from zero_shot.scores import write_scores

    if arguments.multi_label and arguments.shots:
        raise ValueError("--multi-label goes without --shots, which are images of single classes")
    if arguments.shots < 0:
        raise ValueError(f"--shots must be 0 (all) or more, got {arguments.shots}")
    folder = resolve_folder(arguments.model)
    with process_group(arguments.device) as device, ItemDisplay() as display:
        encoding = Encoding(
            encoder=load_folder(folder).to(device).eval(),
            cache=arguments.cache,
            on_progress=lambda done, total: display.on_item("images", done, total),
        )
        outcome = _labels(arguments, encoding) if arguments.multi_label else _classes(arguments, encoding)
    name = arguments.dataset or arguments.data.name
    if arguments.out is not None:
        write_scores(arguments.out, {name: outcome.scores})
    document = {
        "task": name,
        "model": str(arguments.model),
        "shots": arguments.shots,
        "seed": arguments.seed,
        "classes": list(outcome.classes),
        "C": outcome.C,
        "chosen_by": outcome.chosen_by,
        "converged": outcome.converged,
        "train": outcome.train,
        "validation": outcome.validation,
        "results": [result.to_dict() for result in outcome.results],
    }
    title = f"{arguments.model.resolve().name}: linear probe on {name}"
    give(arguments, document, [_table(name, outcome)], title=title, models={"model": folder})
    return 0


def _settings(arguments: argparse.Namespace) -> Any:
    from clip_med.prompt_learning.linear_probe import LinearProbeConfig

    defaults = LinearProbeConfig()
    return LinearProbeConfig(
        strengths=tuple(arguments.C) or defaults.strengths,
        C=arguments.C[0] if len(arguments.C) == 1 else defaults.C,
        standardize=arguments.standardize,
        balanced=not arguments.unbalanced,
    )


def _places(arguments: argparse.Namespace) -> tuple[str, str | None, str]:
    val = arguments.data / "val"
    used = val.is_dir() and not arguments.no_val
    return str(arguments.data / "train"), str(val) if used else None, str(arguments.data / "test")


def _classes(arguments: argparse.Namespace, encoding: Any) -> ProbeOutcome:
    from clip_med.prompt_learning.tune_config import FewShotTask
    from clip_med.prompt_learning.tune_data import TaskData
    from zero_shot.probing import probe_classes

    train, val, test = _places(arguments)
    task = FewShotTask(
        name=arguments.dataset or arguments.data.name,
        train=train,
        val=val,
        test=test,
        dataset=arguments.dataset,
        classes={label: label for label in arguments.classes},
    )
    return probe_classes(
        TaskData(task, encoding), _settings(arguments), shots=arguments.shots or None, seed=arguments.seed
    )


def _labels(arguments: argparse.Namespace, encoding: Any) -> ProbeOutcome:
    from clip_med.data.shards import ShardSet
    from clip_med.models.feature_cache import cached_image_features
    from clip_med.prompt_learning.shots import all_labels
    from zero_shot.probing import multi_labelled, probe_labels

    sets = [None if place is None else ShardSet.open(place) for place in _places(arguments)]
    assert sets[0] is not None
    classes = arguments.classes or list(all_labels(sets[0], arguments.dataset))
    splits = [None if one is None else multi_labelled(one, classes, arguments.dataset) for one in sets]
    features = [
        None
        if split is None
        else cached_image_features(
            encoding.encoder,
            split.shards,
            split.indices,
            cache=arguments.cache,
            model_digest=encoding.digest,
            on_progress=encoding.on_progress,
        )
        for split in splits
    ]
    train, val, test = splits
    assert train is not None
    assert test is not None
    assert features[0] is not None
    assert features[2] is not None
    return probe_labels(
        (train, val, test),
        (features[0], features[1], features[2]),
        classes,
        _settings(arguments),
        seed=arguments.seed,
    )


def _table(name: str, outcome: ProbeOutcome) -> tuple[str, Lines]:
    from zero_shot.table import cell

    title = (
        f"{name}: {len(outcome.classes)} classes, {outcome.train:,} training and {outcome.validation:,} validation "
        f"images, C {outcome.C:g} chosen by {outcome.chosen_by}{'' if outcome.converged else ', NOT converged'}"
    )
    return title, [["metric", "value [95 %]", "n"], *([r.name, cell(r), f"{r.n:,}"] for r in outcome.results)]


__all__ = ["add_parser"]
