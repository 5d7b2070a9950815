"""Two sides of one claim on the same work: alternate, take medians, print one JSON line."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from clip_med.data.shard_index import write_atomically
from clip_med.training.run_folder import environment

T = TypeVar("T")


def arguments(description: str | None, **folders: str) -> argparse.Namespace:
    """`--quick` and `--json FILE`, as every benchmark has them, and `--NAME DIR` for each folder with a default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of less work, under 50 s on 2 cores")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the JSON line here")
    for name, default in folders.items():
        parser.add_argument(f"--{name}", metavar="DIR", type=Path, default=Path(default), help="default: %(default)s")
    options = parser.parse_args()
    if options.json is not None:
        # Now, and not after an hour of work.
        options.json.parent.mkdir(parents=True, exist_ok=True)
        if options.json.is_dir():
            parser.error(f"--json {options.json}: is a folder, expected a file")
    return options


def alternate(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of theirs over seconds of ours, per round, after one round that is not counted."""
    ratios: list[float] = []
    for number in range(rounds + 1):
        seconds = [timed(side)[1] for side in (ours, theirs)]
        if number:
            ratios.append(seconds[1] / seconds[0])
    return ratios


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and its seconds."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def keep(name: str, measured: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Write the rounds so far as FILE.partial of `--json FILE`, until `report`: a run that is cut off loses none."""
    if options.json:
        write_atomically(_partial(options.json), _line(name, measured, options) + "\n")


def report(name: str, measured: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Print the line that is the result, with medians and the lowest and highest round."""
    line = _line(name, measured, options)
    print(line, flush=True)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
        _partial(options.json).unlink(missing_ok=True)


def summary(measured: dict[str, list[float]]) -> dict[str, object]:
    """Median and range over the rounds, by name."""
    return {
        "ratios": {key: round(statistics.median(values), 5) for key, values in measured.items()},
        "spread": {key: [round(min(values), 5), round(max(values), 5)] for key, values in measured.items()},
    }


def _line(name: str, measured: dict[str, list[float]], options: argparse.Namespace) -> str:
    return json.dumps({"benchmark": name, **summary(measured), "environment": environment(), "quick": options.quick})


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.partial")


__all__ = ["alternate", "arguments", "keep", "report", "summary", "timed"]
