"""Labels of which images have several: areas against scikit-learn, drawn sets as weights, labels with one side only."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.labelled_shards import sample
from zero_shot.multi_label import label_results, label_targets, one_sided
from zero_shot.sorted_scores import SortedScores

LABELS = ("edema", "mass", "never", "always")
METRICS = (roc_auc_score, average_precision_score)


def drawn(seed: int = 0, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and targets of which the last two have one side."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, 4)) < np.array([0.3, 0.6, 0.0, 1.0])
    return np.round(rng.normal(size=(n, 4)) + targets, 1), targets


def test_areas_of_drawn_sets_are_scikit_learns_with_weights() -> None:
    scores, targets = drawn()
    rng = np.random.default_rng(1)
    for k in (0, 1):
        curve = SortedScores(scores[:, k], targets[:, k])
        for weights in (np.ones(80, dtype=np.int64), rng.integers(0, 4, 80), (np.arange(80) < 30).astype(np.int64)):
            theirs = [score(targets[:, k], scores[:, k], sample_weight=weights) for score in METRICS]
            assert curve.areas(weights) == pytest.approx(theirs, abs=1e-12)
        only = targets[:, k].astype(np.int64)
        assert np.isnan(curve.areas(only)).all()
        assert np.isnan(curve.areas(1 - only)).all()


def test_each_label_and_the_means_over_those_with_two_sides() -> None:
    scores, targets = drawn()
    groups = [f"p{row // 2}" for row in range(80)]
    found = {result.name: result for result in label_results(scores, targets, LABELS, groups=groups)}
    assert list(found)[:4] == ["macro AUROC", "macro AUPRC", "AUROC edema", "AUROC mass"]
    for what, score in zip(("AUROC", "AUPRC"), METRICS, strict=True):
        theirs = [score(targets[:, k], scores[:, k]) for k in (0, 1)]
        assert [found[f"{what} {LABELS[k]}"].value for k in (0, 1)] == pytest.approx(theirs, abs=1e-12)
        assert found[f"macro {what}"].value == pytest.approx(np.mean(theirs), abs=1e-12)
        assert found[f"macro {what}"].low < found[f"macro {what}"].value < found[f"macro {what}"].high
        assert all(np.isnan(found[f"{what} {name}"].value) for name in ("never", "always"))
    assert one_sided(targets, LABELS) == {"never": 0, "always": 80}
    alone = label_results(scores[:, 2:], targets[:, 2:], LABELS[2:])
    assert all(np.isnan(result.value) for result in alone)


def test_what_a_sample_does_not_list_is_absent() -> None:
    samples = [sample(0, labels=labels) for labels in (("mass", "other"), (), ("edema", "mass"))]
    assert label_targets(samples, ("edema", "mass")).tolist() == [[False, True], [False, False], [True, True]]
