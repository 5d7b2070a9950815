"""Whole evaluations: against a NumPy reference, on encoders that know everything or nothing, and their refusals."""

from __future__ import annotations

import dataclasses
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip_med.config import ConfigError, validate
from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import ClassPrompts
from clip_med.models.folder import build_model, load_folder
from clip_med.pretrain import pretrain
from clip_med.training.metrics_log import read_metrics
from tests.labelled_shards import CLASS_OF, CLASSES, Answering, class_in, constant, perfect, write_labelled
from tests.tiny_run import TINY, tiny_config, write_shards
from zero_shot.config import ClassificationTask, EvalConfig, MultiLabelTask, RetrievalTask
from zero_shot.evaluation import TaskReport
from zero_shot.suite import evaluate, evaluator
from zero_shot.table import plain

PROMPTS = ClassPrompts(classes={name: (name, f"one {name}") for name in CLASSES}, templates=("{}", "An image of {}."))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "test")


def classification(shards: Path, name: str = "findings", **fields: Any) -> ClassificationTask:
    return ClassificationTask(name=name, shards=str(shards), **({"prompts": PROMPTS} | fields))


def values(report: TaskReport) -> dict[str, float]:
    return {result.name: result.value for result in report.results}


def test_a_real_encoder_against_ten_lines_of_numpy(shards: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    done = evaluate(encoder, EvalConfig(tasks=(classification(shards), RetrievalTask(name="r", shards=str(shards)))))
    data = [ShardSet.open(shards).read(i) for i in range(24)]
    pixels = np.stack([np.asarray(Image.open(BytesIO(sample.image)).convert("RGB")) for sample in data])
    mean, std = (np.array(value) for value in (encoder.preprocess.mean, encoder.preprocess.std))
    images = torch.tensor(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    captions = [text.format(name) for name in CLASSES for text in ("A {}.", "Seen here: {}.")]
    prompts = [
        text.format(name) for name in CLASSES for text in ("{}", "one {}", "An image of {}.", "An image of one {}.")
    ]

    def texts(lines: list[str]) -> np.ndarray:
        return encoder.clip.encode_text(encoder.tokenizer(lines), normalize=True).double().numpy()

    with torch.no_grad():
        x = encoder.clip.encode_image(images, normalize=True).double().numpy()
        y, p = texts(captions), texts(prompts).reshape(3, 4, 16).mean(axis=1)
    answer = (x @ (p / np.linalg.norm(p, axis=1, keepdims=True)).T).argmax(axis=1)
    truth = np.array(CLASS_OF)
    ranks = {
        "image to text": (np.argsort(np.argsort(-x @ y.T)), [[2 * c, 2 * c + 1] for c in CLASS_OF]),
        "text to image": (np.argsort(np.argsort(-y @ x.T)), [np.flatnonzero(truth == m // 2) for m in range(6)]),
    }
    found, retrieved = values(done.tasks[0]), values(done.tasks[1])
    assert found["top-1"] == pytest.approx((answer == truth).mean(), abs=1e-12)
    recalls = [(answer[truth == c] == c).mean() for c in range(3)]
    assert found["balanced accuracy"] == pytest.approx(np.mean(recalls), abs=1e-12)
    for direction, (rank, belongs) in ranks.items():
        for k in (1, 5, 10):
            expected = np.mean([rank[query, list(items)].min() < k for query, items in enumerate(belongs)])
            assert retrieved[f"{direction} R@{k}"] == pytest.approx(expected, abs=1e-12)
    confusion = [[int(((truth == a) & (answer == b)).sum()) for b in range(3)] for a in range(3)]
    assert [list(row) for row in done.tasks[0].confusion] == confusion


def test_who_knows_everything_scores_one_and_who_says_the_same_scores_chance(shards: Path) -> None:
    config = EvalConfig(tasks=(classification(shards), RetrievalTask(name="r", shards=str(shards), ks=(1, 3))))
    done = evaluate(perfect(), config)
    assert {r.value for task in done.tasks for r in task.results} == {1.0}
    assert {r.low for task in done.tasks for r in task.results} == {1.0}
    assert done.tasks[0].confusion == ((12, 0, 0), (0, 8, 0), (0, 0, 4))
    assert (done.tasks[0].n, done.tasks[0].chance, done.tasks[0].majority) == (24, 1 / 3, 0.5)
    assert done.tasks[1].n == 24
    assert (done.tasks[1].chance, done.tasks[1].confusion, done.tasks[1].classes) == (None, (), ())
    # 24 image queries, and six captions although there are 48: two recalls, median rank and mAP each.
    assert [r.n for r in done.tasks[1].results] == [24] * 4 + [6] * 4
    done = evaluate(constant(), config)
    assert values(done.tasks[0])["top-1"] == pytest.approx(1 / 3)
    assert done.tasks[0].majority == 0.5
    assert values(done.tasks[0])["macro AUROC"] == 0.5
    retrieved = values(done.tasks[1])
    assert retrieved["image to text R@1"] == pytest.approx(1 / 3)
    # 1 - C(4, 3) / C(6, 3): two of six captions belong to each image.
    assert retrieved["image to text R@3"] == pytest.approx(0.8)
    assert retrieved["text to image R@1"] == pytest.approx(1 / 3)
    # Right and wrong are what the answer says, four of each at most.
    wrong = evaluate(Answering(lambda i: min(CLASS_OF[i], 1), class_in), config).tasks[0]
    assert wrong.confusion == ((12, 0, 0), (0, 8, 0), (0, 4, 0))
    assert [example.right for example in wrong.examples] == [True] * 4 + [False] * 4
    assert {(e.truth, e.answers[0].text) for e in wrong.examples if not e.right} == {("normal", "mass")}
    assert [e.key for e in wrong.examples] == ["k00", "k05", "k10", "k15", "k20", "k21", "k22", "k23"]
    assert values(wrong)["top-1"] == pytest.approx(20 / 24)
    assert values(wrong)["balanced accuracy"] == pytest.approx(2 / 3)


def test_examples_rank_three_answers_and_recalls_average_to_the_balanced_accuracy(shards: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    config = EvalConfig(tasks=(classification(shards), RetrievalTask(name="r", shards=str(shards))))
    done = evaluate(encoder, config)
    first, second = done.tasks
    assert [(r.name, r.n) for r in first.recalls] == list(zip(CLASSES, (12, 8, 4), strict=True))
    assert np.mean([r.value for r in first.recalls]) == pytest.approx(values(first)["balanced accuracy"], abs=1e-12)
    data = ShardSet.open(shards)
    with torch.no_grad():
        for example in second.examples:
            pixels = np.asarray(Image.open(BytesIO(data.read(example.index).image)).convert("RGB"))
            image = encoder.encode_image(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))
            texts = [text.format(name) for name in CLASSES for text in ("A {}.", "Seen here: {}.")]
            cosines = (image @ encoder.encode_text(encoder.tokenize(texts)).T)[0].numpy()
            assert [a.score for a in example.answers] == pytest.approx(np.sort(cosines)[:-4:-1], abs=1e-5)
            for answer in example.answers:
                assert answer.score == pytest.approx(cosines[texts.index(answer.text)], abs=1e-5)
    for example in first.examples:
        assert {a.text for a in example.answers} == set(CLASSES)
        assert sum(a.score for a in example.answers) == pytest.approx(1.0)
        assert [a.score for a in example.answers] == sorted((a.score for a in example.answers), reverse=True)
        assert example.right == (example.answers[0].text == example.truth)
        assert [a.right for a in example.answers] == [a.text == example.truth for a in example.answers]
    for example in second.examples:
        assert [a.right for a in example.answers] == [example.truth.rstrip(".")[2:] in a.text for a in example.answers]
    # Six texts, of which four are shown, each with the five images that are closest.
    assert [one.text for one in second.searches] == ["A cyst.", "Seen here: cyst.", "Seen here: mass.", "A normal."]
    for one in second.searches:
        assert [f.score for f in one.found] == sorted((f.score for f in one.found), reverse=True)
        assert len(one.found) == 5
        places = [place for place, found in enumerate(one.found, start=1) if found.right]
        assert one.rank == places[0] if places else one.rank > 5
        for found in one.found:
            sample = data.metadata(found.index)
            assert (found.key, found.right) == (sample.key, one.text in sample.captions)
    scored = done.scored["findings"]
    assert scored.truth.tolist() == list(CLASS_OF)
    assert scored.shares.sum(axis=1) == pytest.approx(np.ones(24))
    assert (scored.shares.argmax(axis=1) == scored.scores.argmax(axis=1)).all()
    assert "scored" not in done.to_dict()


def test_batch_size_workers_and_order_of_tasks_change_nothing(shards: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY)
    tasks = (
        classification(shards, "odd", datasets=("odd",)),
        classification(shards, "all"),
        RetrievalTask(name="MRI", shards=str(shards), modalities=("MRI",)),
    )
    first = evaluate(encoder, EvalConfig(tasks=tasks))
    assert encoder.training
    for changed in (EvalConfig(tasks=tasks[::-1], batch_size=5), EvalConfig(tasks=tasks, batch_size=7, workers=1)):
        again = evaluate(encoder, changed)
        by_name = {task.name: task for task in again.tasks}
        assert [task.name for task in again.tasks] == [task.name for task in changed.tasks]
        for task in first.tasks:
            assert by_name[task.name].confusion == task.confusion
            for one, other in zip(task.results, by_name[task.name].results, strict=True):
                assert one.to_dict() == pytest.approx(other.to_dict(), abs=1e-6)
        assert first.mean_top1 is not None
        assert again.mean_top1 is not None
        assert first.mean_top1.to_dict() == pytest.approx(again.mean_top1.to_dict(), abs=1e-6)
    assert evaluate(encoder, EvalConfig(tasks=tasks, seed=1)).tasks != first.tasks
    # The mean's interval is drawn over tasks in turn: on a half-right encoder, the same in either order.
    half = Answering(lambda i: CLASS_OF[i] if i % 5 < 3 else 0, class_in)
    pairs = [(EvalConfig(tasks=tasks[:2], seed=s), EvalConfig(tasks=tasks[1::-1], seed=s)) for s in range(4)]
    for forward, backward in pairs:
        assert evaluate(half, forward).mean_top1 == evaluate(half, backward).mean_top1


def test_every_image_is_encoded_once_without_gradient(shards: Path) -> None:
    encoder = perfect()
    encoder.train()
    seen: list[tuple[str, int, int]] = []
    tasks = (
        classification(shards, "odd", datasets=("odd",)),
        classification(shards, "all"),
        RetrievalTask(name="again", shards=str(shards)),
        classification(shards.parent / "." / "test", "MRI", modalities=("MRI",)),
    )
    done = evaluate(encoder, EvalConfig(tasks=tasks, batch_size=10), on_progress=lambda *step: seen.append(step))
    assert sorted(encoder.images) == list(range(24))
    assert [task.n for task in done.tasks] == [12, 24, 24, 12]
    assert {r.value for task in done.tasks for r in task.results} == {1.0}
    assert seen == [("odd", 10, 12), ("odd", 12, 12), ("all", 10, 12), ("all", 12, 12)]
    assert not any(encoder.modes)
    assert encoder.training
    assert done.mean_top1 is not None
    assert (done.mean_top1.value, done.mean_top1.n) == (1.0, 48)
    assert evaluate(encoder, EvalConfig(tasks=(tasks[2],))).mean_top1 is None


def test_another_evaluation_of_the_same_images_encodes_none(shards: Path, tmp_path: Path) -> None:
    cache, encoder, steps = tmp_path / "features", perfect(), []
    retrieval = RetrievalTask(name="all", shards=str(shards))
    labels = MultiLabelTask(name="labels", shards=str(shards), prompts=PROMPTS, score="sigmoid")
    tasks = (labels, classification(shards, "odd", datasets=("odd",)), classification(shards), retrieval)
    first = evaluate(encoder, EvalConfig(tasks=tasks), cache=cache)
    assert sorted(encoder.images) == list(range(24))
    assert first.to_dict() == evaluate(perfect(), EvalConfig(tasks=tasks)).to_dict()
    encoder.images.clear()
    words = ClassPrompts(classes={"cyst": ("mass",), "mass": ("cyst",), "normal": ("normal",)})
    other = (
        classification(shards, "odd", datasets=("odd",), prompts=words),
        classification(shards, prompts=words, ensemble="max"),
    )
    config = EvalConfig(tasks=(dataclasses.replace(labels, score="softmax"), *other, retrieval), seed=1, batch_size=7)
    second = evaluate(encoder, config, cache=cache, on_progress=lambda *step: steps.append(step))
    assert (encoder.images, steps) == ([], [])
    # Two of three classes are now called by each other's name.
    assert values(second.tasks[2])["top-1"] == pytest.approx(4 / 24)
    assert second.to_dict() == evaluate(perfect(), config).to_dict()
    # The same keys with another label are other data.
    elsewhere = write_labelled(tmp_path / "other", {3: {"labels": ("mass",)}})
    evaluate(encoder, EvalConfig(tasks=(classification(elsewhere),)), cache=cache)
    assert sorted(encoder.images) == list(range(24))


@pytest.mark.parametrize(("labels", "count"), [((), 0), (("other",), 0), (("cyst", "mass"), 2)])
def test_a_sample_without_exactly_one_class_is_named_before_any_image_is_read(
    tmp_path: Path, labels: tuple[str, ...], count: int
) -> None:
    good, bad = write_labelled(tmp_path / "good"), write_labelled(tmp_path / "bad", {5: {"labels": labels}})
    encoder = perfect()
    config = EvalConfig(tasks=(classification(good), classification(bad, "second")))
    with pytest.raises(ValueError, match=rf"task second: sample k05 has {count} of the 3 classes.*exactly one"):
        evaluate(encoder, config)
    assert encoder.images == []


def test_tasks_without_samples_and_shards_are_named(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"task findings: no sample of .*test has dataset in \['odd'\] and .*'MRI'"):
        evaluate(perfect(), EvalConfig(tasks=(classification(shards, datasets=("odd",), modalities=("MRI",)),)))
    with pytest.raises(ValueError, match="nothing: no such directory"):
        evaluate(perfect(), EvalConfig(tasks=(classification(shards.parent / "nothing"),)))


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_samples_are_named(tmp_path: Path, workers: int) -> None:
    shards = write_labelled(tmp_path / "a", {5: {"image": b"no image"}})
    with pytest.raises(ValueError, match=r"000000\.tar: k05\.png"):
        evaluate(perfect(), EvalConfig(tasks=(classification(shards),), workers=workers))


def test_features_that_are_not_finite_are_named(shards: Path) -> None:
    class Broken(Answering):
        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            features = super().encode_image(images)
            features[3] = float("nan")
            return features

    class BrokenText(Answering):
        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().encode_text(tokens) * float("nan")

    config = EvalConfig(tasks=(RetrievalTask(name="r", shards=str(shards)),))
    with pytest.raises(ValueError, match=r"000000\.tar: k03: the image feature is not finite"):
        evaluate(Broken(CLASS_OF.__getitem__, class_in), config)
    with pytest.raises(ValueError, match=r"text feature of 'A cyst\.' is not finite"):
        evaluate(BrokenText(CLASS_OF.__getitem__, class_in), config)


def test_json_has_no_nan(tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "a", {i: {"labels": ("cyst",)} for i in range(24)})
    done = evaluate(perfect(), EvalConfig(tasks=(classification(shards),)))
    assert np.isnan(values(done.tasks[0])["macro AUROC"])
    text = json.dumps(done.to_dict(), allow_nan=False)
    auroc = json.loads(text)["tasks"][0]["results"][3]
    assert auroc == {"name": "macro AUROC", "value": None, "low": None, "high": None, "n": 24, "unit": "fraction"}


def test_captions_that_differ_in_case_and_space_count_as_one(tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "a", {3: {"captions": ("a  CYST.",)}})
    done = evaluate(perfect(), EvalConfig(tasks=(RetrievalTask(name="r", shards=str(shards), ks=(1,)),)))
    assert {r.name: r.n for r in done.tasks[0].results if "R@1" in r.name} == {
        "image to text R@1": 24,
        "text to image R@1": 6,
    }


def test_retrieval_by_modality_and_data_set(shards: Path) -> None:
    task = RetrievalTask(name="r", shards=str(shards), ks=(1,), by=("modality", "dataset"), duplicates="wrong")
    done = evaluate(Answering(lambda i: CLASS_OF[i] if i % 2 else 3, class_in), EvalConfig(tasks=(task,)))
    (report,) = done.tasks
    assert list(report.kinds) == ["modality CT", "modality MRI", "dataset even", "dataset odd"]
    found = {name: results[0].value for name, results in report.kinds.items()}
    # Odd images (CT) tie with all captions of their class, of which two are their own; even ones with all captions.
    assert (
        found["modality CT"]
        == found["dataset odd"]
        == pytest.approx(np.mean([2 / (2 * n) for n in (12, 8, 4) for _ in range(n)]))
    )
    assert found["modality MRI"] == pytest.approx(2 / 48)
    assert [len(results) for results in report.kinds.values()] == [6] * 4
    assert "queries of    images" in plain(done)
    assert json.loads(json.dumps(done.to_dict()))["tasks"][0]["kinds"]["dataset odd"][0]["n"] == 12


def test_evaluation_during_training(tmp_path: Path) -> None:
    """What the trainer records is what evaluating the saved model gives; the weights do not notice."""
    labelled, noise = write_labelled(tmp_path / "test"), write_shards(tmp_path / "train", 16)
    config = EvalConfig(tasks=(classification(labelled), RetrievalTask(name="r", shards=str(labelled), ks=(1,))))
    training = tiny_config(noise, samples=32, eval_every_samples=16)
    summary = pretrain(training, tmp_path / "run", evaluators=[evaluator(config)])
    plain = pretrain(training, tmp_path / "plain")
    weights = [(done.checkpoint / "model/open_clip_model.safetensors").read_bytes() for done in (summary, plain)]
    assert weights[0] == weights[1]
    recorded = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if "results" in line]
    assert [line["step"] for line in recorded] == [2, 4]
    assert [result["name"] for result in recorded[-1]["results"]] == [
        "mean top-1",
        *(f"findings/{name}" for name in ("top-1", "balanced accuracy", "macro F1", "macro AUROC")),
        *(f"r/{way} {name}" for way in ("image to text", "text to image") for name in ("R@1", "median rank", "mAP")),
    ]
    expected = evaluator(config)(load_folder(summary.checkpoint / "model"))
    for result, line in zip(expected, recorded[-1]["results"], strict=True):
        assert dataclasses.asdict(result) == pytest.approx(line, abs=1e-6)


def test_configurations_that_cannot_be_evaluated_are_refused() -> None:
    task = {"kind": "classification", "name": "a", "shards": "x", "prompts": {"classes": {"a": ["a"], "b": ["b", "c"]}}}
    retrieval = {"kind": "retrieval", "name": "a", "shards": "x"}
    for tasks, message in (
        ([], "at least one task"),
        ([task, retrieval], "different names, got a, a"),
        ([retrieval | {"by": ["modality", "modality"]}], "by must hold different names"),
        ([task | {"ensemble": "probability"}], r"equally many prompts per class, got {'a': 1, 'b': 2}"),
        ([task | {"prompts": {"classes": {"a": ["a"]}}}], "at least two classes, got \\['a'\\]"),
        ([retrieval | {"ks": [1, 1]}], "different numbers"),
        ([retrieval | {"ks": []}], "one or more"),
        ([retrieval | {"dataset": ["a"]}], r"tasks\[0\]\.dataset: unknown key; did you mean 'datasets'"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(EvalConfig, {"tasks": tasks})


def test_what_a_task_declares_stands_first_and_is_marked_in_the_table(shards: Path) -> None:
    grades = classification(shards, ordinal=True, metric="quadratic kappa")
    done = evaluate(perfect(), EvalConfig(tasks=(grades, classification(shards, "plain"))))
    names = [result.name for result in done.tasks[0].results]
    assert names == ["quadratic kappa", "top-1", "balanced accuracy", "macro F1", "macro AUROC"]
    assert values(done.tasks[0])["quadratic kappa"] == 1.0
    header, *lines = plain(done).split("\n")[1:4]
    at = header.index("quadratic kappa")
    assert [line[at : at + 24].strip() for line in lines] == ["1.000 [1.000, 1.000] *", ""]
    assert header.index("top-1") < at


def test_sensitivity_of_the_class_that_is_looked_for(tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "two", {i: {"labels": (CLASSES[i % 2],)} for i in range(24)})
    prompts = ClassPrompts(classes={name: (name,) for name in CLASSES[:2]})
    task = classification(shards, prompts=prompts, positive=CLASSES[1], metric="sensitivity", specificity=0.8)
    found = evaluate(constant(), EvalConfig(tasks=(task,))).tasks[0].results[0]
    # Equal scores throughout: only the rule that calls nobody positive is specific enough.
    assert (found.name, found.value) == ("sensitivity at specificity 0.8", 0.0)


def test_digests_tell_prompts_and_splits_apart(shards: Path, tmp_path: Path) -> None:
    other = write_labelled(tmp_path / "other", {0: {"labels": (CLASSES[1],)}})
    words = ClassPrompts(classes=PROMPTS.classes, templates=("{}", "A picture of {}."))
    tasks = [classification(shards, "a"), classification(shards, "b", prompts=words), classification(other, "c")]
    first, prompts, split = evaluate(perfect(), EvalConfig(tasks=tuple(tasks))).tasks
    assert len(first.prompts_sha256) == len(first.split_sha256) == 64
    assert (prompts.prompts_sha256 == first.prompts_sha256, prompts.split_sha256 == first.split_sha256) == (False, True)
    assert (split.prompts_sha256 == first.prompts_sha256, split.split_sha256 == first.split_sha256) == (True, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "quadratic kappa"}, "metric quadratic kappa needs ordinal: true"),
        ({"metric": "sensitivity"}, "metric sensitivity needs positive"),
        ({"metric": "AUROC"}, "metric AUROC needs positive"),
        ({"metric": "top-5"}, "metric top-5 needs more than five classes"),
        ({"positive": CLASSES[0]}, "positive must be one of two classes"),
    ],
)
def test_a_metric_that_makes_no_sense_is_refused(shards: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification(shards, **fields)
