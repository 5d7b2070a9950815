"""Gradients of tensors against central differences of a reference in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from torch import Tensor

STEP = 1e-6


def assert_slopes(
    reference: Callable[..., float],
    tensors: Sequence[Tensor],
    places: Sequence[Sequence[tuple[int, ...]]],
    *,
    within: float,
) -> None:
    """At its places, the gradient of each tensor is the slope of the reference, which takes the values of all."""
    values = [tensor.detach().double().numpy() for tensor in tensors]
    for number, (tensor, own) in enumerate(zip(tensors, places, strict=True)):
        assert tensor.grad is not None
        for place in own:
            sides: list[float] = []
            for sign in (1, -1):
                moved = [value.copy() for value in values]
                moved[number][place] += sign * STEP
                sides.append(reference(*moved))
            slope = (sides[0] - sides[1]) / (2 * STEP)
            assert tensor.grad[place].item() == pytest.approx(slope, abs=within), (number, place)


__all__ = ["assert_slopes"]
