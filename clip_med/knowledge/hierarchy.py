"""Findings of several files as one: looked up by name, with ancestors and exclusions. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from clip_med.config import nearest
from clip_med.knowledge.schema import Finding, Group


@dataclass(frozen=True)
class Knowledge:
    """Findings by id and groups by name.

    Example:
        >>> cyst = Finding(id="kidney_cyst", name="kidney cyst", excludes=("kidney_normal",))
        >>> normal = Finding(id="kidney_normal", name="normal kidney")
        >>> known = Knowledge(findings={f.id: f for f in (cyst, normal)}, groups={})
        >>> known.find("Normal kidney")[0].id, known.exclusions("kidney_normal")
        ('kidney_normal', frozenset({'kidney_cyst'}))
    """

    findings: Mapping[str, Finding]
    groups: Mapping[str, Group]

    def find(self, name: str) -> tuple[Finding, ...]:
        """The finding of that id, else every finding of that name, synonym or label, in any case of letters.

        One name can stand for several findings: drusen in fundus photographs and in OCT look different.

        Raises:
            ValueError: none; says the nearest names.
        """
        found = self.matches(name)
        if not found:
            valid = {plain_name(text) for f in self.findings.values() for text in f.names}
            raise ValueError(f"finding {name!r} is not known; {nearest(plain_name(name), valid)}")
        return found

    def matches(self, name: str) -> tuple[Finding, ...]:
        """As `find`, but empty where none is known: looking for the nearest name takes 0.1 s."""
        if name in self.findings:
            return (self.findings[name],)
        return tuple(self.findings[i] for i in self._by_name.get(plain_name(name), ()))

    @functools.cached_property
    def _by_name(self) -> dict[str, tuple[str, ...]]:
        """Everything that a finding can be called, in plain form, to ids in the order of the base."""
        table: dict[str, dict[str, None]] = {}
        for f in self.findings.values():
            for text in (*f.names, f.id, *f.labels.values()):
                table.setdefault(plain_name(text), {})[f.id] = None
        return {text: tuple(ids) for text, ids in table.items()}

    def ancestors(self, finding: str) -> frozenset[str]:
        """Ids of its parents, their parents and so on; the finding itself only if the parents form a cycle."""
        return self._ancestors[finding]

    def exclusions(self, finding: str, *, label_sets: bool = True) -> frozenset[str]:
        """Ids of the findings that cannot be present together with it.

        Those are: what it or an ancestor excludes, in both directions; the other grades of its ordinal scales; with
        `label_sets` the other members of its multi-class groups; and the descendants of all these. Classes of a data
        set exclude each other as labels, though patients can have both (drusen and choroidal neovascularization):
        without `label_sets` only what is medically impossible is left. A member of a group that is an ancestor of
        another is not excluded by it: data sets have a class for the rest, as pneumonia beside COVID-19 pneumonia.
        """
        lineage = self.ancestors(finding) | {finding}
        partners = {b for a in lineage for b in (self.partners if label_sets else self._stated).get(a, ())}
        return frozenset({other for p in partners for other in self._descendants.get(p, ())} - lineage)

    @functools.cached_property
    def partners(self) -> dict[str, frozenset[str]]:
        """Id to the ids that are stated to exclude it, by either side or by a group; not inherited."""
        return self._partners("ordinal", "multi_class")

    @functools.cached_property
    def _stated(self) -> dict[str, frozenset[str]]:
        return self._partners("ordinal")

    def _partners(self, *kinds: str) -> dict[str, frozenset[str]]:
        pairs = {(f.id, other) for f in self.findings.values() for other in f.excludes}
        for group in self.groups.values():
            if group.kind in kinds:
                members = dict.fromkeys(group.members)
                pairs |= {(a, b) for a, b in combinations(members, 2) if not self._related(a, b)}
        table: dict[str, set[str]] = {}
        for a, b in pairs:
            table.setdefault(a, set()).add(b)
            table.setdefault(b, set()).add(a)
        return {a: frozenset(others) for a, others in table.items()}

    @functools.cached_property
    def _descendants(self) -> dict[str, set[str]]:
        """Id to itself and all that are kinds of it."""
        below = {finding: {finding} for finding in self.findings}
        for finding, above in self._ancestors.items():
            for ancestor in above & below.keys():
                below[ancestor].add(finding)
        return below

    def _related(self, a: str, b: str) -> bool:
        return b in self._ancestors.get(a, ()) or a in self._ancestors.get(b, ())

    @functools.cached_property
    def _ancestors(self) -> dict[str, frozenset[str]]:
        return {finding: self._walk(finding) for finding in self.findings}

    def _walk(self, finding: str) -> frozenset[str]:
        found: set[str] = set()
        waiting = list(self.findings[finding].parents)
        while waiting:
            parent = waiting.pop()
            if parent not in found:
                found.add(parent)
                # A parent that is in no file read has no known parents of its own.
                waiting += self.findings[parent].parents if parent in self.findings else ()
        return frozenset(found)


def plain_name(text: str) -> str:
    """Lower case, with spaces for underscores: the form in which names are compared."""
    return " ".join(text.lower().replace("_", " ").split())


__all__ = ["Knowledge", "plain_name"]
