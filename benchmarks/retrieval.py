"""Time and memory of exact image-text retrieval in blocks against the whole matrix, on CPU, 512 dimensions.

python -m benchmarks.retrieval [--quick] [--json FILE]

retrieval_vs_full_matrix: seconds of the usual way, all cosines in float32 and an argsort of every row and every column
(open_clip's validation does this), over seconds of `retrieval_ranks`, which also gives the average precisions.
retrieval_memory_fraction: peak memory above the features of `retrieval_ranks` over that of the usual way.
Both at 10,000 images and as many captions, with `--quick` at 2,500; each run has a process of its own.
memory_fraction_100000: the same peak at 100,000 x 100,000 over the 40 GB that the float32 cosines alone would take; the
usual way is not run there. Left out with `--quick`. Seconds are printed.

Checked before: at 1,500 x 1,500 every rank is that of the whole matrix in float64; at each size R@1, 5 and 10 of the
two sides agree within 0.001 (float32 rounds cosines that lie close together).
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.loss import high_water
from benchmarks.measure import arguments, keep, report
from zero_shot.ranks import retrieval_ranks

D, SMALL, QUICK, FULL, LARGE = 512, 1_500, 2_500, 10_000, 100_000
Ranks = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Run:
    """Seconds, peak bytes above those before, and the rank of each query's right answer in both directions."""

    seconds: float
    peak: int
    ranks: Ranks


def main() -> None:
    """Compare ranks, then time and memory."""
    options = arguments(__doc__)
    check(SMALL)
    rows, rounds = (QUICK, 3) if options.quick else (FULL, 5)
    measured: dict[str, list[float]] = {"retrieval_vs_full_matrix": [], "retrieval_memory_fraction": []}
    for _ in range(rounds):
        ours, theirs = fresh("blocks", rows), fresh("full matrix", rows)
        for own, other in zip(ours.ranks, theirs.ranks, strict=True):
            assert all(abs((own <= k).mean() - (other <= k).mean()) <= 1e-3 for k in (1, 5, 10))
        measured["retrieval_vs_full_matrix"].append(theirs.seconds / ours.seconds)
        measured["retrieval_memory_fraction"].append(ours.peak / theirs.peak)
        keep("retrieval", measured, options)
    if not options.quick:
        measured["memory_fraction_100000"] = [fresh("blocks", LARGE).peak / (4 * LARGE**2)]
    report("retrieval", measured, options)


def check(rows: int) -> None:
    """Blocks, the last of them ragged, give the ranks of the whole matrix in double precision."""
    images, texts = (features.astype(np.float64) for features in pairs(rows))
    scores = images @ texts.T
    for own, matrix in zip(blocks(*pairs(rows), chunk=400), (scores, scores.T), strict=True):
        assert (own == 1 + (matrix > np.diag(matrix)[:, None]).sum(axis=1)).all()


def fresh(side: str, rows: int) -> Run:
    """`run` in a process that has done nothing else; prints a line."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        result = pool.submit(run, side, rows).result()
    print(f"{side:>11} {rows:>7} x {rows}: {result.peak / 2**20:9.1f} MiB {result.seconds:7.2f} s", flush=True)
    return result


def run(side: str, rows: int) -> Run:
    """Time and peak of one side on features that lie in memory."""
    way = {"blocks": blocks, "full matrix": full_matrix}[side]
    # What libraries set up on their first call is no memory of the work.
    way(*pairs(64))
    images, texts = pairs(rows)
    # Sets the high-water mark back to what is resident now (Linux, proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before, began = high_water(), time.perf_counter()
    ranks = way(images, texts)
    return Run(time.perf_counter() - began, high_water() - before, ranks)


def blocks(images: NDArray[np.float32], texts: NDArray[np.float32], chunk: int = 2048) -> Ranks:
    by_image, by_text = retrieval_ranks(images, texts, [[row] for row in range(len(images))], chunk=chunk)
    return by_image.first(), by_text.first()


def full_matrix(images: NDArray[np.float32], texts: NDArray[np.float32]) -> Ranks:
    cosines = torch.from_numpy(images) @ torch.from_numpy(texts).T
    right = torch.arange(len(images))[:, None]
    found = [
        (torch.argsort(matrix, dim=1, descending=True) == right).nonzero()[:, 1].double().numpy() + 1
        for matrix in (cosines, cosines.T)
    ]
    return found[0], found[1]


def pairs(rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit rows around a common direction, and their captions at some distance."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((rows, D), dtype=np.float32)
    texts = rng.standard_normal((rows, D), dtype=np.float32)
    texts += 0.15 * images
    for part in (images, texts):
        part += 1.0
        part /= np.sqrt(np.square(part).sum(axis=1, keepdims=True))
    return images, texts


if __name__ == "__main__":
    main()
