"""`clip-med vqa`: multiple-choice questions answered by the similarity of image and text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import add_report, as_json, give

if TYPE_CHECKING:
    from zero_shot.table import Lines
    from zero_shot.vqa import VqaReport


def add_parser(commands: Any) -> None:
    """Add `vqa`."""
    text = "answer multiple-choice questions by image-text similarity, next to what needs no image"
    parser = commands.add_parser(
        "vqa",
        help=text,
        description=text + ". QUESTIONS is a JSON list of {image, question, options, answer}, see docs/evaluation.md.",
        epilog="example: clip-med vqa runs/corpus questions.json --images-root images --json",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help=MODEL)
    parser.add_argument("questions", metavar="QUESTIONS", type=Path, help="a JSON file")
    parser.add_argument(
        "--images-root", metavar="DIR", type=Path, help="paths of images start here (default: where QUESTIONS lies)"
    )
    parser.add_argument(
        "--template",
        default="{question} {option}",
        help="the sentence of an option, with {option} and, if wanted, {question} (%(default)s)",
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of intervals and tests (%(default)s)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON here as well")
    parser.add_argument(
        "--scores", metavar="DIR", type=Path, help="write every answer's score here, for clip-med compare"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add_report(parser)
    parser.set_defaults(call=_vqa)


def _vqa(arguments: argparse.Namespace) -> int:
    from zero_shot.vqa_questions import read_questions

    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    questions = read_questions(arguments.questions)
    from clip_med.commands.progress import ItemDisplay
    from clip_med.data.shard_index import write_atomically
    from clip_med.distributed import process_group
    from clip_med.models.folder import load_folder, resolve_folder
    from zero_shot.vqa import answer_questions

    folder = resolve_folder(arguments.model)
    with process_group(arguments.device) as chosen, ItemDisplay() as display:
        report = answer_questions(
            load_folder(folder).to(chosen),
            questions,
            arguments.images_root or arguments.questions.parent,
            template=arguments.template,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            on_progress=display.on_item,
        )
    document = {
        "model": str(folder),
        "questions": str(arguments.questions),
        "template": arguments.template,
        **report.to_dict(questions),
    }
    if arguments.out is not None:
        write_atomically(arguments.out, as_json(document, indent=1) + "\n")
    if arguments.scores is not None:
        from zero_shot.scores import ItemScores, write_scores

        keys, groups = (tuple(getattr(q, name) for q in questions) for name in ("id", "group"))
        scores = ItemScores(keys=keys, groups=groups, metric="accuracy", values=report.hits)
        write_scores(arguments.scores, {arguments.questions.stem: scores})
    cut = f"{report.cut:,} of {report.texts:,} sentences are longer than the context and lose their end"
    title = f"{arguments.model.resolve().name}: {arguments.questions.stem}"
    give(arguments, document, _tables(report), [cut] if report.cut else [], title=title, models={"model": folder})
    return 0


def _tables(report: VqaReport) -> list[tuple[str, Lines]]:
    from zero_shot.table import cell

    lines = [["answered by", "accuracy", "model's gain [95 %]", "p"]]
    for result in report.results:
        gain = report.gain.get(result.name)
        shown = (
            ["", ""]
            if gain is None
            else [
                f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
                "< 1e-6" if gain.p < 1e-6 else f"{gain.p:.2g}",
            ]
        )
        lines.append(["image and text" if result.name == "accuracy" else result.name, cell(result), *shown])
    lines.append(["chance", f"{report.chance:.3f}", "", ""])
    found = [(f"{report.n:,} questions (value [95 % interval])", lines)]
    if report.categories:
        lines = [["category", "questions", "accuracy", "chance"]]
        lines += [[r.name, f"{r.n:,}", cell(r), f"{chance:.3f}"] for r, chance in report.categories]
        found.append(("By category", lines))
    return found


__all__ = ["add_parser"]
