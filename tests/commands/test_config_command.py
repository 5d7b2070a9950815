"""`clip-med config`: resolved values with overrides, and the list of what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from clip_med.cli import main
from clip_med.config import config_hash, configs_root, load_config
from clip_med.pretrain import PretrainConfig
from zero_shot.config import EvalConfig

EVALUATION = """# What it is for
tasks:
  - kind: retrieval
    name: captions
    shards: shards/test
"""


def test_show_resolves_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(EVALUATION)
    assert main(["config", "show", str(file), "--batch-size", "7"]) == 0
    text = capsys.readouterr().out
    shown = yaml.safe_load(text)
    assert shown["batch_size"] == 7
    assert shown["tasks"][0]["ks"] == [1, 5, 10]
    # What is printed is a configuration itself, of the same hash.
    (tmp_path / "again.yaml").write_text(text)
    again = load_config(EvalConfig, tmp_path / "again.yaml")
    assert text.startswith(f"# {config_hash(again)}\n")
    assert again == load_config(EvalConfig, file, ["--batch-size", "7"])


def test_show_as_json_for_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "pretrain/corpus_small", "--json", "--train.optim.lr", "3e-4"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["train"]["optim"]["lr"] == 3e-4
    assert document["config"]["train"]["optim"]["eps"] == 1e-6
    overridden = load_config(PretrainConfig, "pretrain/corpus_small", ["--train.optim.lr", "3e-4"])
    assert document["hash"] == config_hash(overridden)
    assert document["hash"] != config_hash(load_config(PretrainConfig, "pretrain/corpus_small"))


def test_list_names_every_shipped_configuration_and_each_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == len(list(configs_root().rglob("*.yaml"))) >= 2
    assert {"eval/corpus", "pretrain/corpus_small"} <= set(listed)
    assert all(len(line) > 20 and not line.startswith("#") for line in listed.values())
    for name in listed:
        assert main(["config", "show", name]) == 0
    capsys.readouterr()
    assert main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(listed)


def test_mistakes_are_one_line_with_the_nearest_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "e.yaml"
    for text, expected in (
        (EVALUATION.replace("shards:", "shard:"), "e.yaml:5: tasks[0].shard: unknown key; did you mean 'shards'?"),
        (
            EVALUATION.replace("retrieval", "retreival"),
            "e.yaml:3: tasks[0].kind = 'retreival': did you mean 'retrieval'?",
        ),
        (EVALUATION + "workers: -1\n", "e.yaml:6: workers = -1"),
        (EVALUATION.replace("tasks:", "tasks"), "e.yaml"),
        ("- a\n", "expected a mapping"),
    ):
        file.write_text(text)
        assert main(["config", "show", str(file)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("clip-med: error: ")
        assert error.count("\n") == 1
        assert expected in error
    assert main(["config", "show", "eval/corpsu"]) == 2
    assert "did you mean 'eval/corpus.yaml'?" in capsys.readouterr().err
    file.write_text(EVALUATION)
    assert main(["config", "show", str(file), "--batch-size", "0"]) == 2
    assert "command line: batch_size = 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["config", "show", str(file), "--batch-siez", "3"])
    assert stop.value.code == 2
    assert "--batch-size" in capsys.readouterr().err
