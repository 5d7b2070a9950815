"""The result of an evaluation: a value, its 95 % interval, and how many units stand behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """One metric: `value` in `unit`, its interval `low` to `high`, measured on `n` images or queries.

    Undefined values are NaN (for example an AUROC on a single class), never zero.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


__all__ = ["Result"]
