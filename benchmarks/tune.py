"""Few-shot prompt learning from cached features against the usual loop, which encodes images and full texts each step.

python -m benchmarks.tune [--quick] [--json FILE]

coop_vs_usual_loop, biomedcoop_vs_usual_loop: seconds of the usual loop (`benchmarks.tune_usual`) over ours, for 16
shots of 3 classes and 100 epochs at batch 32, on a model of BiomedCLIP's shape (timm's ViT-B/16, BERT-base at 256
positions) with random weights, on which time does not depend. Ours includes encoding every view of every image and all
texts, and both run on one thread. The usual loop is timed for one epoch, since all of them do the same work, and scaled
to 100: the output says so.
coop_accuracy_fraction, biomedcoop_accuracy_fraction: difference of the two sides' mean test accuracies over the
standard deviation over 5 seeds, on a small CLIP pretrained on other phantoms; here both sides run all 100 epochs.

Before each of these, both sides must give the same loss (within 1e-5) and the same gradient on the same images.
With `--quick`: towers of less than 1 M parameters, and for accuracy 12 epochs and 3 seeds.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.measure import arguments, report, summary, timed
from benchmarks.tune_task import AUGMENT, CONTEXT, NAMES, Shots, biomedclip_shape, class_texts, pretrained, write_shots
from benchmarks.tune_usual import Consistency, UsualLoop
from clip_med.data.views import ViewConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.feature_cache import cached_view_features
from clip_med.prompt_learning.biomedcoop import BiomedCoOp, BiomedCoOpConfig
from clip_med.prompt_learning.coop import CoOp, CoOpConfig
from clip_med.prompt_learning.fitting import FitConfig, fit
from clip_med.prompt_learning.method import ClassTexts, Support

METHODS: Final = ("coop", "biomedcoop")
SHOTS: Final = 16
TOLERANCE: Final = 1e-5


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is done: towers of full size or small ones, rounds of timing, and what accuracy is measured on."""

    full: bool
    rounds: int
    pretrained_on: int
    epochs: int
    seeds: int
    tested: int


FULL: Final = Amount(full=True, rounds=5, pretrained_on=500, epochs=100, seeds=5, tested=100)
QUICK: Final = Amount(full=False, rounds=3, pretrained_on=500, epochs=12, seeds=3, tested=50)
FIT: Final = FitConfig(epochs=100)
VIEWS: Final = 3


def main() -> None:
    """Compare losses, then times, then accuracies, of both methods."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), QUICK if options.quick else FULL)
    report("tune", measured, options)


def measure(root: Path, amount: Amount) -> dict[str, list[float]]:
    """All ratios; what is drawn and trained on the way goes into `root`."""
    encoder = biomedclip_shape(root / "bert", full=amount.full)
    timed_ratios = times(encoder, write_shots(root / "timed", SHOTS, size=256), amount.rounds)
    # Printed before the second part begins, so that a fault in it does not cost the first.
    print(json.dumps(summary(timed_ratios)), flush=True)
    return timed_ratios | accuracies(root, amount)


def times(encoder: DualEncoder, shots: Shots, rounds: int) -> dict[str, list[float]]:
    """Seconds of the usual loop over ours, by method and round; one round before them is not counted."""
    texts = class_texts(encoder)
    usual = {name: usual_loop(name, encoder, texts) for name in METHODS}
    for name in METHODS:
        check(name, build(name, encoder, texts), usual[name], shots)
    ratios: dict[str, list[float]] = {f"{name}_vs_usual_loop": [] for name in METHODS}
    for number in range(rounds + 1):
        support, encoding = timed(partial(encode_views, encoder, shots, seed=number))
        for name in METHODS:
            _, learning = timed(partial(learn, name, encoder, support, seed=number))
            _, epoch = timed(partial(usual[name].fit, shots, FIT, seed=number, epochs=1))
            print(
                f"{name}: ours {encoding:.1f} s for {VIEWS} views of {len(shots.labels)} images, {learning:.1f} s for "
                f"texts and {FIT.epochs} epochs; usual loop {epoch:.2f} s for one epoch, scaled to {FIT.epochs}",
                flush=True,
            )
            if number:
                ratios[f"{name}_vs_usual_loop"].append(FIT.epochs * epoch / (encoding + learning))
    return ratios


def accuracies(root: Path, amount: Amount) -> dict[str, list[float]]:
    """Difference of mean test accuracies over the standard deviation over seeds, by method."""
    encoder = pretrained(root, amount.pretrained_on)
    test = write_shots(root / "test", amount.tested, split="test")
    texts = class_texts(encoder)
    config = replace(FIT, epochs=amount.epochs)
    with torch.no_grad():
        features = encoder.encode_image(torch.stack([test.shown(row, encoder) for row in range(len(test.labels))]))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for seed in range(1, amount.seeds + 1):
        shots = write_shots(root / f"shots{seed}", SHOTS, seed=seed)
        support = encode_views(encoder, shots, seed=seed)
        for name in METHODS:
            method, usual = build(name, encoder, texts), usual_loop(name, encoder, texts)
            check(name, method, usual, shots)
            fit(method, support, config, seed=seed)
            usual.fit(shots, config, seed=seed, epochs=config.epochs)
            with torch.no_grad():
                theirs = features @ usual.text_features().T
            found[name].append((accuracy(method.predict(features), test), accuracy(theirs, test)))
    print(f"zero-shot test accuracy {accuracy(texts.zero_shot(features), test):.3f} on {len(test.labels)} images")
    return {f"{name}_accuracy_fraction": [difference(name, pairs, len(test.labels))] for name, pairs in found.items()}


def difference(name: str, pairs: list[tuple[float, float]], tested: int) -> float:
    """Of the mean accuracies of both sides, over the pooled deviation of the seeds (one test image at least)."""
    ours, theirs = zip(*pairs, strict=True)
    pooled = statistics.mean([statistics.variance(ours), statistics.variance(theirs)]) ** 0.5
    print(
        f"{name}: test accuracy of ours {statistics.mean(ours):.3f}, of the usual loop {statistics.mean(theirs):.3f}, "
        f"standard deviation over {len(pairs)} seeds {pooled:.3f}",
        flush=True,
    )
    return abs(statistics.mean(ours) - statistics.mean(theirs)) / max(pooled, 1 / tested)


def accuracy(logits: Tensor, test: Shots) -> float:
    """Share of the test images whose class is found."""
    return float((logits.argmax(dim=1) == test.labels).float().mean())


def learn(name: str, encoder: DualEncoder, support: Support, *, seed: int) -> None:
    """Our side after the images are encoded: its texts, and all epochs."""
    fit(build(name, encoder, class_texts(encoder)), support, FIT, seed=seed)


def check(name: str, method: CoOp, usual: UsualLoop, shots: Shots) -> None:
    """Both sides have one loss and one gradient on the same images, with contexts from before and during learning."""
    images = torch.stack([shots.shown(row, usual.encoder) for row in range(0, len(shots.labels), 3)])
    labels = shots.labels[::3]
    with torch.no_grad():
        features = usual.encoder.encode_image(images)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for scale in (0.0, 0.02):
        change = scale * torch.randn(usual.context.shape, generator=generator)
        start = usual.context.detach().clone()
        results = []
        for parameter, loss in (
            (method.context, lambda: method.loss(features, labels)),
            (usual.context, lambda: usual.loss(images, labels)),
        ):
            parameter.data.copy_(start + change)
            value = loss()
            results.append((value.detach(), torch.autograd.grad(value, parameter)[0]))
            parameter.data.copy_(start)
        (ours, our_gradient), (theirs, their_gradient) = results
        assert their_gradient.norm() > 0
        worst = max(worst, float((ours - theirs).abs() / theirs))
        worst = max(worst, float((our_gradient - their_gradient).norm() / their_gradient.norm()) / 10)
    print(f"{name}: both sides agree on loss and gradient, largest relative difference {worst:.1e}", flush=True)
    assert worst < TOLERANCE, f"{name}: the losses of the two sides differ by {worst}"


def build(name: str, encoder: DualEncoder, texts: ClassTexts) -> CoOp:
    """Our side of a method, with its defaults."""
    if name == "coop":
        return CoOp(CoOpConfig(context=CONTEXT), encoder, texts)
    return BiomedCoOp(BiomedCoOpConfig(context=CONTEXT), encoder, texts)


def usual_loop(name: str, encoder: DualEncoder, texts: ClassTexts) -> UsualLoop:
    """The other side, with the same settings."""
    settings = BiomedCoOpConfig()
    assert texts.descriptions is not None
    consistency = Consistency(
        descriptions=texts.descriptions,
        text_weight=settings.text_weight,
        distillation_weight=settings.distillation_weight,
        threshold=settings.threshold,
    )
    return UsualLoop(encoder, NAMES, CONTEXT, consistency if name == "biomedcoop" else None)


def encode_views(encoder: DualEncoder, shots: Shots, *, seed: int) -> Support:
    """Features of every image as evaluation shows it, and of its augmented views; nothing is kept on disk."""
    views = ViewConfig(count=VIEWS, augment=AUGMENT, seed=seed)
    features = cached_view_features(encoder, shots.shards, range(len(shots.labels)), views, cache=None)
    return Support(features=torch.from_numpy(features), labels=shots.labels)


if __name__ == "__main__":
    main()
