"""Prompts: every name in every template, in a stated order, and errors for those that cannot be filled."""

from __future__ import annotations

import pytest

from clip_med.config import ConfigError, validate
from clip_med.knowledge.prompts import ClassPrompts, render_prompts


def test_every_name_stands_in_every_template_once() -> None:
    prompts = ClassPrompts(classes={"a": ("x", "y"), "b": ("z", "z")}, templates=("{}", "no {}."))
    assert render_prompts(prompts) == {"a": ("x", "y", "no x.", "no y."), "b": ("z", "no z.")}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"classes": {"a": ["x"]}, "templates": ["no place"]}, "exactly once"),
        ({"classes": {"a": ["x"]}, "templates": ["{} and {}"]}, "exactly once"),
        ({"classes": {"a": []}}, "'a' needs at least one"),
        ({"classes": {"a": [" "]}}, "'a' needs at least one"),
        ({"classes": {"a": ["x"]}, "templates": []}, "at least one sentence"),
    ],
)
def test_unusable_prompts_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(ClassPrompts, values)
