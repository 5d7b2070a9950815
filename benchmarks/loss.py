"""Memory and time of the tiled losses against the plain ones: forward and backward on CPU, fp32, 512 dimensions.

python -m benchmarks.loss [--quick] [--json FILE]

tiled_memory_fraction: peak memory above the features of tiled InfoNCE over that of plain `info_nce`.
tiled_time_fraction: seconds of the same two; each run has a process of its own, the sides alternate.
siglip_memory_fraction: as the first, of the sigmoid losses.

At 32,768 pairs; with `--quick` at 6,144, where features weigh more and the memory fractions are some ten times as large
(0.25 and 0.35). The plain losses need 17 GiB at 32,768: with less at hand the largest batch that fits is taken for
both sides, and said so, and the tiled losses run at 32,768 alone.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import normalize

from benchmarks.measure import arguments, report
from clip_med.losses.config import InfoNCEConfig, LossConfig, SigmoidConfig
from clip_med.losses.contrastive import build_loss

D, TILE = 512, 2048
FULL, QUICK = 32_768, 6_144
# Matrices of all logits that a plain loss holds at its peak, rounded up, and room for everything else.
PLAIN_MATRICES, SPARE_BYTES = 4.2, 1 << 30
SIDES: dict[str, LossConfig] = {
    "info_nce": InfoNCEConfig(),
    "tiled_info_nce": InfoNCEConfig(tile=TILE),
    "sigmoid": SigmoidConfig(),
    "tiled_sigmoid": SigmoidConfig(tile=TILE),
}


@dataclass(frozen=True)
class Run:
    """One forward and backward pass: seconds, peak bytes above those before it, and what it computed."""

    seconds: float
    peak: int
    loss: float
    to_scale: float
    to_images: torch.Tensor
    to_texts: torch.Tensor


def main() -> None:
    """Compare results, then memory and time at one size."""
    options = arguments(__doc__)
    rounds = 3 if options.quick else 5
    rows = QUICK if options.quick else FULL
    while PLAIN_MATRICES * 4 * rows**2 + SPARE_BYTES > available_bytes():
        rows //= 2
    names = ("tiled_memory_fraction", "tiled_time_fraction", "siglip_memory_fraction")
    measured: dict[str, list[float]] = {name: [] for name in names}
    check(1500)
    if rows < FULL and not options.quick:
        print(f"plain losses do not fit at {FULL} pairs here: both sides are compared at {rows}", flush=True)
        fresh("tiled_info_nce", FULL)
        fresh("tiled_sigmoid", FULL)
    for _ in range(rounds):
        tiled, plain = fresh("tiled_info_nce", rows), fresh("info_nce", rows)
        assert abs(tiled.loss - plain.loss) < 1e-5 * plain.loss
        measured["tiled_memory_fraction"].append(tiled.peak / plain.peak)
        measured["tiled_time_fraction"].append(tiled.seconds / plain.seconds)
        tiled, plain = fresh("tiled_sigmoid", rows), fresh("sigmoid", rows)
        assert abs(tiled.loss - plain.loss) < 1e-5 * plain.loss
        measured["siglip_memory_fraction"].append(tiled.peak / plain.peak)
    report("loss", measured, options)


def check(rows: int) -> None:
    """Tiles, the last of them ragged, give the loss and gradients of the plain losses."""
    for name in ("info_nce", "sigmoid"):
        plain, tiled = fresh(name, rows), fresh(f"tiled_{name}", rows)
        assert abs(tiled.loss - plain.loss) < 1e-5 * plain.loss
        assert abs(tiled.to_scale - plain.to_scale) < 1e-4 * abs(plain.to_scale)
        for ours, theirs in ((tiled.to_images, plain.to_images), (tiled.to_texts, plain.to_texts)):
            assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def fresh(name: str, rows: int) -> Run:
    """`run` in a process that has done nothing else; prints a line."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure", "clip_med.losses.contrastive"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        result = pool.submit(run, name, rows).result()
    print(f"{name:>15} {rows:>6} pairs: {result.peak / 2**20:9.1f} MiB {result.seconds:7.2f} s", flush=True)
    return result


def run(name: str, rows: int) -> Run:
    """Time and peak of one pass over features that lie in memory; the gradients of the first 64 rows come back."""
    loss = build_loss(SIDES[name])
    generator = torch.Generator().manual_seed(0)
    # What libraries set up on their first call is no memory of the loss.
    small = [normalize(torch.randn(256, D, generator=generator), dim=-1).requires_grad_() for _ in range(2)]
    loss(small[0], small[1], torch.tensor(2.66), torch.tensor(-10.0), None).backward()
    images = normalize(torch.randn(rows, D, generator=generator), dim=-1)
    texts = normalize(torch.randn(rows, D, generator=generator), dim=-1).add_(images)
    texts = normalize(texts, dim=-1, out=texts)
    scale = torch.tensor(2.66, requires_grad=True)
    images, texts = images.requires_grad_(), texts.requires_grad_()
    # Sets the high-water mark back to what is resident now (Linux, proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before, began = high_water(), time.perf_counter()
    value = loss(images, texts, scale, torch.tensor(-10.0), None)
    value.backward()
    seconds, peak = time.perf_counter() - began, high_water() - before
    assert images.grad is not None
    assert texts.grad is not None
    assert scale.grad is not None
    return Run(seconds, peak, value.item(), scale.grad.item(), images.grad[:64].clone(), texts.grad[:64].clone())


def high_water() -> int:
    """Most bytes resident so far in this process."""
    return kibibytes("/proc/self/status", "VmHWM") << 10


def available_bytes() -> int:
    """What this machine, or the control group if that has less, can still give."""
    available = kibibytes("/proc/meminfo", "MemAvailable") << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def kibibytes(file: str, key: str) -> int:
    lines = Path(file).read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


if __name__ == "__main__":
    main()
