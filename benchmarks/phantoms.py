"""Phantoms drawn, captioned and compressed per minute on one core.

python -m benchmarks.phantoms [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from clip_med.training.run_folder import environment
from data_prep.phantoms.write import phantom_sample


def main() -> None:
    """Time runs of whole rounds, in which every combination of every modality occurs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rates: list[float] = []
    for run in range(3 if arguments.quick else 7):
        began = time.perf_counter()
        for index in range(run * 450, (run + 1) * 450):
            phantom_sample(index, "train")
        rates.append(450 * 60 / (time.perf_counter() - began))
    line = json.dumps(
        {
            "benchmark": "phantoms",
            "ratios": {"images_per_minute_per_core": round(statistics.median(rates))},
            "spread": {"images_per_minute_per_core": [round(min(rates)), round(max(rates))]},
            "environment": environment(),
            "quick": arguments.quick,
        }
    )
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
