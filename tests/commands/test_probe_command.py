"""`clip-med probe`: the optimum of scikit-learn, what chooses C, scores for comparisons, labels, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from clip_med.cli import main
from clip_med.data.shards import ShardSet
from clip_med.models.features import image_features
from clip_med.models.folder import build_model, load_folder, save_folder
from tests.labelled_shards import CLASSES, write_labelled
from tests.tiny_run import TINY
from zero_shot.scores import ClassScores, LabelScores, read_scores

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probe")
    torch.manual_seed(0)
    save_folder(build_model(TINY), root / "model")
    for split in ("train", "val", "test"):
        write_labelled(root / "data" / split, {i: {"group": f"{split}{i}"} for i in range(24)})
    return root


def run(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    command = ["probe", "--data", str(root / "data"), "--model", str(root / "model"), "--device", "cpu", "--json"]
    assert main([*command, *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_is_scikit_learns_probe_and_its_scores_can_be_compared(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(root, capsys, "--C", "10", "--no-val", "--out", str(tmp_path))
    assert (found["C"], found["train"], found["validation"]) == (10, 24, 0)
    scores = read_scores(tmp_path)["data"]
    assert isinstance(scores, ClassScores)
    assert scores.classes == CLASSES
    train, test = (ShardSet.open(root / "data" / split) for split in ("train", "test"))
    encoder = load_folder(root / "model").eval()
    x, y = (image_features(encoder, shards, range(24)).astype(np.float64) for shards in (train, test))
    labels = [CLASSES.index(train.metadata(i).labels[0]) for i in range(24)]
    theirs = LogisticRegression(C=10, class_weight="balanced", tol=1e-10, max_iter=10000).fit(x, labels)
    ours = np.exp(scores.scores - scores.scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True), theirs.predict_proba(y), atol=2e-3)
    assert [r["name"] for r in found["results"]][:1] == ["top-1"]


def test_validation_images_or_folds_choose_and_shots_are_counted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ["--C", "0.1", "1"]
    assert run(root, capsys, *some)["chosen_by"] == "validation"
    assert run(root, capsys, *some, "--no-val")["chosen_by"] == "cross-validation"
    few = run(root, capsys, *some, "--shots", "2", "--seed", "1", "--report", str(root / "p.html"))
    assert "6 training and 6 validation images" in (root / "p.html").read_text()
    assert (few["train"], few["validation"], few["shots"]) == (6, 6, 2)


def test_labels_of_which_images_have_several(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(root, capsys, "--multi-label", "--C", "1", "--classes", *CLASSES, "--out", str(tmp_path))
    names = [result["name"] for result in found["results"]]
    assert names[:3] == ["macro AUROC", "macro AUPRC", "AUROC cyst"]
    assert len(names) == 2 + 2 * 3
    mean = np.mean([result["value"] for result in found["results"][2:5]])
    assert found["results"][0]["value"] == pytest.approx(mean)
    assert all(result["low"] <= result["high"] for result in found["results"])
    scores = read_scores(tmp_path)["data"]
    assert isinstance(scores, LabelScores)
    assert found["results"][2]["value"] == pytest.approx(roc_auc_score(scores.truth[:, 0], scores.scores[:, 0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "5"], "fewer than the 5 shots"),
        (["--classes", "cyst", "tumour"], "class 'tumour' is no label of"),
        (["--multi-label", "--classes", "cyst", "tumour"], "no sample has the label 'tumour'"),
        (["--multi-label", "--shots", "2"], "--multi-label goes without --shots"),
        (["--C", "1", "0.1"], "strengths must ascend"),
        (["--dataset", "none"], "no sample of data set none"),
    ],
)
def test_wrong_input_is_named(root: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe", "--data", str(root / "data"), "--model", str(root / "model"), "--device", "cpu"]
    assert main([*command, *words]) == 2
    assert message in capsys.readouterr().err
