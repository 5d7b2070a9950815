"""`clip-med eval` of a run and of a model folder: what it prints, what it keeps, and how it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from clip_med.cli import main
from clip_med.pretrain import pretrain
from tests.labelled_shards import CLASS_OF, CLASSES, write_labelled
from tests.tiny_run import tiny_config
from zero_shot.scores import read_scores

CONFIG = """tasks:
  - kind: classification
    name: findings
    shards: {shards}
    prompts:
      classes: {{cyst: [cyst], mass: [mass], normal: [normal]}}
  - kind: retrieval
    name: captions
    shards: {shards}
    ks: [1, 5]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, a configuration and a run of three steps."""
    folder = tmp_path_factory.mktemp("evaluated")
    shards = write_labelled(folder / "shards")
    (folder / "small.yaml").write_text(CONFIG.format(shards=shards))
    pretrain(tiny_config(shards, samples=24), folder / "run", device="cpu")
    return folder


def test_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "run"
    assert main(["eval", str(run), "--config", str(trained / "small.yaml"), "--device", "cpu", "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document == json.loads((run / "eval/small.json").read_text())
    assert document["model"] == str(run / "checkpoints/step_00000003/model")
    assert len(document["config_hash"]) == 16
    assert [task["name"] for task in document["tasks"]] == ["findings", "captions"]
    assert document["tasks"][0]["classes"] == list(CLASSES)
    results = [result for task in document["tasks"] for result in task["results"]]
    # Four of classification; two recalls, median rank and mAP of each direction.
    assert len(results) == 4 + 2 * 4
    for result in [*results, document["mean_top1"]]:
        assert 0 <= result["low"] <= result["value"] <= result["high"]
        assert result["unit"] == "rank" or result["high"] <= 1
        assert result["n"] in (24, 6)
    report = (run / "report.html").read_text()
    assert "run: small" in report
    assert "samples seen" in report
    assert f"report: {run / 'report.html'}" in shown.err
    # Another evaluation stands beside the first; the table says the same numbers.
    (trained / "other.yaml").write_text((trained / "small.yaml").read_text())
    command = ["eval", str(run), "--config", str(trained / "other.yaml"), "--device", "cpu"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert sorted(path.name for path in (run / "eval").iterdir()) == ["other.json", "small.json"]
    assert f"{results[0]['value']:.3f} [{results[0]['low']:.3f}, {results[0]['high']:.3f}]" in table
    assert "Retrieval" in table
    assert main([*command, "--markdown", "--batch-size", "5"]) == 0
    assert "| task | images | classes | chance | top-1 |" in capsys.readouterr().out


def test_features_stay_in_the_run_and_what_is_damaged_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("features", "eval"))
    command = ["eval", str(run), "--config", str(trained / "small.yaml"), "--device", "cpu", "--no-images", "--json"]

    def said(*more: str) -> tuple[str, str]:
        assert main([*command, *more]) == 0
        shown = capsys.readouterr()
        return shown.out, next((line for line in shown.err.splitlines() if line.startswith("image features")), "")

    alone, line = said("--no-cache")
    assert line == ""
    assert not (run / "features").exists()
    assert "<dd>24 encoded on cpu</dd>" in (run / "report.html").read_text()
    own = f"read from {run / 'features'}"
    assert said() == (alone, f"image features: 24 encoded on cpu, 0 {own}, which holds 1 files, 0.0 MB")
    assert said() == (alone, f"image features: 0 encoded on cpu, 24 {own}, which holds 1 files, 0.0 MB")
    assert f"<dd>0 encoded on cpu, 24 {own}</dd>" in (run / "report.html").read_text()
    assert said("--cache", str(tmp_path / "own"))[1].startswith("image features: 24 encoded on cpu, 0 read from")
    assert not caplog.text
    (file,) = (run / "features").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert said()[1].startswith("image features: 24 encoded on cpu, 0 read from")
    assert f"{file}: damaged" in caplog.text
    with pytest.raises(SystemExit):
        main([*command, "--cache", "a", "--no-cache"])
    assert "not allowed with" in capsys.readouterr().err


def test_every_figure_can_be_computed_again_from_the_scores(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = trained / "run/checkpoints/step_00000003/model", tmp_path / "scores"
    command = ["eval", str(model), "--config", str(trained / "small.yaml"), "--device", "cpu", "--json"]
    assert main([*command, "--scores", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    found = {result["name"]: (result["value"], result["n"]) for task in document["tasks"] for result in task["results"]}
    with np.load(out / "findings.scores.npz") as stored:
        data = {name: stored[name] for name in stored.files}
    scores, truth, n = data["scores"], data["truth"], len(CLASS_OF)
    assert data["classes"].tolist() == list(CLASSES)
    assert truth.tolist() == list(CLASS_OF)
    assert (data["keys"][7], data["groups"][7]) == ("k07", "g3")
    split = [[key, CLASSES[number]] for key, number in zip(data["keys"].tolist(), truth, strict=True)]
    assert hashlib.sha256(json.dumps(split).encode()).hexdigest() == document["tasks"][0]["split_sha256"]
    answers = scores.argmax(axis=1)
    again = {
        "top-1": (answers == truth).mean(),
        "balanced accuracy": sk.balanced_accuracy_score(truth, answers),
        "macro F1": sk.f1_score(truth, answers, average="macro"),
        "macro AUROC": sk.roc_auc_score(np.eye(3)[truth], scores, average="macro"),
    }
    counts = dict.fromkeys(again, n)
    for direction, queries in (("image to text", n), ("text to image", 6)):
        with np.load(out / f"captions_{direction.replace(' ', '_')}.scores.npz") as stored:
            again |= {f"{direction} {name}": stored[name].mean() for name in ("R@1", "R@5")}
            again[f"{direction} median rank"] = np.median(stored["rank"])
            again[f"{direction} mAP"] = stored["values"].mean()
            assert len(stored["keys"]) == len(stored["groups"]) == queries
            counts |= {name: queries for name in again if name.startswith(direction)}
    assert found == {name: (pytest.approx(value, abs=1e-12), counts[name]) for name, value in again.items()}
    # They take a model's place in a comparison.
    assert read_scores(out)["captions: image to text"].others.keys() == {"R@1", "R@5", "rank"}
    assert main(["compare", f"a={out}", f"b={out}", "--metric", "top-1"]) == 0
    assert f"{found['top-1'][0]:.3f}" in capsys.readouterr().out


def test_a_model_folder_keeps_nothing_unasked(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained / "run/checkpoints/step_00000003/model"
    before = sorted(path.name for path in model.iterdir())
    command = ["eval", str(model), "--config", str(trained / "small.yaml"), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["model"] == str(model)
    assert "report" not in shown.err
    assert main([*command, "--report", str(trained / "new/model.html")]) == 0
    assert "samples seen" not in (trained / "new/model.html").read_text()
    assert sorted(path.name for path in model.iterdir()) == before


def test_refusals_are_one_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = trained / "small.yaml"
    text = config.read_text()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("")
    changes = {
        "misspelt.yaml": text.replace("name: captions", "nmae: captions"),
        "missing.yaml": text.replace(str(trained / "shards"), str(tmp_path / "nowhere")),
        "label.yaml": text.replace("cyst: [cyst], ", ""),
        "data.yaml": text + "    datasets: [none]\n",
    }
    for name, changed in changes.items():
        assert changed != text
        (tmp_path / name).write_text(changed)
    run = trained / "run"
    cut = shutil.copytree(run / "checkpoints/step_00000003/model", tmp_path / "cut") / "open_clip_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    for model, chosen, expected in (
        (tmp_path / "cut", config, "open_clip_model.safetensors: damaged"),
        (tmp_path / "nothing", config, "nothing: is neither a run nor a model folder"),
        (empty, config, "empty: holds no checkpoint yet"),
        (run, tmp_path / "misspelt.yaml", "tasks[1].nmae: unknown key; did you mean 'name'?"),
        (run, tmp_path / "missing.yaml", "nowhere: no such directory of shards"),
        (run, tmp_path / "label.yaml", "task findings: sample k00 has 0 of the 2 classes"),
        (run, tmp_path / "data.yaml", "task captions: no sample"),
        (run, tmp_path / "absent.yaml", "absent.yaml: no such configuration file"),
    ):
        assert main(["eval", str(model), "--config", str(chosen), "--device", "cpu"]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("clip-med: error: ")
        assert shown.err.count("\n") == 1
        assert expected in shown.err
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(run), "--config", str(config), "--batch-siez", "3"])
    assert stop.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_a_run_that_cannot_be_written_is_refused_before_it_is_evaluated(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clip_med.commands.evaluate.os.access", lambda *_: False)
    assert main(["eval", str(trained / "run"), "--config", str(trained / "small.yaml"), "--device", "cpu"]) == 2
    model = trained / "run/checkpoints/step_00000003/model"
    assert f"cannot be written, and results of a run are kept in it; give its model, {model}" in capsys.readouterr().err


def test_help_reads_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("eval", "export", "pretrain", "config"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "%" not in text
        assert command == "config" or "example: clip-med" in text
