"""Multi-label zero-shot as a task: scores against NumPy, results against scikit-learn, table, report and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from clip_med.config import ConfigError, validate
from clip_med.data.shards import ShardSet
from clip_med.knowledge.load import load_base
from clip_med.knowledge.prompts import ClassPrompts, KnowledgePrompts
from clip_med.models.features import image_features, text_features
from clip_med.models.folder import build_model
from tests.labelled_shards import CLASS_OF, Answering, write_labelled
from tests.tiny_run import TINY
from zero_shot.config import Ensemble, EvalConfig, MultiLabelTask
from zero_shot.encoded import Encoded
from zero_shot.evaluation import Evaluation
from zero_shot.findings import finding_scores
from zero_shot.prompt_choice import DENIALS, candidates
from zero_shot.prompt_sensitivity import TEMPLATES
from zero_shot.report import write_report
from zero_shot.said import Said
from zero_shot.scores import LabelScores
from zero_shot.scoring import choose_for_tasks, evaluated_sets, score_tasks, validation_sets
from zero_shot.suite import evaluate, evaluator
from zero_shot.table import markdown, plain

pytestmark = pytest.mark.usefixtures("one_thread")

# Image i has a cyst below 12, a mass if i is a multiple of 3, and never a stone.
LABELS = ("cyst", "mass", "stone")
HAS = {
    i: tuple(name for name, there in zip(LABELS, (i < 12, i % 3 == 0, False), strict=True) if there) for i in range(24)
}
PRESENT = ClassPrompts(classes={name: (name, f"a {name}") for name in LABELS}, templates=("Seen: {}.",))
ABSENT = ClassPrompts(classes=PRESENT.classes, templates=("No {}.", "Without {}."))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("findings") / "test", {i: {"labels": own} for i, own in HAS.items()})


def findings(shards: Path, **fields: Any) -> MultiLabelTask:
    given: dict[str, Any] = {"name": "f", "shards": str(shards), "prompts": PRESENT, "absent": ABSENT}
    return MultiLabelTask(**(given | fields))


def run(shards: Path, encoder: Answering, **fields: Any) -> Evaluation:
    return evaluate(encoder, EvalConfig(tasks=(findings(shards, **fields),)))


def half_right() -> Answering:
    """Knows cysts; takes all other images for none of them, and every denial for those."""
    return Answering(lambda i: 0 if CLASS_OF[i] == 0 else 3, lambda text: 0 if "Seen" in text and "cyst" in text else 3)


@pytest.mark.parametrize("ensemble", ["embedding", "max", "probability"])
@pytest.mark.parametrize("score", ["pair", "sigmoid", "softmax"])
def test_scores_and_probabilities_against_numpy(shards: Path, score: str, ensemble: Ensemble) -> None:
    if (score, ensemble) == ("sigmoid", "probability"):
        with pytest.raises(ValueError, match="score sigmoid has none"):
            findings(shards, score=score, ensemble=ensemble, absent=None)
        return
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    encoder.clip.logit_bias = torch.nn.Parameter(torch.tensor(-1.5))
    features = image_features(encoder, ShardSet.open(shards), range(24))
    # As many prompts of absence, so that each has its partner.
    absent = ClassPrompts(classes=PRESENT.classes, templates=("No {}.",)) if score == "pair" else None
    scores, shares = finding_scores(encoder, findings(shards, score=score, ensemble=ensemble, absent=absent), features)
    x, scale = features.astype(np.float64), float(encoder.logit_scale.detach().exp())

    def cosines(template: str) -> np.ndarray:
        """[N, K] or, of the ensemble `probability`, [N, K, prompts]."""
        texts = [template.format(name) for label in LABELS for name in (label, f"a {label}")]
        rows = text_features(encoder, texts).astype(np.float64).reshape(3, 2, -1)
        if ensemble == "embedding":
            mean = rows.mean(axis=1)
            return x @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T
        each = np.einsum("nd,kpd->nkp", x, rows)
        return each.max(axis=2) if ensemble == "max" else each

    there = scale * cosines("Seen: {}.")
    if score == "pair":
        # The softmax over the two is the sigmoid of their difference.
        both = np.exp(np.stack([there, scale * cosines("No {}.")]))
        expected = both[0] / both.sum(axis=0)
    elif score == "sigmoid":
        expected = 1 / (1 + np.exp(1.5 - there))
    else:
        expected = np.exp(there) / np.exp(there).sum(axis=1, keepdims=True)
    if ensemble == "probability":
        expected = expected.mean(axis=2)
    # Other batches of texts are rounded otherwise in single precision.
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    for k in range(3):
        assert (np.diff(shares[np.argsort(scores[:, k]), k]) >= 0).all()


def test_results_are_scikit_learns_and_left_out_findings_are_named(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    done = evaluate(encoder, EvalConfig(tasks=(findings(shards, metric="macro AUPRC"),)))
    report, scored = done.tasks[0], done.findings["f"]
    truth = np.array([[name in HAS[i] for name in LABELS] for i in range(24)])
    assert (scored.targets == truth).all()
    values = {result.name: result.value for result in report.results}
    areas = [roc_auc_score(truth[:, k], scored.scores[:, k]) for k in (0, 1)]
    precisions = [average_precision_score(truth[:, k], scored.scores[:, k]) for k in (0, 1)]
    assert [values[f"AUROC {name}"] for name in LABELS[:2]] == pytest.approx(areas)
    assert values["macro AUROC"] == pytest.approx(np.mean(areas))
    assert report.results[0].name == "macro AUPRC"
    assert report.results[0].value == pytest.approx(np.mean(precisions))
    assert (report.positives, report.left_out, done.mean_top1) == ((12, 8, 0), {"stone": 0}, None)
    written = done.scores()["f"]
    assert isinstance(written, LabelScores)
    assert (written.keys[3], written.classes) == ("k03", LABELS)
    assert roc_auc_score(written.truth[:, 1], written.scores[:, 1]) == pytest.approx(areas[1])
    document = json.loads(json.dumps(done.to_dict(), allow_nan=False))["tasks"][0]
    assert document["left_out"] == {"stone": 0}
    assert document["absent"]["cyst"] == ["No cyst.", "No a cyst.", "Without cyst.", "Without a cyst."]
    text = plain(done)
    assert "Zero-shot findings" in text
    assert "2 of 3" in text
    assert text.count(" *") == 1
    assert "Left out of the means, since all images have them or none has: stone (0 of 24 images)." in text
    assert "| stone | 0 | undefined | undefined |" in markdown(done)
    write_report(tmp_path / "r.html", title="t", metrics=[], evaluation=done)
    page = (tmp_path / "r.html").read_text()
    # Two bars each of two findings, a key of all three, and two plots with two curves each.
    assert page.count("<svg") == 2 * 2 + 3 + 2
    assert page.count("<polyline") == 4
    assert page.count("<img") == 4
    assert "18 prompts of 3 findings, ensemble embedding" in page
    assert "cyst: not there" in page
    assert "stone (0 of 24 images)" in page


def test_the_surest_mistakes_are_the_extremes_of_each_side(shards: Path, tmp_path: Path) -> None:
    done = run(shards, half_right())
    values = {result.name: result.value for result in done.tasks[0].results}
    assert (values["AUROC cyst"], values["AUROC mass"], values["macro AUROC"]) == (1.0, 0.5, 0.75)
    write_report(tmp_path / "r.html", title="t", metrics=[], evaluation=done, images=False)
    page = (tmp_path / "r.html").read_text()
    assert "<img" not in page
    # Of equal scores the first: k12 is the first without a cyst, k00 the first with one, and so of masses k01 and k00.
    assert [page.count(key) for key in ("k12", "k00", "k01")] == [1, 2, 1]


def test_presence_and_absence_come_from_the_knowledge_base(shards: Path) -> None:
    known = [load_base().findings[name] for name in ("kidney_cyst", "kidney_tumour", "kidney_stone")]
    heard: list[str] = []
    classes = {name: (finding.id,) for name, finding in zip(LABELS, known, strict=True)}
    prompts = ClassPrompts(classes=classes, knowledge=KnowledgePrompts(facets=("positive",)))

    def listening(text: str) -> int:
        heard.append(text)
        return 0 if text in known[0].positive else 3

    encoder = Answering(lambda i: 0 if CLASS_OF[i] == 0 else 3, listening)
    done = run(shards, encoder, prompts=prompts, absent=None)
    assert set(heard) == {text for finding in known for text in (*finding.positive, *finding.negative)}
    assert dict(done.tasks[0].absent) == {name: f.negative for name, f in zip(LABELS, known, strict=True)}
    assert next(r.value for r in done.tasks[0].results if r.name == "AUROC cyst") == 1.0


def test_prompts_are_chosen_on_validation_images_by_macro_auroc(shards: Path, tmp_path: Path) -> None:
    """A model that hears one wording only, and its denial; the scores of the test are those of that wording."""

    def heard(text: str) -> int:
        return 0 if text == "This image shows cyst." else 1 if text == "This image does not show cyst." else 3

    cysts = Answering(lambda i: 0 if CLASS_OF[i] == 0 else 1, heard)
    marked = {i: {"key": f"v{i:02d}", "labels": own} for i, own in HAS.items()}
    val = write_labelled(tmp_path / "val", marked)
    config = EvalConfig(tasks=(findings(shards),))
    validation = validation_sets(config, [str(val)])
    said = Said(Encoded(cysts), config)
    choice = choose_for_tasks(said, validation)["f"]
    # Cysts are told from others, masses by chance, and of stones there is nothing to tell.
    assert (choice.taken.name, choice.values["This image shows {}."]) == ("This image shows {}.", 0.75)
    assert choice.values["as configured"] == 0.5
    assert list(choice.values) == [one.name for one in candidates(config.tasks[0])]  # type: ignore[arg-type]
    assert len(choice.values) == 9
    assert choice.to_dict()["absent_templates"] == ["This image does not show {}."]
    assert (choice.n, choice.measure, choice.shards, choice.left_out) == (24, "macro AUROC", str(val), {"stone": 0})
    images = evaluated_sets(config, validation)
    plain, best = score_tasks(said, images)["f"], score_tasks(said, images, chosen={"f": choice})["f"]
    assert isinstance(plain, LabelScores)
    assert isinstance(best, LabelScores)
    assert best.keys[0] == "k00"
    areas = [roc_auc_score(own.truth[:, 0], own.scores[:, 0]) for own in (plain, best)]
    assert areas == [0.5, 1.0]
    # Where all do the same, the first: what is configured.
    deaf = Said(Encoded(Answering(lambda _: 0, lambda _: 3)), config)
    assert choose_for_tasks(deaf, validation)["f"].taken.name == "as configured"
    with pytest.raises(ValueError, match="24 images are in validation and test data, the first: k00"):
        evaluated_sets(config, validation_sets(config, [str(shutil.copytree(shards, tmp_path / "same"))]))
    with pytest.raises(ValueError, match=r"task f: prompts cannot be chosen on .*the data of the test"):
        validation_sets(config, [str(shards)])


@pytest.mark.parametrize("fields", [{}, {"score": "sigmoid", "absent": None}, {"score": "softmax", "absent": None}])
def test_each_candidate_is_a_task_of_the_same_score_and_findings(shards: Path, fields: dict[str, Any]) -> None:
    task = findings(shards, **fields)
    tried = candidates(task)
    assert [one.task.ensemble for one in tried] == ["embedding"] * 8 + ["max"]
    assert tried[0].task == task
    for told, denied, one in zip(TEMPLATES, DENIALS, tried[1:7], strict=True):
        assert isinstance(one.task, MultiLabelTask)
        assert (one.task.score, one.name) == (task.score, told)
        assert one.task.present_texts()["cyst"] == (told.format("cyst"), told.format("a cyst"))
        if one.task.score == "pair":
            assert one.task.absent_texts()["cyst"] == (denied.format("cyst"), denied.format("a cyst"))
    weighted = KnowledgePrompts(facets=("attributes",), attribute_weights={"shape": 0.25})
    prompts = ClassPrompts(classes={"cyst": ("kidney_cyst",)}, knowledge=weighted)
    tried = candidates(findings(shards, prompts=prompts, absent=None))
    # Prompts with weights have no best one.
    assert {one.task.ensemble for one in tried} == {"embedding"}


def test_properties_of_presence_and_of_absence_have_weights(shards: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    features = image_features(encoder, ShardSet.open(shards), range(24))
    chosen = KnowledgePrompts(facets=("attributes",), attribute_weights={"shape": 0.25}, most=3)
    told = [ClassPrompts(classes={"cyst": (name,)}, knowledge=chosen) for name in ("kidney_cyst", "kidney_tumour")]
    task = findings(shards, prompts=told[0], absent=told[1])
    weights = task.weights()
    assert weights is not None
    assert 0.25 in weights[0]
    expected = np.zeros(24)
    for sign, texts, own in zip((1, -1), (task.present_texts(), task.absent_texts()), weights, strict=True):
        mean = np.average(text_features(encoder, texts["cyst"]).astype(np.float64), axis=0, weights=own)
        expected += sign * float(encoder.logit_scale.detach().exp()) * (features @ mean) / np.linalg.norm(mean)
    assert finding_scores(encoder, task, features)[0][:, 0] == pytest.approx(expected, abs=1e-4)
    plain_absence = findings(shards, prompts=told[0], absent=ClassPrompts(classes={"cyst": ("cyst", "sac")}))
    assert plain_absence.weights() == (weights[0], (1.0, 1.0))
    with pytest.raises(ValueError, match="ensemble max has no weights of prompts"):
        findings(shards, prompts=ClassPrompts(classes={"cyst": ("cyst",)}), absent=told[1], ensemble="max")


def test_digests_follow_prompts_and_labels_and_the_trainer_gets_every_finding(shards: Path, tmp_path: Path) -> None:
    other = write_labelled(tmp_path / "other", {**{i: {"labels": own} for i, own in HAS.items()}, 1: {"labels": ()}})
    first, second, third = (
        run(place, half_right(), **fields).tasks[0]
        for place, fields in ((shards, {}), (shards, {"absent": PRESENT}), (other, {}))
    )
    assert (second.prompts_sha256 == first.prompts_sha256, second.split_sha256 == first.split_sha256) == (False, True)
    assert (third.prompts_sha256 == first.prompts_sha256, third.split_sha256 == first.split_sha256) == (True, False)
    flat = evaluator(EvalConfig(tasks=(findings(shards),)))(half_right())
    assert [result.name for result in flat][:3] == ["f/macro AUROC", "f/macro AUPRC", "f/AUROC cyst"]


def test_nothing_to_tell_apart_is_refused_before_any_image_is_read(shards: Path) -> None:
    encoder = half_right()
    with pytest.raises(ValueError, match=r"task f: of 24 samples all or none have each of the labels \['stone'\]"):
        run(shards, encoder, prompts=ClassPrompts(classes={"stone": ("stone",)}), absent=None, score="sigmoid")
    assert encoder.images == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"absent": None}, "absent: score pair needs what says that each finding is not there"),
        ({"score": "sigmoid"}, "absent: score sigmoid does not use it"),
        ({"absent": ClassPrompts(classes={"cyst": ("cyst",)})}, "absent.classes must be those of prompts, in order"),
        ({"ensemble": "probability"}, "as many prompts for absence as for presence, got 4 and 2 of 'cyst'"),
        (
            {"score": "softmax", "absent": None, "prompts": ClassPrompts(classes={"cyst": ("cyst",)})},
            "score softmax needs more findings",
        ),
        (
            {"prompts": ClassPrompts(classes={"cyst": ("kidney_cyst",)}, knowledge=KnowledgePrompts(absent=("cyst",)))},
            "prompts.knowledge.absent is for classification",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(shards: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        findings(shards, **fields)


def test_an_unknown_finding_is_named_as_the_configuration_is_read() -> None:
    prompts = {"classes": {"edemma": ["edemma"]}, "knowledge": {"facets": ["positive"], "modality": "X-ray"}}
    task = {"kind": "multi_label", "name": "f", "shards": "s", "prompts": prompts}
    with pytest.raises(ConfigError, match=r"class 'edemma': neither the label nor a name in \['edemma'\]"):
        validate(EvalConfig, {"tasks": [task]})
