"""Descriptors from knowledge, and Xplainer against ten lines of its own equations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from zero_shot.descriptors import Described, describe, prompt_pairs
from zero_shot.xplainer import descriptor_probabilities, explain, finding_scores, mean_over_views, no_finding

DESCRIBED = (
    Described(finding="cyst", descriptors=("a black sac", "bright zone behind")),
    Described(finding="mass", descriptors=("jagged border",)),
)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_the_equations_one_image_and_descriptor_at_a_time() -> None:
    images, present, absent = unit(5, 8), unit(3, 8, seed=1), unit(3, 8, seed=2)
    found = descriptor_probabilities(images, present, absent)
    owner = [0, 0, 1]
    plus, minus = finding_scores(found, owner)
    for n in range(5):
        p = []
        for k in range(3):
            both = [math.exp(float(images[n] @ side[k]) / 0.5) for side in (present, absent)]
            p.append(both[0] / sum(both))
        assert found[n] == pytest.approx(p, abs=1e-14)
        for y in range(2):
            own = [p[k] for k in range(3) if owner[k] == y]
            assert plus[n, y] == pytest.approx(math.exp(sum(math.log(v) for v in own) / len(own)), abs=1e-14)
            assert minus[n, y] == pytest.approx(math.exp(sum(math.log(1 - v) for v in own) / len(own)), abs=1e-14)
    assert no_finding(plus) == pytest.approx([1 - max(row) for row in plus])


def test_properties() -> None:
    images, present, absent = unit(200, 6), unit(4, 6, seed=1), unit(4, 6, seed=2)
    p = descriptor_probabilities(images, present, absent)
    assert p.min() > 1 / (1 + math.exp(4))
    assert p.max() < 1 / (1 + math.exp(-4))
    # One descriptor: the two scores are a probability and its rest.
    alone = finding_scores(p, range(4))
    assert alone[0] + alone[1] == pytest.approx(np.ones((200, 4)), abs=1e-14)
    plus, minus = finding_scores(p, [0, 0, 0, 0])
    assert (plus + minus <= 1 + 1e-14).all()
    assert ((plus > 0.5) <= (plus > minus)).all()
    # Some images are positive although S+ is under one half: 0.5 is no threshold.
    assert ((plus > minus) & (plus < 0.5)).any()
    # Swapping the prompts swaps the scores.
    swapped = finding_scores(descriptor_probabilities(images, absent, present), [0, 0, 0, 0])
    assert swapped[0] == pytest.approx(minus, abs=1e-14)
    assert swapped[1] == pytest.approx(plus, abs=1e-14)
    assert descriptor_probabilities(images, present, present) == pytest.approx(np.full((200, 4), 0.5))


def test_views_are_averaged_before_the_logarithm() -> None:
    p = np.array([[0.2, 0.6], [0.9, 0.5], [0.8, 0.4]])
    mean, studies = mean_over_views(p, ["b", "a", "b"])
    assert studies == ["b", "a"]
    assert mean == pytest.approx(np.array([[0.5, 0.5], [0.9, 0.5]]))
    assert finding_scores(mean, [0, 0])[0][0, 0] == pytest.approx(0.5)
    after = np.exp(np.log(p[[0, 2]]).mean())
    assert after < 0.5
    assert mean_over_views(p, range(3))[0] == pytest.approx(p)


def test_the_report_sorts_findings_and_descriptors_and_its_weights_add_up() -> None:
    report = explain(np.array([0.6, 0.9, 0.7]), DESCRIBED)
    assert [one.finding for one in report] == ["cyst", "mass"]
    assert [d.descriptor for d in report[0].descriptors] == ["bright zone behind", "a black sac"]
    for one in report:
        assert sum(d.weight for d in one.descriptors) == pytest.approx(math.log(one.present / one.absent))
        assert one.decision
    assert json.loads(json.dumps(report[1].to_dict()))["descriptors"][0]["probability"] == 0.7
    assert not explain(np.array([0.1, 0.1, 0.7]), DESCRIBED)[1].decision


def test_descriptors_from_the_base_and_from_a_json(tmp_path: Path) -> None:
    (one,) = describe(["breast cyst"])
    assert "margin: circumscribed with a thin wall" in one.descriptors
    assert one.descriptors[-1].endswith("bright zone behind it.")
    (tmp_path / "own.json").write_text(json.dumps({"cyst": ["a black sac", "bright zone"], "mass": ["jagged border."]}))
    own = describe([], knowledge=tmp_path / "own.json")
    assert [len(d.descriptors) for d in own] == [2, 1]
    pairs = prompt_pairs(own)
    assert pairs.present[2] == "There are signs of mass: jagged border."
    assert pairs.owner == (0, 0, 1)
    published = ("There are {descriptor} indicating {finding}", "There are no {descriptor} indicating {finding}")
    assert prompt_pairs(own, published).absent[0] == "There are no a black sac indicating cyst"
    assert len(describe([], modality="OCT")) > 5
    assert len(describe(["drusen"], modality="OCT")) == 1


def test_refusals(tmp_path: Path) -> None:
    for call, expected in (
        (lambda: describe(["drusen"]), "2 findings of modality any"),
        (lambda: describe(["brest cyst"]), "breast cyst"),
        (lambda: describe(["breast cyst", "breast cyst"]), "given twice"),
        (lambda: prompt_pairs(DESCRIBED, ("a {finding}", "no {descriptor}")), "must hold {descriptor}"),
        (lambda: prompt_pairs(DESCRIBED, ("{descriptor}", "{descriptor}")), "must differ"),
        (lambda: prompt_pairs([Described(finding="x", descriptors=())]), "'x' has no descriptors"),
        (lambda: finding_scores(np.array([[0.5, 1.0]]), [0, 0]), "strictly between"),
        (lambda: finding_scores(np.array([[0.5, 0.4]]), [0, 2]), "every finding"),
        (lambda: descriptor_probabilities(unit(2, 4), unit(3, 4), unit(2, 4)), r"present and absent \[K, D\]"),
        (lambda: descriptor_probabilities(unit(2, 4), unit(3, 4), unit(3, 4), temperature=0.0), "positive"),
        (lambda: mean_over_views(np.full((2, 1), 0.5), ["a"]), "as many studies"),
        (lambda: explain(np.array([0.5]), DESCRIBED), "3 descriptors"),
    ):
        with pytest.raises(ValueError, match=expected):
            call()
    (tmp_path / "bare.yaml").write_text("modality: CT\nfindings: [{id: bare, name: bare}]\n")
    with pytest.raises(ValueError, match="neither attributes nor"):
        describe(["bare"], knowledge=tmp_path / "bare.yaml")
    with pytest.raises(ValueError, match="no finding of modality"):
        describe([], knowledge=tmp_path / "bare.yaml")
