"""`clip-med concepts`: a classifier that reads named concepts only, and what it owes to their names."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import add_report, give

if TYPE_CHECKING:
    from clip_med.models.dual_encoder import DualEncoder
    from zero_shot.concepts import Bottleneck
    from zero_shot.table import Lines
    from zero_shot.task_images import Labelled


def add_parser(commands: Any) -> None:
    """Add `concepts`."""
    text = "fit a sparse classifier on concept scores (concept bottleneck), beside one on random concepts"
    parser = commands.add_parser(
        "concepts",
        help=text,
        description=text + ". Concepts are the descriptors of the task's classes, from the knowledge base or a JSON of "
        "class to descriptors. The image and text towers stay as they are.",
        epilog="example: clip-med concepts runs/corpus --config eval/corpus --task ham10000 "
        "--train shards/corpus/train --modality dermoscopy",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help=MODEL)
    parser.add_argument("--config", metavar="EVAL", type=Path, required=True, help="a YAML file or a shipped name")
    parser.add_argument("--task", metavar="NAME", required=True, help="a classification task of the evaluation")
    parser.add_argument("--train", metavar="SHARDS", required=True, help="labelled shards to fit the classifier on")
    parser.add_argument("--knowledge", metavar="PATH", type=Path, help="a file or folder instead of the shipped base")
    parser.add_argument("--modality", metavar="NAME", help="only findings of this modality, such as X-ray or OCT")
    parser.add_argument("--l1", type=float, default=1e-3, help="higher: fewer concepts (%(default)s)")
    parser.add_argument("--l2", type=float, default=1e-4, help="keeps weights small (%(default)s)")
    parser.add_argument("--draws", metavar="N", type=int, default=3, help="sets of random concepts (%(default)s)")
    parser.add_argument("--limit", metavar="N", type=int, help="images of either set, spread evenly over it")
    parser.add_argument("--seed", type=int, default=0, help="of random concepts and intervals (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add_report(parser)
    parser.set_defaults(call=_concepts)


def _concepts(arguments: argparse.Namespace) -> int:
    from clip_med.commands.progress import ItemDisplay
    from clip_med.config import load_config, nearest
    from clip_med.distributed import process_group
    from clip_med.models.folder import load_folder, resolve_folder
    from zero_shot.config import ClassificationTask, EvalConfig
    from zero_shot.task_images import labelled

    evaluation = load_config(EvalConfig, arguments.config)
    tasks = {task.name: task for task in evaluation.tasks if isinstance(task, ClassificationTask)}
    if arguments.task not in tasks:
        raise ValueError(
            f"task {arguments.task!r} is no classification task of {arguments.config}; {nearest(arguments.task, tasks)}"
        )
    task = tasks[arguments.task]
    concepts = _texts(list(task.prompts.classes), arguments.knowledge, arguments.modality)
    test = labelled(task, limit=arguments.limit)
    train = labelled(replace(task, shards=arguments.train), limit=arguments.limit)
    folder = resolve_folder(arguments.model)
    with process_group(arguments.device) as chosen, ItemDisplay() as display:
        encoder = load_folder(folder).to(chosen)
        features = [
            _features(encoder, images, evaluation.batch_size, display, name)
            for name, images in (("train", train), ("test", test))
        ]
        document = {"model": str(folder), "task": task.name, "train": len(train.truth), "test": len(test.truth)}
        model, results = _fitted(encoder, train, test, features, concepts, arguments)
    document |= {
        "concepts": concepts,
        "used": model.used,
        "results": [result.to_dict() for result in results],
        "weights": {name: row.tolist() for name, row in zip(task.prompts.classes, model.weight, strict=True)},
        "bias": model.bias.tolist(),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
    }
    give(
        arguments,
        document,
        _tables(document, results, model, concepts, list(task.prompts.classes)),
        title=f"{arguments.model.resolve().name}: concepts of {task.name}",
        models={"model": folder},
        configs=[evaluation],
    )
    return 0


def _texts(classes: list[str], knowledge: Path | None, modality: str | None) -> list[str]:
    """The descriptors of all classes, each once."""
    from zero_shot.descriptors import describe

    described = describe(classes, knowledge=knowledge, modality=modality)
    return list(dict.fromkeys(text for one in described for text in one.descriptors))


def _features(encoder: DualEncoder, images: Labelled, batch_size: int, display: Any, name: str) -> Any:
    from zero_shot.conditions import condition_features

    def step(done: int, total: int) -> None:
        display.on_item(name, done, total)

    return condition_features(encoder, images, [None], batch_size=batch_size, on_progress=step)[None]


def _fitted(
    encoder: DualEncoder,
    train: Labelled,
    test: Labelled,
    features: list[Any],
    concepts: list[str],
    arguments: argparse.Namespace,
) -> tuple[Bottleneck, list[Any]]:
    """The classifier, with its top-1, those of random concepts and of zero-shot classification, and the difference."""
    from clip_med.models.features import text_features
    from zero_shot.concepts import against_random
    from zero_shot.intervals import bootstrap_mean
    from zero_shot.metrics import top_k_accuracy
    from zero_shot.prompt_features import prompted_scores

    model, results = against_random(
        (features[0], train.truth),
        (features[1], test.truth),
        text_features(encoder, concepts),
        classes=len(test.task.prompts.classes),
        groups=test.groups,
        draws=arguments.draws,
        seed=arguments.seed,
        l1=arguments.l1,
        l2=arguments.l2,
    )
    hits = top_k_accuracy(prompted_scores(encoder, test.task, features[1]), test.truth)
    plain = bootstrap_mean(hits, name="zero-shot: top-1", groups=test.groups, seed=arguments.seed)
    return model, [*results, plain]


def _tables(
    document: dict[str, Any], results: list[Any], model: Bottleneck, concepts: list[str], classes: list[str]
) -> list[tuple[str, Lines]]:
    """Accuracies, and the weightiest concepts of each class."""
    from zero_shot.table import cell

    head = f"{document['task']}: fitted on {document['train']:,}, judged on {document['test']:,} images; "
    found: list[tuple[str, Lines]] = [
        (
            head + f"{model.used} of {len(concepts)} concepts used",
            [["classifier", "value [95 %]"], *([result.name, cell(result)] for result in results)],
        )
    ]
    lines = [["class", "weight", "concept"]]
    for name, row in zip(classes, model.weight, strict=True):
        heaviest = sorted(range(len(concepts)), key=lambda number, row=row: -abs(row[number]))[:5]
        lines += [[name, f"{row[number]:+.2f}", concepts[number]] for number in heaviest if row[number]]
    return [*found, ("The weightiest concepts of each class", lines)]


__all__ = ["add_parser"]
