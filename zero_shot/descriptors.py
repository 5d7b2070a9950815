"""What a finding looks like, as short descriptors and as the pairs of prompts that say each is there or not.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clip_med.knowledge.hierarchy import plain_name
from clip_med.knowledge.load import load_knowledge
from clip_med.knowledge.schema import Finding

# The published pair is ("There are {descriptor} indicating {finding}", "There are no {descriptor} indicating
# {finding}") and fits noun phrases only; descriptors of the knowledge base are phrases and whole sentences.
TEMPLATES: Final = ("There are signs of {finding}: {descriptor}.", "There are no signs of {finding}: {descriptor}.")


@dataclass(frozen=True, kw_only=True)
class Described:
    """A finding with the descriptors by which it is recognised, at least one.

    `names`: in plain form, all that a label of this finding can be called; see `is_named`.
    """

    finding: str
    descriptors: tuple[str, ...]
    names: frozenset[str] = frozenset()

    def is_named(self, label: str) -> bool:
        """Whether a label means this finding: its name, id, a synonym or a data set's label, in any case of letters."""
        return plain_name(label) in self.names | {plain_name(self.finding)}


@dataclass(frozen=True, kw_only=True)
class PromptPairs:
    """K prompts that each descriptor is present, K that it is absent; `owner[k]` is the number of the finding."""

    present: tuple[str, ...]
    absent: tuple[str, ...]
    owner: tuple[int, ...]


def describe(
    names: Sequence[str], *, knowledge: Path | None = None, modality: str | None = None
) -> tuple[Described, ...]:
    """Findings with their descriptors from the knowledge base, or from a file or folder at `knowledge`.

    Descriptors are the attributes ("margin: circumscribed") and then the sentences on the appearance. A JSON of finding
    to a list of descriptors is a file of knowledge too. A name of several findings (drusen in fundus photographs and in
    OCT) needs the modality.

    Args:
        names: ids, names or synonyms; none: every finding (of the modality) that has descriptors.
        modality: only findings of this modality, or of none.

    Raises:
        ValueError: an unknown or ambiguous name, one that comes twice, or a finding without descriptors.

    Example:
        >>> describe(["kidney cyst"])[0].descriptors[0]
        'shape: round or oval'
    """
    known = load_knowledge(knowledge)
    if not names:
        every = [_described(f) for f in known.findings.values() if modality in (None, f.modality or modality)]
        found = tuple(one for one in every if one.descriptors)
        if not found:
            raise ValueError(f"{knowledge or 'knowledge base'}: no finding of modality {modality!r} has descriptors")
        seen = [one.finding for one in found]
        if twice := [name for name in seen if seen.count(name) > 1]:
            raise ValueError(f"several findings are called {twice[0]!r}: give a modality, or the findings by id")
        return found
    chosen: dict[str, Described] = {}
    for name in names:
        matches = [f for f in known.find(name) if modality in (None, f.modality or modality)]
        if len(matches) != 1:
            seen = ", ".join(f"{f.id} ({f.modality})" for f in known.find(name))
            raise ValueError(f"finding {name!r}: {len(matches)} findings of modality {modality or 'any'} among {seen}")
        described = _described(matches[0])
        if not described.descriptors:
            raise ValueError(f"finding {name!r} has neither attributes nor sentences on its appearance")
        if described.finding in chosen:
            raise ValueError(f"finding {name!r} ({described.finding}) is given twice")
        chosen[described.finding] = described
    return tuple(chosen.values())


def prompt_pairs(described: Sequence[Described], templates: tuple[str, str] = TEMPLATES) -> PromptPairs:
    """Prompts that every descriptor of every finding is present, and that it is absent.

    Raises:
        ValueError: a template without {descriptor}, or two that are equal; a finding without descriptors.

    Example:
        >>> prompt_pairs([Described(finding="cyst", descriptors=("a black sac",))]).absent
        ('There are no signs of cyst: a black sac.',)
    """
    for template in templates:
        if "{descriptor}" not in template:
            raise ValueError(f"template {template!r} must hold {{descriptor}} (and may hold {{finding}})")
    if templates[0] == templates[1]:
        raise ValueError(f"the templates for present and absent must differ, got {templates[0]!r} twice")
    for one in described:
        if not one.descriptors:
            raise ValueError(f"finding {one.finding!r} has no descriptors")
    pairs = [(number, one.finding, text) for number, one in enumerate(described) for text in one.descriptors]

    def filled(template: str) -> tuple[str, ...]:
        return tuple(
            template.replace("{finding}", name).replace("{descriptor}", text.rstrip(". ")) for _, name, text in pairs
        )

    return PromptPairs(
        present=filled(templates[0]), absent=filled(templates[1]), owner=tuple(number for number, _, _ in pairs)
    )


def _described(finding: Finding) -> Described:
    attributes = tuple(f"{name}: {phrase}" for name, phrase in finding.attributes.filled().items())
    names = frozenset(map(plain_name, (*finding.names, finding.id, *finding.labels.values())))
    return Described(finding=finding.name, descriptors=attributes + finding.descriptions.appearance, names=names)


__all__ = ["TEMPLATES", "Described", "PromptPairs", "describe", "prompt_pairs"]
