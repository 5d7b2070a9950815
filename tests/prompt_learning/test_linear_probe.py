"""The probe: what chooses C, folds that keep patients whole, standardisation, and the probe as a few-shot method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clip_med.models.folder import build_model
from clip_med.prompt_learning.linear_probe import LinearProbe, LinearProbeConfig, fit_probe, spread_folds
from clip_med.prompt_learning.logistic import logistic_path
from clip_med.prompt_learning.method import ClassTexts, Support
from tests.prompt_learning.test_logistic import samples
from tests.tiny_run import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = LinearProbeConfig(strengths=(0.01, 1.0, 100.0), balanced=False)


def test_validation_chooses_the_c_that_serves_it_best() -> None:
    (x, y), (held, truth) = samples(120), samples(400, seed=0)
    probe = fit_probe(x, y, CONFIG, classes=4, validation=(held, truth))
    right = [
        float(((held @ fit.weight.T + fit.bias).argmax(1) == truth).double().mean())
        for fit in logistic_path(x, y, CONFIG.strengths, classes=4)
    ]
    assert probe.chosen_by == "validation"
    assert CONFIG.strengths[int(np.argmax(right))] == probe.C
    assert float((probe.logits(held).argmax(1) == truth).double().mean()) == max(right)
    assert len(set(right)) > 1


def test_without_validation_folds_choose_and_single_images_leave_it_to_the_configuration() -> None:
    x, y = samples(120)
    assert fit_probe(x, y, CONFIG, classes=4).chosen_by == "cross-validation"
    probe = fit_probe(x[:4], torch.arange(4), replace(CONFIG, C=3.0), classes=4)
    assert (probe.chosen_by, probe.C) == ("config", 3.0)
    one_patient = fit_probe(x, y, CONFIG, classes=4, groups=["p"] * 120)
    assert one_patient.chosen_by == "config"


def test_folds_keep_groups_whole_and_classes_spread() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 200)
    columns = np.eye(3, dtype=bool)[rng.choice(3, 200, p=[0.7, 0.2, 0.1])]
    fold = spread_folds(columns, groups.tolist(), 5, seed=1)
    assert fold is not None
    assert set(fold.tolist()) == set(range(5))
    for group in np.unique(groups):
        assert len(set(fold[groups == group].tolist())) == 1
    counts = np.array([columns[fold == number].sum(axis=0) for number in range(5)])
    assert (counts > 0).all()
    assert np.ptp(counts.sum(axis=1)) <= 10
    other = spread_folds(columns, groups.tolist(), 5, seed=2)
    assert other is not None
    assert not np.array_equal(fold, other)


def test_labels_have_a_probe_each() -> None:
    x, y = samples(200)
    labels = torch.stack([y < 2, y == 3], dim=1)
    probe = fit_probe(x, labels, replace(CONFIG, balanced=True), classes=2)
    assert probe.logits(x).shape == (200, 2)
    assert float(((probe.logits(x) > 0) == labels).double().mean()) > 0.7


def test_standardised_features_are_those_of_scikit_learn() -> None:
    x, y = samples()
    config = LinearProbeConfig(strengths=(10.0,), standardize=True, balanced=False, tolerance=1e-9)
    probe = fit_probe(x, y, config, classes=4, validation=(x, y))
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=10.0, tol=1e-9, max_iter=20_000)).fit(x, y)
    np.testing.assert_allclose(probe.logits(x).softmax(1), oracle.predict_proba(x), atol=1e-4)


def test_the_method_is_zero_shot_before_it_learns_and_selects_on_validation() -> None:
    torch.manual_seed(0)
    x, y = samples(60)
    texts = ClassTexts(names=("a", "b", "c", "d"), scale=50.0, templates=x[:4].float())
    method = LinearProbe(CONFIG, build_model(TINY), texts)
    torch.testing.assert_close(method.predict(x.float()), texts.zero_shot(x.float()), rtol=0, atol=1e-4)
    assert not [p for p in method.parameters() if p.requires_grad]
    support = Support(features=torch.stack([x.float(), x.float().flip(0)]), labels=y)
    with pytest.raises(AssertionError):
        method.select(support)
    method.prepare(Support(features=x.float()[None], labels=y))
    (fit,) = logistic_path(x, y, [1.0], classes=4)
    torch.testing.assert_close(method.probe.weight, fit.weight, rtol=0, atol=1e-3)
    method.select(Support(features=x.float()[None], labels=y))
    assert method.probe.chosen_by == "validation"


def test_a_path_that_does_not_ascend_is_refused() -> None:
    with pytest.raises(ValueError, match="strengths must ascend"):
        LinearProbeConfig(strengths=(1.0, 0.1))
