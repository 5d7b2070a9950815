"""Groups of texts: nothing held out is trained on, relatives are no negatives, exclusions come in pairs."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from clip_med.knowledge.hierarchy import Knowledge, plain_name
from clip_med.knowledge.load import load_base
from clip_med.knowledge.schema import Finding
from clip_med.knowledge.text_groups import TextGroups, group_batches, text_groups

FACETS = ("synonyms", "definition")


@pytest.fixture(scope="module")
def groups() -> TextGroups:
    """Those of the shipped base."""
    return text_groups(load_base(), FACETS)


def test_held_out_synonyms_are_nowhere_in_what_is_trained_on(groups: TextGroups) -> None:
    held = {plain_name(text) for text, _ in groups.held_out}
    assert len(held) == len(groups.held_out) > 200
    assert not held & {plain_name(text) for texts in groups.texts for text in texts}
    findings = list(load_base().findings.values())
    for text, owners in groups.held_out:
        assert owners
        assert all(plain_name(text) in map(plain_name, findings[i].synonyms) for i in owners)
    assert all(len(texts) >= 2 and texts[0] == name for texts, name in zip(groups.texts, groups.names, strict=True))
    small = Knowledge(findings={f.id: f for f in findings[:40]}, groups={})
    first, again, other = (text_groups(small, FACETS, seed=seed).held_out for seed in (0, 0, 1))
    assert first == again != other


def test_relatives_and_namesakes_are_neither_near_nor_far(groups: TextGroups) -> None:
    place = {name: i for i, name in enumerate(groups.ids)}
    mild, parent = place["fundus_dr_mild"], place["fundus_diabetic_retinopathy"]
    assert groups.related[mild, parent]
    assert groups.related[parent, mild]
    assert groups.excluded[mild, place["fundus_dr_severe"]]
    assert groups.related[place["oct_drusen"], [i for i, n in enumerate(groups.names) if n == "drusen"]].all()
    assert not (groups.related & groups.excluded).any()
    assert (groups.related == groups.related.T).all()
    assert (groups.excluded == groups.excluded.T).all()


def test_batches_repeat_and_hold_pairs_that_exclude_each_other(groups: TextGroups) -> None:
    first, again = (list(islice(group_batches(groups, per_batch=16, instances=3, seed=5), 4)) for _ in range(2))
    for (numbers, texts), (same, texts_again) in zip(first, again, strict=True):
        assert (numbers == same).all()
        assert texts == texts_again
        assert len(set(numbers.tolist())) == len(numbers) == 16
        for k, number in enumerate(numbers):
            assert set(texts[3 * k : 3 * k + 3]) <= set(groups.texts[number])
        within = groups.excluded[numbers][:, numbers]
        assert within.any(axis=1).mean() > 0.5
    assert not np.array_equal(first[0][0], first[1][0])
    whole, _ = next(group_batches(groups, per_batch=1000, instances=2, seed=0))
    assert sorted(whole.tolist()) == list(range(len(groups.ids)))


def test_knowledge_without_synonyms_or_texts_is_refused() -> None:
    one = Finding(id="a", name="a", definition="Of one kind.")
    with pytest.raises(ValueError, match="nothing can be held out"):
        text_groups(Knowledge(findings={"a": one}, groups={}), FACETS)
    bare = Finding(id="b", name="b", synonyms=("b2", "b3"))
    with pytest.raises(ValueError, match="finding b: 1 text"):
        text_groups(Knowledge(findings={"b": bare}, groups={}), ("definition",))
