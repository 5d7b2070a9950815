"""Phantoms drawn, captioned and compressed per minute on one core.

python -m benchmarks.phantoms [--quick] [--json FILE]
"""

from __future__ import annotations

import os
import time

from benchmarks.measure import arguments, report
from data_prep.phantoms.write import phantom_sample


def main() -> None:
    """Time runs of 450 samples, in which every combination of every modality occurs."""
    options = arguments(__doc__)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rates: list[float] = []
    for run in range(3 if options.quick else 7):
        began = time.perf_counter()
        for index in range(run * 450, (run + 1) * 450):
            phantom_sample(index, "train")
        rates.append(450 * 60 / (time.perf_counter() - began))
    report("phantoms", {"images_per_minute_per_core": rates}, options)


if __name__ == "__main__":
    main()
