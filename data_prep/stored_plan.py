"""Plans that are kept as lines of JSON: for sources that are slow to list, and for parts that other processes write."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.record import Rejection, Task


class StoredPlan:
    """A plan that is listed once and kept in a temporary file without a name: for sources that are slow to list."""

    def __init__(self, plan: Iterable[Task | Rejection]) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # closed with the object
        try:
            self._file.writelines(map(line_of, plan))
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[Task | Rejection]:
        self._file.seek(0)
        return map(item_of, self._file)

    def close(self) -> None:
        """Removes the file."""
        self._file.close()


class PlanFiles:
    """A plan that lies in files, read one after the other."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __iter__(self) -> Iterator[Task | Rejection]:
        for file in self._files:
            with file.open(encoding="utf-8") as lines:
                yield from map(item_of, lines)


def line_of(item: Task | Rejection) -> str:
    """A task or rejection as a line."""
    return json.dumps([type(item) is Task, asdict(item)], ensure_ascii=False) + "\n"


def item_of(line: str) -> Task | Rejection:
    """The task or rejection of a line."""
    is_task, fields = json.loads(line)
    return _task_of(fields) if is_task else Rejection(**fields)


def _task_of(fields: dict[str, Any]) -> Task:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Task(**{**fields, **lists})


__all__ = ["PlanFiles", "StoredPlan", "item_of", "line_of"]
