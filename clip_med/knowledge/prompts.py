"""Prompts of classes: every name of a class in every template. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from clip_med.config import config


@config
class ClassPrompts:
    """What a classifier is told about its classes.

    Example:
        >>> render_prompts(ClassPrompts(classes={"CYST": ("a cyst",)}, templates=("{}", "ultrasound of {}.")))
        {'CYST': ('a cyst', 'ultrasound of a cyst.')}
    """

    classes: Mapping[str, tuple[str, ...]]
    """Label, as the samples carry it, to one or more names or descriptions, with their article where one is needed."""
    templates: tuple[str, ...] = ("{}",)
    """Sentences with one `{}` in the place of the name."""

    def __post_init__(self) -> None:
        """Refuse templates without a place for the name and classes without a name."""
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold {{}} exactly once, where the class name goes")
        if not self.templates:
            raise ValueError('templates must hold at least one sentence; use "{}" for the bare names')
        for label, names in self.classes.items():
            if not names or not all(name.strip() for name in names):
                raise ValueError(f"class {label!r} needs at least one non-empty name, got {names!r}")


def render_prompts(prompts: ClassPrompts) -> dict[str, tuple[str, ...]]:
    """The prompts of each label: templates in order, within each the names in order; repeated prompts are kept once."""
    return {
        label: tuple(dict.fromkeys(t.replace("{}", name) for t in prompts.templates for name in names))
        for label, names in prompts.classes.items()
    }


__all__ = ["ClassPrompts", "render_prompts"]
