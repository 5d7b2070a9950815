"""The record of a run: one JSON object per line, cut back to the checkpoint when a run is continued."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_med.data.shard_index import write_atomically

log = logging.getLogger(__name__)


class MetricsLog:
    """Appends lines to `metrics.jsonl` and, if asked, scalars to TensorBoard.

    Lines of steps after `step` are dropped on opening: the run that goes on from `step` writes them again. A last line
    that a kill cut short is dropped too.
    """

    def __init__(self, path: Path, *, step: int, tensorboard: bool) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("tensorboard: true needs the extra: pip install 'clip-med[track]'") from error
            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line; `line` has `step` and numbers, or `step` and `results`."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._board is not None:
            scalars = {name: value for name, value in line.items() if isinstance(value, int | float)}
            scalars |= {r["name"]: r["value"] for r in line.get("results", []) if r["value"] is not None}
            for name in scalars.keys() - {"step"}:
                self._board.add_scalar(name, scalars[name], line["step"])

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, empty when there is none; an unfinished last line is left out.

    Raises:
        ValueError: a damaged line that is not the last.
    """
    if not path.exists():
        return []
    *whole, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        log.warning("%s: dropping an unfinished last line", path)
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text)
            line["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a line of metrics: {text[:80]!r}") from error
        lines.append(line)
    return lines


__all__ = ["MetricsLog", "read_metrics"]
