"""Zero-shot classification and retrieval on made features, against brute force and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from zero_shot.classify import class_scores, classification_results
from zero_shot.config import Ensemble

ENSEMBLES: tuple[Ensemble, ...] = ("embedding", "embedding_no_renorm", "logit", "probability", "max")


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    rows = rng.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_one_prompt_makes_all_ensembles_alike_and_duplicates_change_nothing() -> None:
    rng = np.random.default_rng(0)
    images, prompts = unit(rng, 40, 8), unit(rng, 3, 1, 8)
    order = {mode: class_scores(images, list(prompts), scale=5.0, ensemble=mode).argsort(axis=1) for mode in ENSEMBLES}
    for mode in ENSEMBLES:
        np.testing.assert_array_equal(order[mode], order["embedding"], err_msg=mode)
        several = unit(rng, 3, 4, 8)
        doubled = [np.concatenate([rows, rows]) for rows in several]
        once, twice = (class_scores(images, rows, ensemble=mode) for rows in (list(several), doubled))
        np.testing.assert_allclose(once, twice, rtol=0, atol=1e-12, err_msg=mode)
    with pytest.raises(ValueError, match="at least one prompt"):
        class_scores(images, [prompts[0], prompts[1][:0]])
    with pytest.raises(ValueError, match="equally many"):
        class_scores(images, [prompts[0], unit(rng, 2, 8)], ensemble="probability")


def test_ensembles_by_hand() -> None:
    image = np.array([[1.0, 0.0]])
    prompts = [np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.6, 0.8], [0.6, 0.8]])]
    expected = {"embedding": [0.5**0.5, 0.6], "embedding_no_renorm": [0.5, 0.6], "logit": [0.5, 0.6], "max": [1.0, 0.6]}
    for mode in ENSEMBLES[:3] + ENSEMBLES[4:]:
        got = class_scores(image, prompts, scale=1.0, ensemble=mode)
        np.testing.assert_allclose(got[0], expected[mode], rtol=0, atol=1e-12, err_msg=mode)
    first, second = np.exp([1.0, 0.6]), np.exp([0.0, 0.6])
    by_probability = (first / first.sum() + second / second.sum()) / 2
    got = class_scores(image, prompts, scale=1.0, ensemble="probability")
    np.testing.assert_allclose(got[0], by_probability, rtol=0, atol=1e-12)


def test_classification_results() -> None:
    rng = np.random.default_rng(0)
    prompts = unit(rng, 3, 2, 16)
    labels = rng.integers(0, 3, 120)
    images = prompts[labels, 0] + 0.5 * unit(rng, 120, 16)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    scores = class_scores(images, list(prompts))
    results = classification_results(scores, labels, groups=(np.arange(120) // 2).tolist())
    predicted = scores.argmax(axis=1)
    expected = {
        "top-1": sk.accuracy_score(labels, predicted),
        "balanced accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro F1": sk.f1_score(labels, predicted, average="macro"),
        "macro AUROC": np.mean([sk.roc_auc_score(labels == c, scores[:, c]) for c in range(3)]),
    }
    assert [r.name for r in results] == list(expected)
    for result in results:
        assert result.value == pytest.approx(expected[result.name], abs=1e-12)
        assert 1 / 3 < result.low < result.value < result.high < 1
        assert result.n == 120
    with pytest.raises(ValueError, match="no images"):
        classification_results(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))


def test_more_than_five_classes_have_a_top_5() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(60, 7)), rng.integers(0, 7, 60)
    found = {result.name: result.value for result in classification_results(scores, labels)}
    assert found["top-5"] == pytest.approx(sk.top_k_accuracy_score(labels, scores, k=5), abs=1e-12)
    binary = np.round(rng.normal(size=(60, 2)), 1)
    found = {result.name: result for result in classification_results(binary, labels % 2, positive=0)}
    # By the difference of the scores: what is common to both says nothing of either class.
    theirs = sk.roc_auc_score(labels % 2 == 0, binary[:, 0] - binary[:, 1])
    assert found["AUROC"].value == pytest.approx(theirs, abs=1e-12)
    assert found["AUROC"].low < theirs < found["AUROC"].high
    with pytest.raises(ValueError, match="of two classes; got 1 of 7"):
        classification_results(scores, labels, positive=1)
