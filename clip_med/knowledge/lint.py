"""Faults in files of knowledge that types cannot see: gaps, duplicates, cycles, contradictions. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from clip_med.config import nearest
from clip_med.knowledge.hierarchy import Knowledge, plain_name
from clip_med.knowledge.load import KnowledgeSource, first_of_each
from clip_med.knowledge.schema import Finding

# A finding with fewer attributes and descriptions says little more than its name.
LEAST_TOLD = 5


@dataclass(frozen=True)
class Problem:
    """One fault; `rule` is one of missing, bad-id, duplicate, unknown, cycle, contradiction, too-long."""

    where: str
    rule: str
    message: str

    def __str__(self) -> str:
        """A line for a terminal."""
        return f"{self.where}: {self.rule}: {self.message}"


TooLong = Callable[[str], bool]


def longer_than(context_length: int) -> TooLong:
    """A guess, without a tokenizer, whether a text has more tokens than the context: 1.4 a word, and start and end.

    1.4 tokens a word is what CLIP's vocabulary needs for medical English; a tokenizer of its own knows better.
    """
    return lambda text: len(text.split()) * 1.4 + 2 > context_length


def lint(
    sources: Sequence[KnowledgeSource], *, known: Knowledge | None = None, too_long: TooLong | None = None
) -> list[Problem]:
    """Every fault of the sources, in the order of the rules.

    Ids of `known` (the shipped base, for a user's files) may be named as parents, exclusions and members. Plain corpora
    are held to the rules on duplicates and length only. A name or synonym may stand for one finding in each modality:
    drusen have one name and look different in fundus photographs and in OCT.
    """
    merged = first_of_each(sources)
    if known is not None:
        merged = Knowledge(findings={**known.findings, **merged.findings}, groups={**known.groups, **merged.groups})
    place = _Places(sources)
    return [
        *_missing(sources),
        *_duplicates(sources),
        *_unknown(sources, merged),
        *_hierarchy(merged, place),
        *_statements(sources),
        *_lengths(sources, too_long or longer_than(77)),
    ]


def count(sources: Sequence[KnowledgeSource]) -> dict[str, int | dict[str, int]]:
    """What the sources hold: files, findings (also by modality), names, attributes, sentences, groups, relations."""
    merged = first_of_each(sources)
    findings = list(merged.findings.values())
    pairs = {frozenset((f.id, other)) for f in findings for other in merged.exclusions(f.id)}
    return {
        "files": len(sources),
        "findings": len(findings),
        "synonyms": sum(len(f.synonyms) for f in findings),
        "attributes": sum(len(f.attributes.filled()) for f in findings),
        "sentences": sum(len(texts) for f in findings for texts in f.facets().values()),
        "groups": len(merged.groups),
        "parents": sum(len(f.parents) for f in findings),
        "exclusions": len(pairs),
        "modality": dict(sorted(Counter(f.modality or "not stated" for f in findings).items())),
    }


class _Places:
    """Where each finding stands: the first place of its id."""

    def __init__(self, sources: Sequence[KnowledgeSource]) -> None:
        self.of: dict[str, str] = {}
        for read in sources:
            for i, finding in enumerate(read.content.findings):
                self.of.setdefault(finding.id, read.source.where(("findings", i, "id")))


def _findings(sources: Sequence[KnowledgeSource], *, plain: bool) -> Iterator[tuple[KnowledgeSource, int, Finding]]:
    """Every finding with its source and index; those of plain corpora only if asked for."""
    for read in sources:
        if plain or not read.plain:
            for i, finding in enumerate(read.content.findings):
                yield read, i, finding


def _missing(sources: Sequence[KnowledgeSource]) -> Iterator[Problem]:
    for read in sources:
        if not read.plain and not read.content.sources:
            yield Problem(read.source.where(()), "missing", "sources: say from where the knowledge is")
    for read, i, finding in _findings(sources, plain=False):
        where = read.source.where(("findings", i, "id"))
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", finding.id):
            yield Problem(where, "bad-id", f"{finding.id!r} must be snake_case")
        for key in ("modality", "anatomy"):
            if not getattr(finding, key) and not getattr(read.content, key):
                yield Problem(where, "missing", f"{finding.id}: {key}, here or at the top of the file")
        for key in ("definition", "positive", "negative"):
            if not getattr(finding, key):
                yield Problem(where, "missing", f"{finding.id}: {key}")
        described = finding.descriptions
        told = len(finding.attributes.filled()) + len(described.appearance) + len(described.report)
        if told < LEAST_TOLD:
            message = f"{finding.id}: {told} attributes and descriptions, expected {LEAST_TOLD} or more"
            yield Problem(where, "missing", message)
        blank = [text for text in _texts(finding) if not text.strip()]
        if blank:
            yield Problem(where, "missing", f"{finding.id}: {len(blank)} texts of spaces only")


def _duplicates(sources: Sequence[KnowledgeSource]) -> Iterator[Problem]:
    seen: dict[tuple[str, ...], str] = {}

    def again(key: tuple[str, ...], where: str, message: str) -> Iterator[Problem]:
        if key in seen:
            yield Problem(where, "duplicate", f"{message} is already at {seen[key]}")
        seen.setdefault(key, where)

    for read in sources:
        for i, group in enumerate(read.content.groups):
            where = read.source.where(("groups", i))
            yield from again(("group", group.name), where, f"group {group.name!r}")
            for member, times in Counter(group.members).items():
                if times > 1:
                    yield Problem(where, "duplicate", f"group {group.name!r} has member {member!r} {times} times")
    for read, i, finding in _findings(sources, plain=True):
        where = read.source.where(("findings", i, "id"))
        yield from again(("id", finding.id), where, f"id {finding.id!r}")
        modality = finding.modality or read.content.modality or ""
        for name in finding.names:
            said = f"{finding.id}: name or synonym {name!r}{f' of modality {modality}' if modality else ''}"
            yield from again(("name", modality, plain_name(name)), where, said)
        for group, label in finding.labels.items():
            # Plain corpora come as they are: two public classes share an abbreviation.
            if not read.plain:
                yield from again(("label", group, label), where, f"{finding.id}: label {label!r} of {group}")
        for text, times in Counter(_sentences(finding)).items():
            if times > 1:
                yield Problem(where, "duplicate", f"{finding.id}: {times} times the sentence {_short(text)!r}")


def _unknown(sources: Sequence[KnowledgeSource], merged: Knowledge) -> Iterator[Problem]:
    def check(where: str, what: str, name: str, valid: Sequence[str]) -> Iterator[Problem]:
        if name not in valid:
            yield Problem(where, "unknown", f"{what} {name!r}; {nearest(name, valid)}")

    for read in sources:
        for i, group in enumerate(read.content.groups):
            for member in group.members:
                where = read.source.where(("groups", i))
                yield from check(where, f"group {group.name}: member", member, list(merged.findings))
    for read, i, finding in _findings(sources, plain=False):
        for key in ("parents", "excludes"):
            where = read.source.where(("findings", i, key))
            for other in getattr(finding, key):
                yield from check(where, f"{finding.id}: {key}:", other, list(merged.findings))
        where = read.source.where(("findings", i, "labels"))
        for group in finding.labels:
            holding = [name for name, g in merged.groups.items() if finding.id in g.members]
            yield from check(where, f"{finding.id}: labels: group", group, holding)


def _hierarchy(merged: Knowledge, place: _Places) -> Iterator[Problem]:
    for finding in place.of:
        above = merged.ancestors(finding)
        if finding in above:
            cycle = sorted(a for a in above if finding in merged.ancestors(a))
            if finding == cycle[0]:
                yield Problem(place.of[finding], "cycle", f"each is its own ancestor: {', '.join(cycle)}")
            continue
        inherited = {pair for parent in merged.findings[finding].parents for pair in _conflicts(merged, parent)}
        for a, b in sorted(_conflicts(merged, finding) - inherited):
            message = f"{a!r} and {b!r} exclude each other, and {finding!r} is a kind of both"
            if finding in (a, b):
                other = b if finding == a else a
                message = f"{finding!r} excludes {'itself' if other == finding else f'its own ancestor {other!r}'}"
            yield Problem(place.of[finding], "contradiction", message)


def _conflicts(merged: Knowledge, finding: str) -> set[tuple[str, str]]:
    """Pairs of its lineage that exclude each other: a finding with one can never be present."""
    if finding not in merged.findings:
        return set()
    lineage = sorted(merged.ancestors(finding) | {finding})
    pairs = [*combinations(lineage, 2), *((a, a) for a in lineage)]
    return {(a, b) for a, b in pairs if b in merged.partners.get(a, ())}


def _statements(sources: Sequence[KnowledgeSource]) -> Iterator[Problem]:
    said: dict[tuple[str, str], str] = {}
    for read, i, finding in _findings(sources, plain=False):
        where = read.source.where(("findings", i, "id"))
        for text in sorted(set(map(plain_name, finding.positive)) & set(map(plain_name, finding.negative))):
            yield Problem(where, "contradiction", f"{finding.id}: both positive and negative: {_short(text)!r}")
        modality = finding.modality or read.content.modality or ""
        for text in _sentences(finding):
            other = said.setdefault((modality, plain_name(text)), finding.id)
            if other != finding.id:
                yield Problem(where, "duplicate", f"{finding.id}: a sentence of {other} too: {_short(text)!r}")


def _lengths(sources: Sequence[KnowledgeSource], too_long: TooLong) -> Iterator[Problem]:
    for read, i, finding in _findings(sources, plain=True):
        for text in _sentences(finding):
            if too_long(text):
                where = read.source.where(("findings", i, "id"))
                yield Problem(where, "too-long", f"{finding.id}: {len(text.split())} words: {_short(text)!r}")


def _sentences(finding: Finding) -> list[str]:
    return [text for texts in finding.facets().values() for text in texts]


def _texts(finding: Finding) -> list[str]:
    return [*finding.names, *finding.attributes.filled().values(), *_sentences(finding)]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = ["LEAST_TOLD", "Problem", "TooLong", "count", "lint", "longer_than"]
