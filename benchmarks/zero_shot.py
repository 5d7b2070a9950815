"""`clip-med eval` on the test images of the small corpus against the loop that one writes with open_clip.

python -m benchmarks.zero_shot [--quick] [--json FILE] [--shards DIR]

cold_fp32_vs_loop, cold_bf16_vs_loop: seconds of the loop (`benchmarks.zero_shot_loop`: files, Pillow, open_clip's
    transform, a DataLoader with a worker for each core, batches of 128, top-1 or R@1) over those of `clip-med eval` on
    configs/eval/corpus.yaml: seven classifications and a retrieval, 2,381 images at 112 px. Ours also computes all
    other metrics and the intervals. Both start by loading the model from its folder; neither writes a page.
cached_fp32_vs_loop, cached_bf16_vs_loop: the same with the image features of an earlier evaluation. The loop has none.
cached_vs_cold: seconds of our cold evaluation over those of the cached one, fp32.
command_90_s_fraction: seconds of the whole command in a process of its own, imports and report with pictures included,
    over 90. One run after the others, whose files the system still has in memory. Left out with `--quick`.

The model has the towers of configs/pretrain/corpus_small.yaml, EfficientNet-Lite0 with random weights (time does not
depend on them) and MiniLM. Checked before: image features of the two sides agree, up to what Pillow and our decoder and
resizing make of the same pixels. Needs the test shards of the small corpus (README). With `--quick`: two of the
classifications and the retrieval, every 8th image at 64 px, fp32.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F

from benchmarks.measure import arguments, keep, report, timed
from benchmarks.zero_shot_loop import FileTask, evaluate, file_tasks
from clip_med.commands.evaluate import evaluate_folder
from clip_med.config import dump_yaml, load_config
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from clip_med.models.config import TwoTowerModel
from clip_med.models.features import Precision, image_features
from clip_med.models.folder import build_model, load_folder, save_folder
from clip_med.pretrain import PretrainConfig
from zero_shot.config import EvalConfig

# Cosine of the two sides' features of an image after the mean over images is taken off both.
AGREE: Final = 0.99
WORKERS: Final = os.cpu_count() or 1


def main() -> None:
    """Make the model and the files, compare features, then times."""
    options = arguments(__doc__, shards="shards/corpus/test")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = load_config(EvalConfig, "eval/corpus")
        if options.quick:
            quick = replace(config, tasks=(*config.tasks[:2], config.tasks[-1]))
            model = corpus_model(root / "model", image_size=64)
            config = on(quick, every(options.shards, root / "shards", 8))
            measured: dict[str, list[float]] = {}
            rounds = measure(root, model, config, 3, ("fp32",))
        else:
            model, config = corpus_model(root / "model"), on(config, options.shards)
            measured = {"command_90_s_fraction": [command(root, model, config) / 90]}
            rounds = measure(root, model, config, 5, ("fp32", "bf16"))
        for ratios in rounds:
            for name, value in ratios.items():
                measured.setdefault(name, []).append(value)
            keep("zero_shot", measured, options)
    report("zero_shot", measured, options)


def every(location: Path, out: Path, step: int) -> Path:
    """Shards with one of `step` samples of others."""
    shards = ShardSet.open(location)
    with ShardWriter(out) as writer:
        for index in range(0, len(shards), step):
            writer.add(shards.read(index))
    return out


def corpus_model(folder: Path, *, image_size: int | None = None) -> Path:
    """A model with the towers of the small corpus, the image tower with random weights."""
    config = load_config(PretrainConfig, "pretrain/corpus_small").model
    assert isinstance(config, TwoTowerModel)
    image = replace(config.image, weights=None, image_size=image_size or config.image.image_size)
    torch.manual_seed(0)
    save_folder(build_model(replace(config, image=image)), folder)
    return folder


def on(config: EvalConfig, shards: Path) -> EvalConfig:
    """The same tasks on other shards."""
    return replace(config, tasks=tuple(replace(task, shards=str(shards)) for task in config.tasks))


def measure(
    root: Path, model: Path, config: EvalConfig, rounds: int, precisions: Sequence[Precision]
) -> Iterator[dict[str, float]]:
    """Ratios of each round, after one round that is not counted; what is written on the way goes into `root`."""
    tasks = file_tasks(config, root / "files")
    check(model, config, tasks)
    for number in range(rounds + 1):
        ratios: dict[str, float] = {}
        for precision in precisions:
            cache = root / f"features-{precision}-{number}"
            own = partial(ours, model, config, precision, cache)
            sides = (own, own, partial(theirs, model, tasks, precision))
            cold, cached, loop = (timed(side)[1] for side in sides)
            print(f"{precision}: cold {cold:.1f} s, cached {cached:.1f} s, loop {loop:.1f} s", flush=True)
            ratios |= {f"cold_{precision}_vs_loop": loop / cold, f"cached_{precision}_vs_loop": loop / cached}
            if precision == "fp32":
                ratios["cached_vs_cold"] = cold / cached
        if number:
            yield ratios


def ours(model: Path, config: EvalConfig, precision: Precision, cache: Path) -> None:
    """The command's work on a model folder, without a report; what it says of files and counts is dropped."""
    with redirect_stderr(StringIO()):
        evaluate_folder(
            model, replace(config, precision=precision), name="corpus", device="cpu", report=None, cache=cache
        )


def theirs(model: Path, tasks: list[FileTask], precision: Precision) -> None:
    """The loop, with a worker for each core."""
    evaluate(model, tasks, precision=precision, workers=WORKERS)


def check(model: Path, config: EvalConfig, tasks: list[FileTask]) -> None:
    """Every image has the same feature on both sides, but for what its pixels went through."""
    encoder, found = load_folder(model), evaluate(model, tasks, precision="fp32", workers=0)
    worst = 1.0
    for task, own in zip(config.tasks, tasks, strict=True):
        rows = torch.from_numpy(image_features(encoder, ShardSet.open(task.shards), own.indices))
        others = found[own.name][1]
        cosines = F.cosine_similarity(rows - rows.mean(dim=0), others - others.mean(dim=0))
        worst = min(worst, float(cosines.min()))
    print(f"both sides agree on {sum(len(own.files) for own in tasks):,} images, lowest cosine {worst:.4f}", flush=True)
    assert worst > AGREE, f"image features of the two sides differ: cosine {worst}"


def command(root: Path, model: Path, config: EvalConfig) -> float:
    """Seconds of `clip-med eval` in a process of its own, with a report; then once more with its features."""
    (root / "corpus.yaml").write_text(dump_yaml(config), encoding="utf-8")
    words = ["eval", model, "--config", root / "corpus.yaml", "--report", root / "report.html", "--cache", root / "own"]

    run = partial(subprocess.run, [sys.executable, "-m", "clip_med", *map(str, words)], check=True, capture_output=True)
    cold, cached = (timed(run)[1] for _ in range(2))
    print(f"whole command with its report: {cold:.1f} s, with kept features {cached:.1f} s", flush=True)
    return cold


if __name__ == "__main__":
    main()
