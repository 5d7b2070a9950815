"""`clip-med pretrain` through the command line: a run, a stop and its continuation, and refusals in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest

from clip_med.cli import main
from clip_med.commands.progress import TrainDisplay
from clip_med.config import dump_yaml
from clip_med.models.config import FolderModel
from clip_med.models.folder import build_model, save_folder
from clip_med.training.trainer import StepReport
from tests.commands.test_evaluate_command import CONFIG as EVALUATION
from tests.labelled_shards import write_labelled
from tests.tiny_run import TINY, tiny_config, write_shards

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(dump_yaml(tiny_config(write_shards(tmp_path / "shards", 24), samples=48)))
    return file


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    show = TrainDisplay.on_step

    def on_step(self: TrainDisplay, report: StepReport) -> None:
        show(self, report)
        if report.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainDisplay, "on_step", on_step)


def weights(run: Path) -> bytes:
    return (
        run / json.loads((run / "latest.json").read_text())["checkpoint"] / "model/open_clip_model.safetensors"
    ).read_bytes()


def test_a_run_says_what_it_did(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(config), "--run", str(run), "--train.seed", "1", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"48 samples seen; model: {run / 'checkpoints/step_00000006/model'}\n"
    assert "24 samples in 2 shard(s)" in shown.err
    assert "step 6/6  loss " in shown.err
    assert "seed: 1" in (run / "config.yaml").read_text()
    # Again: nothing to do, and the same words.
    assert main(["pretrain", str(config), "--run", str(run), "--train.seed", "1", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["started_at_step"], document["step"], document["finished"]) == (6, 6, True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_stopped_by_a_signal_and_repeated(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    command = ["pretrain", str(config), "--device", "cpu", "--json", "--run"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2, number)
        assert main([*command, str(tmp_path / "run")]) == code
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (document["step"], document["samples"], document["finished"]) == (3, 24, False)
    assert document["stopped_by"] == number.name
    assert f"stopped by {number.name} after step 3; repeat to continue" in shown.err
    assert main([*command, str(tmp_path / "run")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["started_at_step"], document["step"], document["finished"]) == (3, 6, True)
    assert document["stopped_by"] is None
    assert Path(document["checkpoint"]).is_dir()
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_refusals_are_one_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.read_text()
    run = str(tmp_path / "run")
    for changed, expected in (
        (text.replace("batch_size:", "batchsize:"), "train.batchsize: unknown key; did you mean 'batch_size'?"),
        (text.replace("kind: vit", "kind: vitt"), "did you mean 'vit'?"),
        (text.replace("batch_size: 8", "batch_size: -8"), "train.batch_size = -8"),
        (
            text.replace("warmup_samples: 16", "warmup_samples: 48"),
            "train.schedule.warmup_samples 48 must be below the 48",
        ),
        (text.replace(str(tmp_path / "shards"), "nowhere"), "nowhere: no such directory of shards"),
    ):
        assert changed != text
        config.write_text(changed)
        assert main(["pretrain", str(config), "--run", run]) == 2
        error = capsys.readouterr().err
        assert error.startswith("clip-med: error: ")
        assert error.count("\n") == 1
        assert expected in error
    start, end = text.index("model:"), text.index("train:")
    (tmp_path / "bert").mkdir()
    refused = (
        ("test_efficientnett", "x", "is not a timm model; did you mean 'test_efficientnet'?"),
        ("test_efficientnet", tmp_path / "nothing", f"model text.path '{tmp_path / 'nothing'}': no transformers model"),
        ("test_efficientnet", tmp_path / "bert", f"model text.path '{tmp_path / 'bert'}': no transformers model"),
        ("test_efficientnet", "package:no_such/model", "'no_such' is not installed; try: pip install"),
    )
    for number, (name, path, expected) in enumerate(refused):
        model = f"model:\n  kind: two_tower\n  image: {{name: {name}}}\n  text: {{path: '{path}'}}\n"
        config.write_text(text[:start] + model + text[end:])
        assert main(["pretrain", str(config), "--run", str(tmp_path / f"{number}")]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert len(error) < 1000
        assert error.count("clip-med: error: ") == error.count("\n") == 1
    config.write_text(text)
    assert main(["pretrain", "nothing.yaml", "--run", run]) == 2
    assert "nothing.yaml: no such configuration file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", str(config), "--run", run, "--train.sede", "1"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--train.seed" in error
    assert "overrides" not in error  # the name that tyro is given is no program
    assert not Path(run).exists()


def test_a_pretrained_model_is_compared_with_what_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: the folder's own scores, kept through a stop; after: the run's; a model from scratch has no table."""
    shards = write_labelled(tmp_path / "shards")
    save_folder(build_model(TINY), tmp_path / "base")
    plain = tiny_config(shards, samples=48)
    (tmp_path / "c.yaml").write_text(dump_yaml(dataclasses.replace(plain, model=FolderModel(path=tmp_path / "base"))))
    (tmp_path / "e.yaml").write_text(EVALUATION.format(shards=shards))
    run, evaluation = tmp_path / "run", str(tmp_path / "e.yaml")
    command = ["pretrain", str(tmp_path / "c.yaml"), "--device", "cpu", "--eval", evaluation, "--run", str(run)]
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGTERM)
        assert main(command) == 0
    shown = capsys.readouterr()
    assert "evaluating the model as it is before training" in shown.err
    assert "Before and after" not in shown.out
    kept = (run / "eval/before.json").read_bytes()
    assert not (run / "eval/forgetting.json").exists()
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "evaluating the model" not in shown.err
    assert (run / "eval/before.json").read_bytes() == kept
    table = shown.out
    assert table.startswith("Before and after training\ntask ")
    scores: dict[str, dict[str, float]] = {}
    for name, model in (("before", tmp_path / "base"), ("after", run)):
        assert main(["eval", str(model), "--config", evaluation, "--device", "cpu", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        scores[name] = {f"{t['name']}/{r['name']}": r["value"] for t in document["tasks"] for r in t["results"]}
    changes = json.loads((run / "eval/forgetting.json").read_text())["changes"]
    assert len(changes) == 4 + 2 * 4
    for change in changes:
        key = f"{change['task']}/{change['name']}"
        assert (change["before"], change["after"]) == (scores["before"][key], scores["after"][key])
        assert (change["low"] is None) == (change["name"] != "top-1")
    # Repeated: the same table from the run folder, and as JSON.
    assert main(command) == 0
    assert capsys.readouterr().out == table
    (run / "eval/forgetting.json").unlink()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forgetting"] == changes
    (tmp_path / "c.yaml").write_text(dump_yaml(plain))
    assert main([*command[:-1], str(tmp_path / "scratch")]) == 0
    assert "Before and after" not in capsys.readouterr().out
    assert not (tmp_path / "scratch/eval/before.json").exists()
