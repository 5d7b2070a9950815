"""The result of an evaluation: a value, its 95 % interval, and how many units stand behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        return without_nan(asdict(self))


def without_nan(value: Any) -> Any:
    """Plain values for JSON, at any depth: numbers that are undefined become None, since JSON has no NaN, no infinity.

    Example:
        >>> without_nan({"a": (1.0, float("nan"))})
        {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["Result", "without_nan"]
