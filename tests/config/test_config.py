"""Configuration files: values, errors with places, overrides, dump and hash."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

import pytest

from clip_med.config import (
    ConfigError,
    Fraction,
    PositiveInt,
    apply_overrides,
    config,
    config_hash,
    dump_yaml,
    find_config,
    load_config,
)


@config
class Optim:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    decay: Fraction = 0.2


@config
class Plain:
    kind: Literal["plain"] = "plain"
    width: PositiveInt = 8


@config
class Deep:
    kind: Literal["deep"] = "deep"
    depth: PositiveInt = 2
    policy: Literal["none", "trunk", "all"] = "none"


@config
class Tasks:
    name: str
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)


@config
class Run:
    optim: Optim = Optim()
    model: Plain | Deep = Plain()
    data: tuple[Path, ...] = ()
    tasks: tuple[Tasks, ...] = ()
    extra: Optim | None = None

    def __post_init__(self) -> None:
        if len(self.data) > 2:
            raise ValueError(f"data: at most 2 folders, got {len(self.data)}")


def load(tmp_path: Path, text: str, *overrides: str) -> Run:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return load_config(Run, file, overrides)


def test_values_types_and_defaults(tmp_path: Path) -> None:
    run = load(
        tmp_path,
        "optim: {lr: 1e-4, betas: [0.8, 0.9]}\nmodel: {kind: deep, depth: 3}\ndata: [a, b]\n"
        "tasks: [{name: x, classes: {c: [one, two]}}]\nextra: {lr: 2}\n",
    )
    assert run == Run(
        optim=Optim(lr=1e-4, betas=(0.8, 0.9)),
        model=Deep(depth=3),
        data=(Path("a"), Path("b")),
        tasks=(Tasks(name="x", classes={"c": ("one", "two")}),),
        extra=Optim(lr=2.0),
    )
    assert load(tmp_path, "") == Run()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim:\n  lrr: 1\n", ["run.yaml:2", "optim.lrr", "unknown key", "did you mean 'lr'?"]),
        ("optim:\n  lr: fast\n", ["run.yaml:2", "optim.lr = 'fast'", "valid number"]),
        ("optim:\n\n  decay: 1.5\n", ["run.yaml:3", "optim.decay = 1.5", "less than or equal to 1"]),
        ("model: {kind: deap}", ["run.yaml:1", "model.kind = 'deap'", "did you mean 'deep'?"]),
        ("model: {depth: 2}", ["model", "`kind` is missing", "deep, plain"]),
        ("model: {kind: deep, policy: trnk}", ["model.policy = 'trnk'", "did you mean 'trunk'?"]),
        ("model:\n  kind: deep\n  width: 3\n", ["run.yaml:3", "model.width", "unknown key", "depth"]),
        ("optim: 3", ["optim = 3", "expected a mapping"]),
        ("tasks:\n  - classes: {}\n", ["run.yaml:2", "tasks[0]", "missing 'name'"]),
        ("tasks:\n  - name: x\n    classes: {c: 3}\n", ["run.yaml:3", "tasks[0].classes.c = 3"]),
        ("data: [a, b, c]", ["at most 2 folders, got 3"]),
        ("optim: {lr: 1, lr: 2}", ["run.yaml:1", "duplicate key 'lr'"]),
        ("optim: {[lr]: 1}", ["run.yaml:1", "a key must be one word or number"]),
        ("optim: &o {lr: 1}\nextra: *o\n", ["run.yaml:2", "aliases"]),
        ("optim: [1", ["run.yaml", "not valid YAML"]),
        ("optim: !!python/object:os.system {}", ["run.yaml:1", "tag", "not allowed"]),
        ("- a\n- b\n", ["expected a mapping"]),
    ],
)
def test_errors_name_place_value_and_nearest(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"


def test_keys_are_names_as_they_are_written(tmp_path: Path) -> None:
    """YAML reads no as False and 01 as 1; of classes both are labels."""
    run = load(tmp_path, "tasks:\n  - name: dr\n    classes: {no: [none], 01: [mild], 'yes': [b], 1.0: [c]}\n")
    assert list(run.tasks[0].classes) == ["no", "01", "yes", "1.0"]
    (tmp_path / "again.yaml").write_text(dump_yaml(run))
    assert load_config(Run, tmp_path / "again.yaml") == run


def test_overrides_change_values_and_keep_structure(tmp_path: Path) -> None:
    run = load(
        tmp_path, "model: {kind: deep}\n", "--optim.lr", "3e-4", "--model.depth", "5", "--optim.betas", "0.5", "0.6"
    )
    assert run.optim.lr == 3e-4
    assert run.optim.betas == (0.5, 0.6)
    assert run.model == Deep(depth=5)


def test_overrides_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"command line: model.depth = -1"):
        load(tmp_path, "model: {kind: deep}", "--model.depth", "-1")
    with pytest.raises(SystemExit) as stop:
        load(tmp_path, "", "--optim.lrr", "1")
    assert stop.value.code == 2
    assert "--optim.lr" in capsys.readouterr().err


def test_dump_reads_back_and_hash_follows_values(tmp_path: Path) -> None:
    run = load(tmp_path, "model: {kind: deep, depth: 3}\ndata: [x]\ntasks: [{name: t, classes: {c: [é]}}]\n")
    again = load(tmp_path, dump_yaml(run))
    assert again == run
    assert config_hash(again) == config_hash(run)
    assert config_hash(run) != config_hash(apply_overrides(Run, run, ["--model.depth", "4"]))


def test_missing_and_large_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        find_config(tmp_path / "nothing.yaml")
    big = tmp_path / "big.yaml"
    big.write_text("#" * 1_100_000)
    with pytest.raises(ConfigError, match="1,100,000 bytes"):
        load_config(Run, big)
    with pytest.raises(ConfigError, match="is a directory"):
        load_config(Run, tmp_path)
