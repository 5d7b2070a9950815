"""The benchmark of few-shot tuning runs small, with its checks that both sides compute the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import tune
from benchmarks.tune_task import biomedclip_shape, class_texts, write_shots

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_ratio_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amount = replace(tune.QUICK, rounds=1, pretrained_on=96, epochs=2, seeds=2, tested=4)
    measured = tune.measure(tmp_path, amount)
    printed = capsys.readouterr().out
    # Once per method for the times, and once per method and seed.
    assert printed.count("both sides agree on loss and gradient") == 2 + 2 * 2
    assert "for one epoch, scaled to 100" in printed
    assert set(measured) == {
        "coop_vs_usual_loop",
        "biomedcoop_vs_usual_loop",
        "coop_accuracy_fraction",
        "biomedcoop_accuracy_fraction",
    }
    assert all(len(values) == 1 for values in measured.values())
    assert measured["coop_vs_usual_loop"][0] > 0


@pytest.mark.parametrize("name", tune.METHODS)
def test_sides_that_differ_are_found(name: str, tmp_path: Path) -> None:
    encoder = biomedclip_shape(tmp_path / "bert", full=False)
    texts = class_texts(encoder)
    shots = write_shots(tmp_path / "shots", 2)
    usual = tune.usual_loop(name, encoder, texts)
    tune.check(name, tune.build(name, encoder, texts), usual, shots)
    with torch.no_grad():
        usual.suffix[:, 2] *= 1.01
    with pytest.raises(AssertionError, match="the losses of the two sides differ"):
        tune.check(name, tune.build(name, encoder, texts), usual, shots)
