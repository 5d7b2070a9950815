"""Texts of a knowledge base as groups: what means the same, what must not, and synonyms kept for testing. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Int64
from numpy.typing import NDArray

from clip_med.knowledge.facets import Facet, facet_texts
from clip_med.knowledge.hierarchy import Knowledge, plain_name


@dataclass(frozen=True, kw_only=True)
class TextGroups:
    """One group of texts for each finding.

    Attributes:
        ids, names: of the findings, in the order of the base.
        texts: what is trained on; the name first, at least two.
        held_out: a synonym that is in no group's texts, and the groups that it names.
        related: where one finding is the other or an ancestor of it: neither near nor far.
        excluded: where both cannot be present, or are two classes of one label set.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    held_out: tuple[tuple[str, tuple[int, ...]], ...]
    related: Bool[np.ndarray, "F F"]
    excluded: Bool[np.ndarray, "F F"]


def text_groups(known: Knowledge, facets: Sequence[Facet], *, seed: int = 0) -> TextGroups:
    """Groups of every finding, less one synonym of each that has two or more, drawn by `seed`, for testing.

    A synonym that several findings share (drusen) is kept out of all of them. Names stay: the test is whether the
    synonym finds the name.

    Raises:
        ValueError: no finding has two synonyms, or a finding has fewer than two texts left; names it.
    """
    findings = list(known.findings.values())
    plain = [frozenset(map(plain_name, f.names)) for f in findings]
    rng = np.random.default_rng(seed)
    chosen = {plain_name(f.synonyms[int(rng.integers(len(f.synonyms)))]): None for f in findings if len(f.synonyms) > 1}
    names = {plain_name(f.name) for f in findings}
    chosen = {text: None for text in chosen if text not in names}
    if not chosen:
        raise ValueError("no finding has two synonyms or more: nothing can be held out to test on")
    groups: list[tuple[str, ...]] = []
    for finding in findings:
        wanted: tuple[Facet, ...] = ("name", *(facet for facet in facets if facet != "name"))
        texts = tuple(text for text in facet_texts(finding, wanted) if plain_name(text) not in chosen)
        if len(texts) < 2:
            raise ValueError(f"finding {finding.id}: {len(texts)} text of the facets {list(wanted)}; two are needed")
        groups.append(texts)
    owners = {text: tuple(i for i, own in enumerate(plain) if text in own) for text in chosen}
    wording = {plain_name(s): s for f in reversed(findings) for s in f.synonyms}
    place = {f.id: i for i, f in enumerate(findings)}
    related, excluded = np.eye(len(findings), dtype=bool), np.zeros((len(findings), len(findings)), dtype=bool)
    for i, finding in enumerate(findings):
        above = [place[a] for a in known.ancestors(finding.id) if a in place]
        related[i, above] = related[above, i] = True
        excluded[i, [place[e] for e in known.exclusions(finding.id) if e in place]] = True
    # One name in two modalities: the same words cannot be far from themselves.
    for i, j in combinations(range(len(findings)), 2):
        if plain[i] & plain[j]:
            related[i, j] = related[j, i] = True
    return TextGroups(
        ids=tuple(f.id for f in findings),
        names=tuple(f.name for f in findings),
        texts=tuple(groups),
        held_out=tuple((wording[text], owners[text]) for text in chosen),
        related=related,
        excluded=excluded & ~related,
    )


def group_batches(
    groups: TextGroups, *, per_batch: int, instances: int, seed: int
) -> Iterator[tuple[Int64[np.ndarray, " G"], list[str]]]:
    """Endless batches: G groups, each followed where possible by one that it excludes, and `instances` texts of each.

    Excluding findings come in pairs because they are what a text tower mixes up: two classes of one data set. Texts
    are drawn without replacement; a group of fewer gives some twice. Batch t is a function of (seed, t).

    Yields:
        numbers of G groups, and G x instances texts, those of a group together.
    """
    step = 0
    while True:
        rng = np.random.default_rng([seed, step])
        waiting = rng.permutation(len(groups.ids)).tolist()
        chosen: list[int] = []
        for group in waiting:
            if len(chosen) >= min(per_batch, len(groups.ids)):
                break
            if group in chosen:
                continue
            chosen.append(group)
            partners = [p for p in np.flatnonzero(groups.excluded[group]).tolist() if p not in chosen]
            if partners and len(chosen) < per_batch:
                chosen.append(partners[int(rng.integers(len(partners)))])
        yield np.array(chosen, dtype=np.int64), [t for g in chosen for t in _drawn(groups.texts[g], instances, rng)]
        step += 1


def _drawn(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    order: NDArray[np.int64] = rng.permutation(len(texts))
    return [texts[int(order[i % len(texts)])] for i in range(count)]


__all__ = ["TextGroups", "group_batches", "text_groups"]
