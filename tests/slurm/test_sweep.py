"""A grid of commands as tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_med.cli import main
from slurm.sweep import expand

WORDS = ["clip_med", "tune", "{data}", "--method", "{method}", "--shots={shots}", "--run", "{run}"]
GRID = {"data": ["shards/a", "shards/b"], "method": ["coop", "probe"], "shots": ["1", "4", "16"]}


def test_every_combination_is_a_task_with_a_folder_of_its_own() -> None:
    tasks = expand(WORDS, GRID, Path("/s"))
    assert len(tasks) == len({task.run for task in tasks}) == 12
    assert tasks[4].values == {"data": "shards/a", "method": "probe", "shots": "4"}
    assert tasks[4].words == (
        *("clip_med", "tune", "shards/a", "--method", "probe", "--shots=4"),
        *("--run", "/s/0004_data-shards-a_method-probe_shots-4"),
    )


def test_values_cannot_leave_the_folder() -> None:
    (task,) = expand(["{x}", "{run}"], {"x": ["../../etc $(rm)\n"]}, Path("/s"))
    assert task.run == Path("/s/0000_x-..-..-etc-rm-")
    assert task.words[0] == "../../etc $(rm)\n"


@pytest.mark.parametrize(
    ("words", "grid", "said"),
    [
        (["{ler}", "{run}"], {"lr": ["1"]}, r"\{ler\} in the command is no axis of the grid; did you mean 'lr'"),
        (["{lr}"], {"lr": ["1"]}, r"must have \{run\}"),
        (["{run}"], {"lr": ["1"]}, r"must have \{lr\}"),
        (["{run}", "{lr}"], {"lr": ["1", "1"]}, "distinct"),
        (["{run}", "{lr}"], {"lr": [""]}, "not empty"),
    ],
)
def test_commands_and_grids_that_do_not_fit(words: list[str], grid: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        expand(words, grid, Path("s"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "lr", "--", "pretrain", "{lr}", "{run}"], "--grid lr: expected a new AXIS=A,B,C"),
        (["--grid", "run=1", "--", "{run}"], "--grid run=1: expected a new AXIS"),
        (["--grid", "lr=1", "--grid", "lr=2", "--", "{lr}", "{run}"], "--grid lr=2: expected a new AXIS"),
        (["--grid", "lr=1", "--train.seed", "1", "--", "{lr}", "{run}"], "unknown words before --"),
        (["--grid", "lr=1", "--job.nodes", "2", "--", "{lr}", "{run}"], "write --job.KEY=VALUE"),
        (["--grid", "lr=1\n2", "--", "{lr}", "{run}"], "control characters"),
    ],
)
def test_bad_sweeps_end_with_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["slurm", "sweep", str(tmp_path / "s"), "--config", "slurm/local", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()
