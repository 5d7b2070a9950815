"""Does expert knowledge in training help? The small twins of the published systems, with classes left out of training.

python -m benchmarks.knowledge [--quick] [--json FILE] [--seeds N] [--samples N] [--keep DIR] [--corpus DIR]
    [--weights FILE]

Every side trains with the same towers, images, number of samples, optimiser and seeds; captions, positives, mixture,
batches, loss, facets, queries and prototypes are those of its configuration. With seed s, class s (in alphabetical
order, round again) of each of the six labelled sources is left out of training: name, images, and its place among the
classes of facets, queries and prototypes. Measured on all test images, among all classes of their source:

- seen: top-1 of images whose class was trained on;
- held out: top-1 of images whose class was not (recognised by what the prompts say of it);
- held-out AUROC: how well the score of the held-out class, less the best of the others, tells its images from the rest.
  One half is chance, also where the trained classes win every answer. Its brackets are the lowest and highest seed.

Prompts are the names, names with definition and appearance, or these descriptions alone (of `corpus_devide`, through
its projections of facets); `corpus_kad` is also asked by its decoder, with queries of name and definition. An image
counts with the mean over the seeds in which it is seen, or held out; intervals (95 %) are drawn over patients or cases
of each source, means are over sources. `--keep`: each run's outcome stays in this folder, and what is there is not
trained again. `--quick`: one seed, 64 samples, one row of 16: a check that it runs. Needs the small corpus, and the
weights of EfficientNet-Lite0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.knowledge_data import TASKS, write_shards
from benchmarks.knowledge_sides import SIDES, Images, Scale, configured, judged, trained, without
from benchmarks.knowledge_table import Outcomes, summarised, table
from clip_med.config import load_config
from clip_med.data.shard_index import write_atomically
from clip_med.data.shards import ShardSet
from clip_med.training.config import ScheduleConfig
from clip_med.training.knowledge_text import KnowledgeTextConfig, train_knowledge_text
from clip_med.training.run_folder import environment


def main() -> None:
    """Train all sides with all seeds, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 64 samples, one row of 16")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the JSON line here")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep outcomes here, and go on from those that it has")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--samples", metavar="N", type=int, default=8000, help="of each run; default: %(default)s")
    parser.add_argument("--corpus", metavar="DIR", type=Path, default=Path("../shared/corpus"))
    weights = Path("../shared/models/tf_efficientnet_lite0.safetensors")
    parser.add_argument("--weights", metavar="FILE", type=Path, default=weights)
    options = parser.parse_args()
    scale = Scale(samples=options.samples, seeds=options.seeds)
    if options.quick:
        scale = Scale(samples=64, seeds=1, text_steps=2, every=16)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.keep or Path(folder), scale, options.corpus.resolve(), options.weights.resolve())
    print("\n".join(table(found)), flush=True)
    line = json.dumps({"benchmark": "knowledge", **found, "environment": environment(), "quick": options.quick})
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all runs share: where outcomes stay, how much is trained, on what."""

    root: Path
    scale: Scale
    corpus: Path
    weights: Path
    text: Path
    test: ShardSet
    images: list[Images]

    def run(self, side: str, seed: int) -> dict[str, Any]:
        """Train one side with one seed, or read what a call before this one left; the run itself is not kept."""
        file = self.root / f"{side}-{seed}.json"
        if not file.exists():
            began = time.perf_counter()
            left_out = {task.source: task.held_out(seed) for task in TASKS}
            train = _shards(self.root / f"train{seed}", self.corpus, without=left_out.items(), every=self.scale.every)
            config = configured(side, seed, self.scale, train, self.weights, self.text)
            folder = file.with_suffix("")
            shutil.rmtree(folder, ignore_errors=True)
            encoder = trained(without(config, left_out.values()), folder)
            seconds = time.perf_counter() - began
            found = judged(encoder, config, self.test, self.images, seed)
            plain = {kind: {name: _plain(values) for name, values in own.items()} for kind, own in found.items()}
            write_atomically(file, json.dumps({"seconds": round(seconds, 1), "outcomes": plain}) + "\n")
            shutil.rmtree(folder)
            print(
                f"{side} seed {seed}: trained in {seconds:.0f} s, all in {time.perf_counter() - began:.0f} s",
                flush=True,
            )
        return json.loads(file.read_text(encoding="utf-8"))


def measure(root: Path, scale: Scale, corpus: Path, weights: Path) -> dict[str, Any]:
    """Everything that the JSON line holds; what is trained on the way goes into `root`, outcomes stay there."""
    root.mkdir(parents=True, exist_ok=True)
    _check_scale(root / "scale.json", scale)
    test = ShardSet.open(_shards(root / "test", corpus, tested=True, every=scale.every))
    images = [Images.of(task, test) for task in TASKS]
    text = root / "text_tower"
    if not text.exists():
        _train_text_tower(text, scale)
    bench = Bench(root=root, scale=scale, corpus=corpus, weights=weights, text=text, test=test, images=images)
    runs: list[dict[str, Any]] = []
    outcomes: Outcomes = {}
    for seed in range(scale.seeds):
        for side in SIDES:
            document = bench.run(side, seed)
            for prompts, own in document["outcomes"].items():
                values = {name: np.array(numbers, dtype=np.float64) for name, numbers in own.items()}
                outcomes[side, prompts, seed] = values
                runs.append({"side": side, "seed": seed, "prompts": prompts, "seconds": document["seconds"]})
                runs[-1] |= {name: round(float(np.nanmean(value)), 4) for name, value in values.items()}
    left = [{task.source: task.held_out(seed) for task in TASKS} for seed in range(scale.seeds)]
    return {"scale": vars(scale), "left_out": left, "results": summarised(images, outcomes, scale.seeds), "runs": runs}


def _check_scale(file: Path, scale: Scale) -> None:
    """Outcomes of two scales must not meet in one table; more seeds are welcome."""
    own = vars(replace(scale, seeds=0))
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found != own:
            raise ValueError(f"{file}: --keep holds outcomes of {found}, asked for {own}; take another folder")
    write_atomically(file, json.dumps(own) + "\n")


def _shards(out: Path, corpus: Path, **how: Any) -> Path:
    """Where they are: those of an earlier call, or new ones."""
    done = out / "done"
    if not done.exists():
        shutil.rmtree(out, ignore_errors=True)
        write_shards(corpus, out, **how)
        done.touch()
    return out / "shards" / ("test" if how.get("tested") else "train")


def _train_text_tower(out: Path, scale: Scale) -> None:
    settings = load_config(KnowledgeTextConfig, "knowledge/minilm")
    warmup = ScheduleConfig(warmup_samples=min(640, scale.text_steps * 16))
    learnt = train_knowledge_text(replace(settings, steps=scale.text_steps, schedule=warmup), out, device="cpu")
    print(f"text tower: R@1 {learnt.before.hits.mean():.3f} to {learnt.after.hits.mean():.3f}", flush=True)


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


if __name__ == "__main__":
    main()
