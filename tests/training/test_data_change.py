"""A run and its data: where they lie may change, what they are may not unasked; what was drawn is logged."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clip_med.config import ConfigError, validate
from clip_med.data.shards import open_shards
from clip_med.data.training_data import MixtureConfig, SourceConfig
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.metrics_log import read_metrics
from tests.tiny_run import signal_at, tiny_config, write_shards


def halfway(config: PretrainConfig, run: Path) -> None:
    """Train to step 6 of 12, where a signal ends the run."""

    assert pretrain(config, run, on_step=signal_at(5)).step == 6


def mixed(shards: Path, other: Path, **mixture: Any) -> PretrainConfig:
    sources = (
        SourceConfig(name="one", shards=(str(shards),)),
        SourceConfig(name="two", shards=(str(other),), weight=3.0),
    )
    return dataclasses.replace(tiny_config(shards), shards=(), sources=sources, mixture=MixtureConfig(**mixture))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another, smaller source."""
    return write_shards(tmp_path / "other", 16, seed=1, keys="o")


def test_moved_shards_are_the_same_shards(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards)
    halfway(config, tmp_path / "run")
    shutil.move(shards, tmp_path / "elsewhere")
    moved = dataclasses.replace(config, shards=(str(tmp_path / "elsewhere"),))
    assert pretrain(moved, tmp_path / "run").started_at_step == 6
    assert "elsewhere" in (tmp_path / "run/config.yaml").read_text()


@pytest.mark.parametrize("what", ["shards", "mixture"])
def test_changed_data_are_refused_with_both_digests_unless_allowed(
    shards: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    run = tmp_path / "run"
    config, changed = mixed(shards, other), mixed(shards, other, alpha=0.5)
    if what == "shards":
        config = tiny_config(shards)
        changed = dataclasses.replace(config, shards=(str(other), str(shards)))
    halfway(config, run)
    before = (run / "config.yaml").read_text()
    saved = json.loads((run / "checkpoints/step_00000006/state.json").read_text())["loader"]
    pattern = rf"{what} were {saved[what]}, are ([0-9a-f]{{64}}).*--allow-data-change"
    with pytest.raises(ValueError, match=pattern) as caught:
        pretrain(changed, run)
    found = re.search(pattern, str(caught.value))
    assert found is not None
    if what == "shards":
        assert found[1] == open_shards([other, shards]).digest
    # A refused start leaves the run as it was.
    assert (run / "config.yaml").read_text() == before
    with caplog.at_level(logging.WARNING):
        summary = pretrain(changed, run, allow_data_change=True)
    assert (summary.started_at_step, summary.finished) == (6, True)
    assert f"{what} were {saved[what]}" in caplog.text
    assert (run / "config.yaml").read_text() != before
    # From here on the new data are the run's own.
    assert pretrain(changed, run).started_at_step == 12


def test_the_realised_mix_is_logged_and_survives_a_stop(shards: Path, other: Path, tmp_path: Path) -> None:
    config = mixed(shards, other)
    lines: list[str] = []
    pretrain(config, tmp_path / "whole", on_start=lines.append)
    text = "\n".join(lines)
    sizes = {"one": len(open_shards([shards])), "two": len(open_shards([other]))}
    share = {"one": sizes["one"] / (sizes["one"] + 3 * sizes["two"])}
    share["two"] = 1.0 - share["one"]
    for name, samples in sizes.items():
        times = 96 * share[name] / samples
        assert (
            f"source {name}: {samples} samples, {100 * share[name]:.1f} % of those drawn, each {times:.2f} times"
            in text
        )
    logged = [line for line in read_metrics(tmp_path / "whole/metrics.jsonl") if "mix" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8, 10, 12]
    total: Counter[str] = Counter()
    for line in logged:
        assert sum(line["mix"]["sources"].values()) == sum(line["mix"]["modalities"].values()) == 16
        total.update(line["mix"]["sources"])
        assert line["replaced"] == 0
    assert logged[-1]["passes"] == {name: round(total[name] / sizes[name], 4) for name in sizes}
    halfway(config, tmp_path / "halves")
    pretrain(config, tmp_path / "halves")
    again = [line for line in read_metrics(tmp_path / "halves/metrics.jsonl") if "mix" in line]
    assert again == logged


def test_budgets_of_mixtures_are_in_samples(shards: Path) -> None:
    for values, message in (
        ({}, "give shards or sources"),
        ({"shards": ["a"], "sources": [{"name": "a", "shards": ["a"]}]}, "give shards or sources"),
        ({"sources": [{"name": n, "shards": [n]} for n in "ab"], "train": {"epochs": 1.0}}, "give train.samples"),
        ({"shards": ["a"], "train": {"epochs": 1.0}, "mixture": {"alpha": 0.5}}, "give train.samples"),
        (
            {
                "shards": ["a"],
                "loader": {"captions": {"count": 2}},
                "train": {"samples": 8, "cache_text": True, "lock_text": "all"},
            },
            "captions.count must be 1",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(PretrainConfig, {"model": {"kind": "vit"}, "train": {"samples": 8}, **values})
