"""The record of a run: one JSON object per line, cut back to the checkpoint when a run is continued."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from clip_med.data.shard_index import write_atomically

log = logging.getLogger(__name__)

_MOST_WAITING: Final = 10_000


class MetricsLog:
    """Appends lines to `metrics.jsonl` and, if asked, scalars to TensorBoard.

    Lines of steps after `step` are dropped on opening: the run that goes on from `step` writes them again. A last line
    that a kill cut short is dropped too. Lines that cannot be written (a full disk) wait for the next one, at most
    10,000 of them: training does not end for want of room for its log.
    """

    def __init__(self, path: Path, *, step: int, tensorboard: bool) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("tensorboard: true needs the extra: pip install 'clip-med[track]'") from error
            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line; `line` has `step` and numbers, or `step` and `results`."""
        self._waiting.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._drain()
        if self._board is not None:
            scalars = {name: value for name, value in line.items() if isinstance(value, int | float)}
            scalars |= {r["name"]: r["value"] for r in line.get("results", []) if r["value"] is not None}
            for name in scalars.keys() - {"step"}:
                self._board.add_scalar(name, scalars[name], line["step"])

    def close(self) -> None:
        """Flush and close; what cannot be written is lost with a warning."""
        self._drain()
        if self._waiting:
            log.warning("%s: %d lines are lost", self._path, len(self._waiting))
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _drain(self) -> None:
        whole = os.fstat(self._file.fileno()).st_size
        try:
            while self._waiting:
                line = self._waiting[0]
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._waiting.popleft()
                whole += len(line)
        except OSError as error:
            # Not a part of a line: what follows it would be unreadable.
            self._file.truncate(whole)
            if len(self._waiting) == 1:
                log.warning("%s: %s; lines are kept until there is room", self._path, error)


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
