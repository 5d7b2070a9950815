"""Captions for rows that have a label and none of their own: templates by modality."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_med.config import ConfigError
from clip_med.config.yaml_source import read_yaml
from clip_med.knowledge.prompts import ClassPrompts, render_prompts

TEMPLATES = Path(__file__).with_name("caption_templates.yaml")


def read_templates(path: Path = TEMPLATES) -> dict[str, tuple[str, ...]]:
    """Part of a modality's name to sentences with one {}; the entry "" serves every modality that no other matches.

    Raises:
        ConfigError: not a mapping of lists, a sentence without {}, or no entry "".
    """
    values = read_yaml(path).values
    if not isinstance(values, Mapping) or "" not in values:
        raise ConfigError(f'{path}: expected a mapping of modality to sentences, with an entry "" for the rest')
    templates: dict[str, tuple[str, ...]] = {}
    for name, sentences in values.items():
        if not isinstance(sentences, list) or not sentences:
            raise ConfigError(f"{path}: {name!r}: expected a list of sentences, got {sentences!r}")
        try:
            ClassPrompts(classes={}, templates=tuple(map(str, sentences)))
        except ValueError as error:
            raise ConfigError(f"{path}: {name!r}: {error}") from error
        templates[str(name).lower()] = tuple(map(str, sentences))
    return templates


def captions_for(labels: Sequence[str], modality: str, templates: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Every sentence for the labels of one image; several labels are joined to one phrase.

    Example:
        >>> captions_for(["cyst", "calcification"], "Ultrasound", {"": ["{}."], "ultrasound": ["A scan of {}."]})
        ('A scan of cyst and calcification.',)
    """
    *first, last = labels
    phrase = f"{', '.join(first)} and {last}" if first else last
    lower = modality.lower()
    # Whole words for short names: "ct" is also in "cataract photography".
    matching = [
        name
        for name in templates
        if name and (re.search(rf"\b{re.escape(name)}\b", lower) if len(name) < 4 else name in lower)
    ]
    sentences = tuple(templates[matching[0] if matching else ""])
    return render_prompts(ClassPrompts(classes={phrase: (phrase,)}, templates=sentences))[phrase]


__all__ = ["captions_for", "read_templates"]
