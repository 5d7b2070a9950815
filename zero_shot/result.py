"""The result of an evaluation: a value, its 95 % interval, and how many units stand behind it."""

from __future__ import annotations

import math
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
        """Plain values for JSON, which has no NaN: undefined values are None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


__all__ = ["Result"]
