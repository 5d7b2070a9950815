"""The `config` decorator and the constrained number types that every configuration class uses.

Configurations are plain frozen dataclasses; validation happens once, where YAML or the command line
enters (`clip_med.config.load`), so building one in code costs nothing and needs no pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar, dataclass_transform

from annotated_types import Ge, Gt, Le

T = TypeVar("T")

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0.0)]
NonNegativeFloat = Annotated[float, Ge(0.0)]
Fraction = Annotated[float, Ge(0.0), Le(1.0)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Turn a class into a frozen, keyword-only dataclass whose YAML form refuses unknown keys.

    Example:
        >>> from clip_med.config import PositiveInt, config
        >>> @config
        ... class Crop:
        ...     size: PositiveInt = 224
        >>> Crop().size
        224
    """
    decorated: type[T] = dataclass(frozen=True, kw_only=True)(cls)
    # Read by pydantic's TypeAdapter; a plain dict, so that this module needs no pydantic.
    decorated.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return decorated


__all__ = ["Fraction", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "config"]
