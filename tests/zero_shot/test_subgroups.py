"""Tables per subgroup and per template: values by hand, what counts as worst, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.labelled_shards import sample
from zero_shot.classify import class_scores
from zero_shot.prompt_sensitivity import prompt_sensitivity
from zero_shot.subgroups import subgroup_table, subgroup_values

RNG = np.random.default_rng(0)


def test_a_table_by_hand() -> None:
    outcomes = np.array([1.0] * 18 + [0.0] * 2 + [1.0] * 6 + [0.0] * 6 + [0.0] * 3)
    values = ["AP"] * 20 + ["PA"] * 12 + ["LL"] * 3
    found = subgroup_table(outcomes, values, key="view", least=10)
    assert [(r.name, r.n) for r in found.results] == [("AP", 20), ("LL", 3), ("PA", 12)]
    assert [r.value for r in found.results] == pytest.approx([0.9, 0.0, 0.5])
    assert found.too_few == ("LL",)
    assert found.worst is not None
    assert found.gap is not None
    # The three lateral views are too few to be the worst.
    assert found.worst.value == pytest.approx(0.5)
    assert found.gap.value == pytest.approx(0.4)
    assert found.worst.low < 0.5 < found.worst.high
    every = subgroup_table(outcomes, values, key="view", least=1)
    assert every.worst is not None
    assert every.worst.value == 0.0
    alone = subgroup_table(outcomes, ["all"] * 35, key="view")
    assert (alone.worst, alone.gap, len(alone.results)) == (None, None, 1)
    assert json.loads(json.dumps(found.to_dict()))["gap"]["value"] == pytest.approx(0.4)


def test_patients_are_drawn_whole() -> None:
    outcomes = np.repeat(RNG.integers(0, 2, 10), 8).astype(float)
    values = ["a", "b"] * 40
    groups = np.repeat(np.arange(10), 8).tolist()
    single, whole = (subgroup_table(outcomes, values, key="x", groups=g) for g in (None, groups))
    assert whole.results[0].high - whole.results[0].low > 1.5 * (single.results[0].high - single.results[0].low)


def test_values_come_from_the_metadata() -> None:
    samples = [sample(0), sample(1, view="AP"), sample(2, provenance={"sex": "F"})]
    assert subgroup_values(samples, "modality") == ["MRI", "CT", "MRI"]
    assert subgroup_values(samples, "view") == ["unknown", "AP", "unknown"]
    assert subgroup_values(samples, "provenance.sex") == ["unknown", "unknown", "F"]
    with pytest.raises(ValueError, match=r"provenance.NAME, got 'age'"):
        subgroup_values(samples, "age")
    for call in (
        lambda: subgroup_table(np.ones(3), ["a"], key="x"),
        lambda: subgroup_table(np.ones(0), [], key="x"),
        lambda: subgroup_table(np.ones(1), ["a"], key="x", least=0),
    ):
        with pytest.raises(ValueError, match="subgroups and least"):
            call()


def unit(*shape: int) -> np.ndarray:
    rows = RNG.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_prompts_one_template_at_a_time() -> None:
    features, labels = unit(60, 8), RNG.integers(0, 3, 60)
    prompts = [[unit(2, 8) for _ in range(3)] for _ in range(4)]
    found = prompt_sensitivity(features, labels, prompts, names=list("abcd"))
    answers = [class_scores(features, template).argmax(axis=1) for template in prompts]
    assert [r.value for r in found.templates] == pytest.approx([(a == labels).mean() for a in answers])
    values = [r.value for r in found.templates]
    assert found.spread == pytest.approx(max(values) - min(values))
    pairs = [(answers[i] != answers[j]).mean() for i in range(4) for j in range(i)]
    assert found.changed == pytest.approx(np.mean(pairs))
    every = [np.concatenate([template[c] for template in prompts]) for c in range(3)]
    assert found.together.value == pytest.approx((class_scores(features, every).argmax(axis=1) == labels).mean())
    same = prompt_sensitivity(features, labels, prompts[:1] * 3, names=list("abc"))
    assert (same.spread, same.changed) == (0.0, 0.0)
    assert same.together.value == pytest.approx(same.templates[0].value)
    with pytest.raises(ValueError, match="two templates"):
        prompt_sensitivity(features, labels, prompts[:1], names=["a"])
