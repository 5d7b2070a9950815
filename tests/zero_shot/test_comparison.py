"""Comparisons of models: against the single tests and by hand, prompts chosen on validation alone, files of scores."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import ClassPrompts
from tests.labelled_shards import CLASS_OF, CLASSES, Answering, class_in, perfect, write_labelled
from zero_shot.comparison import Comparison, Metric, compare_scores
from zero_shot.comparison_views import joined, notes, rank_figure, tables
from zero_shot.config import ClassificationTask, EvalConfig, RetrievalTask
from zero_shot.encoded import Encoded
from zero_shot.metrics import balanced_accuracy, confusion_matrix, macro_auroc
from zero_shot.prompt_choice import PromptChoice, candidates
from zero_shot.said import Said
from zero_shot.scores import ClassScores, ItemScores, read_scores, write_scores
from zero_shot.scoring import choose_for_tasks, evaluated_sets, score_tasks, validation_sets
from zero_shot.significance import auroc_difference, holm, paired_difference
from zero_shot.table import text

pytestmark = pytest.mark.usefixtures("one_thread")
N = 90


def scored(seed: int, strength: float, n: int = N, **changes: Any) -> ClassScores:
    """Three classes, patients of two images; the truth is that of every model, the scores are its own."""
    truth = np.random.default_rng(99).integers(0, 3, n)
    scores = np.random.default_rng(seed).normal(size=(n, 3)) + strength * (truth[:, None] == np.arange(3))
    fields: dict[str, Any] = {
        "keys": tuple(f"k{i}" for i in range(n)),
        "groups": tuple(f"g{i // 2}" for i in range(n)),
        "classes": CLASSES,
        "truth": truth,
        "scores": scores,
    }
    return ClassScores(**(fields | changes))


def items(seed: int, level: float) -> ItemScores:
    values = np.clip(np.random.default_rng(seed).normal(level, 0.2, N), 0, 1)
    keys = tuple(f"q{i}" for i in range(N))
    return ItemScores(keys=keys, groups=keys, metric="mAP", values=values)


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, ClassScores | ItemScores]]:
    """A strong model, a middling and a weak one on three tasks of classes and one of values."""
    return {
        name: {f"t{t}": scored(10 * m + t, strength) for t in range(3)}
        | {"r": items(m, 0.4 + 0.2 * (name == "strong"))}
        for m, (name, strength) in enumerate((("strong", 3.0), ("middle", 1.0), ("weak", 0.9)))
    }


def test_pairs_are_those_of_the_single_tests_with_holm_over_all(models: dict[str, dict[str, Any]]) -> None:
    found = compare_scores(models)
    assert (list(found.values), found.models, found.left_out) == (["t0", "t1", "t2", "r"], tuple(models), {})
    assert len(found.pairs) == 4 * 3
    hits = {
        name: {task: own[task].scores.argmax(axis=1) == own[task].truth for task in ("t0", "t1", "t2")}
        | {"r": own["r"].values}
        for name, own in models.items()
    }
    raw = []
    for pair, (task, (first, second)) in zip(
        found.pairs, ((t, p) for t in found.values for p in combinations(models, 2)), strict=True
    ):
        assert (pair.task, pair.first, pair.second) == (task, first, second)
        one, other = (hits[name][task].astype(float) for name in (first, second))
        assert pair.difference == paired_difference(one, other, groups=models[first][task].groups)
        assert found.values[task][first].value == pytest.approx(one.mean(), abs=1e-12)
        assert (pair.mcnemar is None) == (task == "r")
        raw.append(pair.difference.p)
    assert [pair.adjusted for pair in found.pairs] == holm(raw)
    for pair in found.pairs:
        assert pair.better == (
            (pair.first if pair.difference.value > 0 else pair.second) if pair.adjusted <= 0.05 else None
        )
    # The strong one is better everywhere, of the other two neither is.
    assert found.wins("strong", "weak") == (4, 0, 0)
    assert found.wins("weak", "strong") == (0, 0, 4)
    assert found.wins("middle", "weak") == (0, 4, 0)
    assert [pair.better for pair in found.overall] == ["strong", "strong", None]
    means = {name: np.mean([hits[name][task].mean() for task in found.values]) for name in models}
    for pair in found.overall:
        assert pair.difference.value == pytest.approx(means[pair.first] - means[pair.second], abs=1e-12)
        assert pair.difference.low < pair.difference.value < pair.difference.high
    assert found.ranks["strong"] == 1.0
    assert sum(found.ranks.values()) == pytest.approx(6)
    assert found.critical == pytest.approx(2.343 * math.sqrt(12 / 24), rel=1e-3)


def test_balanced_accuracy_and_macro_auroc(models: dict[str, dict[str, Any]]) -> None:
    balanced, area = (compare_scores(models, metric=metric) for metric in ("balanced accuracy", "macro AUROC"))
    assert area.left_out == {"r": ("strong", "middle", "weak")}
    assert any("r is left out" in line for line in notes(area))
    for task in ("t0", "t1", "t2"):
        for name, own in models.items():
            counts = confusion_matrix(own[task].scores.argmax(axis=1), own[task].truth, 3)
            assert balanced.values[task][name].value == pytest.approx(balanced_accuracy(counts), abs=1e-12)
            result = area.values[task][name]
            assert result.value == pytest.approx(macro_auroc(own[task].scores, own[task].truth), abs=1e-12)
            assert result.low < result.value < result.high <= 1
    (pair,) = [p for p in area.pairs if (p.task, p.first, p.second) == ("t1", "strong", "weak")]
    positive = models["weak"]["t1"].truth[:, None] == np.arange(3)
    one, other = (models[name]["t1"] for name in ("strong", "weak"))
    assert pair.difference == auroc_difference(one.scores, other.scores, positive, groups=one.groups)
    (mean,) = [p for p in area.overall if (p.first, p.second) == ("strong", "weak")]
    assert mean.better == "strong"
    own = [p.difference for p in area.pairs if (p.first, p.second) == ("strong", "weak")]
    assert mean.difference.error == pytest.approx(math.sqrt(sum(d.error**2 for d in own)) / 3)


def test_a_model_is_no_better_than_itself_and_undefined_values_are_no_finding(
    models: dict[str, dict[str, Any]],
) -> None:
    twice = {"a": models["middle"], "b": models["middle"]}
    for metric in ("top-1", "macro AUROC"):
        found = compare_scores(twice, metric=metric)
        assert {pair.adjusted for pair in (*found.pairs, *found.overall)} == {1.0}
        assert found.ranks == {"a": 1.5, "b": 1.5}
        assert found.friedman == 1.0
    one_class = {
        name: {"t": scored(seed, 1.0, truth=np.zeros(N, dtype=np.int64)), "u": scored(seed, 1.0)}
        for seed, name in enumerate("ab")
    }
    found = compare_scores(one_class, metric="macro AUROC")
    assert math.isnan(found.pairs[0].adjusted)
    assert found.pairs[0].better is None
    assert found.critical is None
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["values"]["t"]["a"]["value"] is None
    with pytest.raises(ValueError, match="macro AUROC is undefined on every task: t"):
        compare_scores({name: {"t": own["t"]} for name, own in one_class.items()}, metric="macro AUROC")


@pytest.mark.parametrize("metric", ["top-1", "macro AUROC"])
def test_models_that_are_alike_are_seldom_called_better(metric: Metric) -> None:
    trials = 40
    wrong = {"pairs": 0, "overall": 0}
    for trial in range(trials):
        alike = {f"m{m}": {f"t{t}": scored(1000 * trial + 10 * m + t, 1.0, n=60) for t in range(3)} for m in range(3)}
        found = compare_scores(alike, metric=metric, seed=trial)
        wrong["pairs"] += any(pair.better for pair in found.pairs)
        wrong["overall"] += any(pair.better for pair in found.overall)
    # Any of nine, or of three, in at most 5 % of all comparisons: 2 of 40, and three standard deviations more.
    assert wrong["pairs"] <= 6, wrong
    assert wrong["overall"] <= 6, wrong


def test_what_cannot_be_compared_is_named(models: dict[str, dict[str, Any]]) -> None:
    first = {"t": scored(0, 1.0)}
    for other, message in (
        ({"t": scored(0, 1.0, n=10)}, "task t: a and b have other keys"),
        ({"t": scored(0, 1.0, groups=tuple("g" * N))}, "other groups"),
        ({"t": scored(0, 1.0, truth=np.zeros(N, dtype=np.int64))}, "other truth"),
        ({"t": scored(0, 1.0, classes=("x", "y", "z"))}, "other classes"),
        ({"u": scored(0, 1.0)}, "no task has top-1 for all of a, b; there are t, u"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_scores({"a": first, "b": other})
    with pytest.raises(ValueError, match="at least two models"):
        compare_scores({"a": first})
    with pytest.raises(ValueError, match="level"):
        compare_scores(models, level=0.0)
    left = compare_scores({"a": first | {"only a": scored(0, 1.0)}, "b": first})
    assert left.left_out == {"only a": ("b",)}


def test_scores_come_back_from_files_and_bad_files_are_named(tmp_path: Path, models: dict[str, dict[str, Any]]) -> None:
    write_scores(tmp_path / "a", models["weak"])
    back = read_scores(tmp_path / "a")
    assert list(back) == ["r", "t0", "t1", "t2"]
    for task, scores in models["weak"].items():
        for name, value in vars(scores).items():
            assert np.array_equal(getattr(back[task], name), value)
    assert len(list((tmp_path / "a").iterdir())) == 4
    with pytest.raises(ValueError, match="must differ in letters"):
        write_scores(tmp_path / "b", {"x y": items(0, 0.5), "x_y": items(0, 0.5)})
    with pytest.raises(ValueError, match="no scores"):
        read_scores(tmp_path / "b")
    (tmp_path / "b/t.scores.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"t\.scores\.npz: no scores of a task"):
        read_scores(tmp_path / "b")
    np.savez(tmp_path / "b/t.scores.npz", task="t", keys=["a", "a"], groups=["a", "b"], metric="m", values=[0.0, 1.0])
    with pytest.raises(ValueError, match="keys must differ, got 'a' twice"):
        read_scores(tmp_path / "b")
    for changed, message in (
        ({"scores": np.zeros((N, 2))}, "expected scores"),
        ({"scores": np.full((N, 3), np.nan)}, "finite"),
        ({"truth": np.full(N, 3)}, "truth must lie in 0 .. 2"),
    ):
        with pytest.raises(ValueError, match=message):
            scored(0, 1.0, **changed)
    with pytest.raises(ValueError, match="finite values"):
        ItemScores(keys=("a",), groups=("a",), metric="m", values=np.array([np.nan]))
    one = np.ones(1)
    for others in ({"keys": one}, {"R@1": np.ones(2)}):
        with pytest.raises(ValueError, match="expected 1 values of a name of its own"):
            ItemScores(keys=("a",), groups=("a",), metric="m", values=one, others=others)


def test_tables_and_the_drawing_show_what_was_found(models: dict[str, dict[str, Any]]) -> None:
    found = compare_scores(models)
    shown = text(tables(found), notes(found))
    assert "r (mAP)" in shown
    assert f"{sum(pair.better is not None for pair in found.pairs)} of 12 pairs by task (those that differ)" in shown
    assert text(tables(found, every_pair=True), []).count("t1 ") == 1 + 3
    assert "| strong | weak |" in text(tables(found), [], markdown=True)
    figure = rank_figure(found)
    assert {label.get_text() for label in figure.axes[0].texts} >= {f"{n}  {r:.2f}" for n, r in found.ranks.items()}
    assert joined([1.0, 1.5, 2.2, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert joined([1.0, 1.1, 1.2], 1.0) == [(0, 2)]
    single = compare_scores({name: {"t0": own["t0"]} for name, own in models.items()})
    assert isinstance(single, Comparison)
    assert single.critical is None
    with pytest.raises(ValueError, match="two tasks"):
        rank_figure(single)


TASK = {"name": "findings", "prompts": ClassPrompts(classes={name: (name,) for name in CLASSES})}


def splits(folder: Path) -> EvalConfig:
    """Test and val side by side, with other keys and patients."""
    write_labelled(folder / "val", {i: {"key": f"v{i:02d}", "group": f"v{i}"} for i in range(24)})
    test = str(write_labelled(folder / "test"))
    return EvalConfig(tasks=(ClassificationTask(shards=test, **TASK), RetrievalTask(name="r", shards=test)))


def chosen_on(encoder: Answering, config: EvalConfig, *splits: str) -> dict[str, PromptChoice]:
    return choose_for_tasks(Said(Encoded(encoder), config), validation_sets(config, splits))


def test_prompts_are_chosen_on_validation_and_the_test_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = splits(tmp_path)
    # Reads one wording only; of every other it says that it is a cyst.
    picky = Answering(CLASS_OF.__getitem__, lambda text: class_in(text) if text.startswith("Diagnosis:") else 0)
    opened: list[str] = []
    actual = ShardSet.open

    def watched(location: Any, *arguments: Any) -> ShardSet:
        opened.append(Path(location).name)
        return actual(location, *arguments)

    monkeypatch.setattr(ShardSet, "open", watched)
    chosen = chosen_on(picky, config, "val")
    assert set(opened) == {"val"}
    assert chosen["findings"].taken.name == "Diagnosis: {}."
    assert chosen["findings"].values["Diagnosis: {}."] == 1.0
    assert chosen["findings"].values["as configured"] == pytest.approx(1 / 3)
    assert list(chosen["findings"].values) == [one.name for one in candidates(config.tasks[0])]  # type: ignore[arg-type]
    images = evaluated_sets(config, validation_sets(config, ["val"]))
    said = Said(Encoded(picky), config)
    plain, best = score_tasks(said, images), score_tasks(said, images, chosen=chosen)
    values = compare_scores({"plain": plain, "best": best}).values["findings"]
    # With the other wordings all classes tie.
    assert (values["best"].value, values["plain"].value) == (1.0, pytest.approx(1 / 3))
    # Where all do the same, the first: what is configured.
    assert chosen_on(perfect(), config, "val")["findings"].taken.name == "as configured"
    for validation, message in (
        ("test", "cannot be chosen on .*the data of the test"),
        (f"{tmp_path}/test/", "the data of the test"),
        ("none", "none"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen_on(picky, config, validation)
    # A split without images of the task is passed over, and the choice says where it was made.
    mri = replace(config.tasks[0], datasets=("even",))
    write_labelled(tmp_path / "few", {i: {"key": f"f{i:02d}", "dataset": "odd"} for i in range(24)})
    choice = chosen_on(picky, replace(config, tasks=(mri,)), "few", "val")["findings"]
    assert (choice.n, choice.shards) == (12, str(tmp_path / "val"))
    with pytest.raises(ValueError, match="task findings: no image of its data sets and modalities in few"):
        chosen_on(picky, replace(config, tasks=(mri,)), "few")
    leaking = str(write_labelled(tmp_path / "leaking", {i: {"key": f"v{i:02d}"} for i in range(23)}))
    with pytest.raises(ValueError, match="1 images are in validation and test data, the first: k23"):
        evaluated_sets(config, validation_sets(config, [leaking]))


def test_scores_are_those_of_the_evaluation(tmp_path: Path) -> None:
    config = splits(tmp_path)
    half = Answering(lambda i: CLASS_OF[i] if i % 3 else 0, class_in)
    found = score_tasks(Said(Encoded(half), config), evaluated_sets(config, {}))
    assert list(found) == ["findings", "r: image to text", "r: text to image"]
    classes = found["findings"]
    assert isinstance(classes, ClassScores)
    assert classes.truth.tolist() == list(CLASS_OF)
    assert (classes.scores.argmax(axis=1) == [c if i % 3 else 0 for i, c in enumerate(CLASS_OF)]).all()
    assert (classes.keys[3], classes.groups[3]) == ("k03", "g1")
    captions = found["r: text to image"]
    assert len(captions.keys) == 6
    # Captions of a class go with all of its patients.
    assert len(set(captions.groups)) == 3
