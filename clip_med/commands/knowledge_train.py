"""`clip-med knowledge train`: a text tower that knows names, synonyms and descriptions, tested on held-out synonyms."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.printing import as_json

if TYPE_CHECKING:
    from clip_med.training.knowledge_text import SynonymTest


def add_train(actions: Any) -> argparse.ArgumentParser:
    """Add `knowledge train`; returns its parser."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "train",
        help="train a text tower on names, synonyms and descriptions, for pretraining to start from",
        description="Train a text tower so that the texts of a finding are near each other and its exclusions far. One "
        "synonym of each finding with two or more is held out; R@1 says how many of these find their name among the "
        "names of all findings. It takes minutes, and is not continued after a stop but repeated.",
        epilog="example: clip-med knowledge train configs/knowledge/minilm.yaml --out runs/knowledge_text --steps 100; "
        "then set model.text.path: runs/knowledge_text in a pretraining configuration",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, or the name of a shipped one")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder for the text tower")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.set_defaults(call=_train, takes_overrides=True)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    from clip_med.commands.progress import ItemDisplay
    from clip_med.config import load_config
    from clip_med.training.knowledge_text import KnowledgeTextConfig, train_knowledge_text
    from zero_shot.significance import paired_difference

    config = load_config(KnowledgeTextConfig, arguments.config, arguments.overrides)
    with ItemDisplay(quiet=arguments.json and not sys.stderr.isatty()) as display:
        summary = train_knowledge_text(
            config,
            arguments.out,
            device=arguments.device,
            on_step=lambda done, total, _: display.on_item("step", done, total),
        )
    gained = paired_difference(summary.after.hits, summary.before.hits)
    values = {
        "out": str(arguments.out),
        "findings": summary.findings,
        "texts": summary.texts,
        "steps": summary.steps,
        "loss": round(summary.loss, 4),
        "before": _tested(summary.before),
        "after": _tested(summary.after),
        "difference": gained.to_dict(),
    }
    if arguments.json:
        print(as_json(values))
        return 0
    print(f"{summary.findings} findings, {summary.texts} texts, {summary.steps} steps; loss {summary.loss:.3f}")
    for when in ("before", "after"):
        found = values[when]
        print(
            f"{when:<6}  R@1 of {found['n']} held-out synonyms {found['recall_at_1']:.3f} "
            f"[{found['low']:.3f}, {found['high']:.3f}]; cosine to their name {found['cosine_to_name']:.3f}, between "
            f"exclusions {found['cosine_to_excluded']:.3f}"
        )
    print(f"difference {gained.value:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}], p {gained.p:.2g} ({gained.test})")
    print(f"text tower: {arguments.out}")
    return 0


def _tested(test: SynonymTest) -> dict[str, Any]:
    from zero_shot.intervals import bootstrap_mean

    recall = bootstrap_mean(test.hits, name="R@1")
    return {
        "recall_at_1": recall.value,
        "low": recall.low,
        "high": recall.high,
        "n": recall.n,
        "cosine_to_name": test.to_name,
        "cosine_to_excluded": test.to_excluded,
    }


__all__ = ["add_train"]
