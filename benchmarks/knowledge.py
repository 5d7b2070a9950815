"""Does expert knowledge in training help? The small twins of the published systems, with classes left out of training.

python -m benchmarks.knowledge [--quick] [--json FILE] [--seeds N] [--samples N] [--corpus DIR] [--weights FILE]

Every side trains with the same towers, images, number of samples, optimiser and seeds; captions, positives, mixture,
batches and loss are those of its configuration. With seed s, class s (in alphabetical order, round again) of each of
the six labelled sources is left out of training, name and images. Measured on all test images, among all classes of
their source:

- seen: top-1 of images whose class was trained on;
- held out: top-1 of images whose class was not (recognised by what the prompts say of it);
- held-out AUROC: how well the score of the held-out class, less the best of the others, tells its images from the rest.
  One half is chance, also where the trained classes win every answer. Its brackets are the lowest and highest seed.

Prompts are the names, names with definition and appearance, or these descriptions alone. An image counts with the mean
over the seeds in which it is seen, or held out; intervals (95 %) are drawn over patients or cases of each source, means
are over sources. `--quick`: one seed, 64 samples, one row of 16: a check that it runs. Needs the small corpus, and the
weights of EfficientNet-Lite0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.knowledge_data import PROMPTS, TASKS, Task, write_shards
from clip_med.config import load_config
from clip_med.data.shards import ShardSet
from clip_med.models.config import TwoTowerModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import grouped_text_features, image_features
from clip_med.models.folder import load_folder
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.config import ScheduleConfig
from clip_med.training.knowledge_text import KnowledgeTextConfig, train_knowledge_text
from clip_med.training.run_folder import environment
from zero_shot.classify import class_scores
from zero_shot.intervals import bootstrap_mean, mean_of_means
from zero_shot.metrics import macro_auroc
from zero_shot.result import Result

SIDES: Final = ("corpus_small", "corpus_unimed_clip", "corpus_flair", "corpus_keep")
WITH_TEXT_TOWER: Final = ("corpus_keep",)
GROUPS: Final = ("seen", "held out")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is trained: samples of each run, side of the images, steps of the text tower, seeds, rows."""

    samples: int
    seeds: int
    image_size: int = 64
    batch_size: int = 64
    text_steps: int = 60
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Images:
    """The test images of one source, in the order of the shards."""

    task: Task
    indices: list[int]
    truth: NDArray[np.int64]
    groups: list[str]


def main() -> None:
    """Train all sides with all seeds, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 64 samples, one row of 16")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the JSON line here")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--samples", metavar="N", type=int, default=12000, help="of each run; default: %(default)s")
    parser.add_argument("--corpus", metavar="DIR", type=Path, default=Path("../shared/corpus"))
    weights = Path("../shared/models/tf_efficientnet_lite0.safetensors")
    parser.add_argument("--weights", metavar="FILE", type=Path, default=weights)
    options = parser.parse_args()
    scale = Scale(samples=options.samples, seeds=options.seeds)
    if options.quick:
        scale = Scale(samples=64, seeds=1, text_steps=2, every=16)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), scale, options.corpus.resolve(), options.weights.resolve())
    print("\n".join(table(found)), flush=True)
    line = json.dumps({"benchmark": "knowledge", **found, "environment": environment(), "quick": options.quick})
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


def measure(root: Path, scale: Scale, corpus: Path, weights: Path) -> dict[str, Any]:
    """Everything that the JSON line holds; what is trained on the way goes into `root`."""
    test = write_shards(corpus, root / "test", tested=True, every=scale.every)
    images = [_images(task, test) for task in TASKS]
    text = root / "text_tower"
    settings = load_config(KnowledgeTextConfig, "knowledge/minilm")
    warmup = ScheduleConfig(warmup_samples=min(640, scale.text_steps * 16))
    learnt = train_knowledge_text(replace(settings, steps=scale.text_steps, schedule=warmup), text, device="cpu")
    print(f"text tower: R@1 {learnt.before.hits.mean():.3f} to {learnt.after.hits.mean():.3f}", flush=True)
    runs: list[dict[str, Any]] = []
    outcomes: dict[tuple[str, str, int], dict[str, NDArray[np.float64]]] = {}
    for seed in range(scale.seeds):
        left_out = [(task.source, task.held_out(seed)) for task in TASKS]
        train = root / f"train{seed}"
        write_shards(corpus, train, without=left_out, every=scale.every)
        for side in SIDES:
            began = time.perf_counter()
            encoder = _trained(side, seed, scale, train / "shards" / "train", weights, text, root / f"{side}{seed}")
            trained = time.perf_counter() - began
            features = image_features(encoder, test, range(len(test)))
            for prompts in PROMPTS:
                outcomes[side, prompts, seed] = _judged(encoder, features, images, prompts, seed)
                runs.append({"side": side, "seed": seed, "prompts": prompts, "train_seconds": round(trained, 1)})
                runs[-1] |= {key: round(float(np.nanmean(v)), 4) for key, v in outcomes[side, prompts, seed].items()}
            print(
                f"{side} seed {seed}: trained in {trained:.0f} s, all in {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    results = [
        row
        for side in SIDES
        for prompts in PROMPTS
        for row in _summarised(side, prompts, images, outcomes, scale.seeds)
    ]
    return {"scale": vars(scale), "left_out": _left_out(scale.seeds), "results": results, "runs": runs}


def _left_out(seeds: int) -> list[dict[str, str]]:
    return [{task.source: task.held_out(seed) for task in TASKS} for seed in range(seeds)]


def _images(task: Task, test: ShardSet) -> Images:
    samples = [(i, test.metadata(i)) for i in range(len(test))]
    own = [(i, sample) for i, sample in samples if sample.dataset == task.source]
    numbers = {label: number for number, label in enumerate(task.classes)}
    truth = np.array([numbers[sample.labels[0]] for _, sample in own], dtype=np.int64)
    return Images(task=task, indices=[i for i, _ in own], truth=truth, groups=[sample.group for _, sample in own])


def _trained(side: str, seed: int, scale: Scale, shards: Path, weights: Path, text: Path, run: Path) -> DualEncoder:
    """The model of a side: its configuration with our data, budget and image size."""
    config = load_config(PretrainConfig, f"pretrain/{side}")
    model = config.model
    assert isinstance(model, TwoTowerModel)
    tower = replace(model.text, path=str(text)) if side in WITH_TEXT_TOWER else model.text
    image = replace(model.image, weights=weights, image_size=scale.image_size)
    train = replace(
        config.train,
        samples=scale.samples,
        epochs=None,
        batch_size=scale.batch_size,
        seed=seed,
        precision="fp32",
        schedule=ScheduleConfig(warmup_samples=scale.samples // 10),
        save_every_samples=10**9,
        keep=1,
    )
    config = replace(
        config,
        model=replace(model, image=image, text=tower),
        shards=(str(shards),),
        sources=(),
        loader=replace(config.loader, workers=0),
        train=train,
    )
    summary = pretrain(config, run, device="cpu", on_start=lambda _: None)
    return load_folder(summary.checkpoint / "model")


def _judged(
    encoder: DualEncoder, features: NDArray[np.float32], images: list[Images], prompts: str, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Per source: hits of every image, NaN where it belongs to the other group; and the AUROC of the held-out class."""
    found: dict[str, NDArray[np.float64]] = {}
    for part in images:
        texts = grouped_text_features(encoder, part.task.prompts(prompts).values())
        scores = class_scores(features[part.indices], texts)
        held = list(part.task.classes).index(part.task.held_out(seed))
        hits = (scores.argmax(axis=1) == part.truth).astype(np.float64)
        own = part.truth == held
        source = part.task.source
        found[f"{source}/seen"] = np.where(own, np.nan, hits)
        found[f"{source}/held out"] = np.where(own, hits, np.nan)
        margin = scores[:, held] - np.delete(scores, held, axis=1).max(axis=1)
        two = np.stack([-margin, margin], axis=1)
        found[f"{source}/AUROC"] = np.array([macro_auroc(two, own.astype(np.int64))])
    return found


def _summarised(
    side: str,
    prompts: str,
    images: list[Images],
    outcomes: dict[tuple[str, str, int], dict[str, NDArray[np.float64]]],
    seeds: int,
) -> list[dict[str, Any]]:
    """A row for each source and the mean over sources, of each group and the AUROC."""
    rows: list[dict[str, Any]] = []

    def add(source: str, what: str, result: Result, spread: float | None) -> None:
        numbers = {
            key: round(value, 4) for key, value in (("value", result.value), ("low", result.low), ("high", result.high))
        }
        rows.append({"side": side, "prompts": prompts, "source": source, "what": what, **numbers, "n": result.n})
        rows[-1]["sd_over_seeds"] = None if spread is None else round(spread, 4)

    of_seed = [outcomes[side, prompts, seed] for seed in range(seeds)]
    for what in GROUPS:
        means: list[tuple[NDArray[np.float64], list[str]]] = []
        for part in images:
            table_of_hits = np.stack([found[f"{part.task.source}/{what}"] for found in of_seed])
            counted: NDArray[np.bool_] = np.asarray(~np.isnan(table_of_hits).all(axis=0))
            values = np.nanmean(table_of_hits[:, counted], axis=0)
            groups = [group for group, kept in zip(part.groups, counted.tolist(), strict=True) if kept]
            add(part.task.source, what, bootstrap_mean(values, name=what, groups=groups), None)
            means.append((values, groups))
        by_seed = [np.mean([np.nanmean(found[f"{p.task.source}/{what}"]) for p in images]) for found in of_seed]
        add("mean", what, mean_of_means(means, name=what), _deviation(by_seed))
    areas = np.array([[found[f"{part.task.source}/AUROC"][0] for part in images] for found in of_seed])
    for part, column in zip(images, areas.T, strict=True):
        low, high = float(column.min()), float(column.max())
        result = Result(name="AUROC", value=float(column.mean()), low=low, high=high, n=seeds, unit="fraction")
        add(part.task.source, "held-out AUROC", result, _deviation(list(column)))
    by_seed = list(areas.mean(axis=1))
    mean = Result(
        name="AUROC", value=float(areas.mean()), low=min(by_seed), high=max(by_seed), n=seeds, unit="fraction"
    )
    add("mean", "held-out AUROC", mean, _deviation(by_seed))
    return rows


def _deviation(values: list[Any]) -> float | None:
    return statistics.stdev(map(float, values)) if len(values) > 1 else None


def table(found: dict[str, Any]) -> list[str]:
    """The results as Markdown: a table of means over sources, and one of each source for the prompts with names."""
    cells: dict[tuple[str, str, str, str], str] = defaultdict(str)
    for row in found["results"]:
        spread = "" if row["sd_over_seeds"] is None else f" ± {100 * row['sd_over_seeds']:.1f}"
        numbers = f"{100 * row['value']:.1f}{spread} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        cells[row["side"], row["prompts"], row["source"], row["what"]] = numbers
    whats = (*GROUPS, "held-out AUROC")
    sides = list(dict.fromkeys(row["side"] for row in found["results"]))
    sources = [task.source for task in TASKS]
    lines = [f"| side | prompts | {' | '.join(whats)} |", "|---" * (2 + len(whats)) + "|"]
    for side in sides:
        for prompts in PROMPTS:
            lines.append(f"| {side} | {prompts} | {' | '.join(cells[side, prompts, 'mean', w] for w in whats)} |")
    for what in whats:
        lines += ["", f"{what}:", f"| side | prompts | {' | '.join(sources)} |", "|---" * (2 + len(sources)) + "|"]
        for side in sides:
            for prompts in PROMPTS:
                lines.append(f"| {side} | {prompts} | {' | '.join(cells[side, prompts, s, what] for s in sources)} |")
    return lines


if __name__ == "__main__":
    main()
