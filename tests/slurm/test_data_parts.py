"""Data preparation as a job array on a real Slurm: what one process writes, and a part that fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_med.cli import main
from slurm.record import queue, status
from tests.data_prep.test_parts import files
from tests.slurm.cluster import Cluster
from tests.slurm.test_cluster import wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_failed_part_is_named_and_only_it_runs_again_and_the_bytes_are_those_of_one_process(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "table.csv", tmp_path / "out"
    lines = ["path,label,split"]
    for number in range(8):
        Image.fromarray(np.full((3, 4), number, np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,cyst,{'train' if number % 3 else 'test'}")
    table.write_text("\n".join(lines) + "\n")
    # A regular expression with braces, which must reach the jobs as it is.
    words = ["data", "table", str(table), "--images-root", str(tmp_path), "--secret", str(tmp_path / "key"), "--strict"]
    words += ["--modality", "CT", "--group-pattern", r"(\d{1})\.png", "--samples-per-shard", "2", "--json", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    (tmp_path / "7.png").rename(tmp_path / "later.png")
    job = ["--slurm", "slurm/local", "--job.nodes=1", f"--job.constraint=pair{cluster.pairs}", "--parts", "2"]
    capsys.readouterr()
    assert main([*words, str(out), *job]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["submitted"] == ["0000", "0001"]
    parts = [Path(first["folder"]) / name for name in ("0000", "0001", "merge")]
    wait(cluster, *parts)
    assert [status(part, queue()).state for part in parts] == ["done", "failed", "failed"]
    assert main(["slurm", "logs", str(parts[1])]) == 0
    assert "7.png: missing file" in capsys.readouterr().out
    assert main(["slurm", "logs", str(parts[2])]) == 0
    assert f"1 of 2 parts are not complete: {parts[1]}" in capsys.readouterr().out
    # The cause is mended, and the command repeated.
    (tmp_path / "later.png").rename(tmp_path / "7.png")
    assert main([*words, str(out), *job]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["submitted"] == ["0001"]
    wait(cluster, *parts)
    assert [status(part, queue()).state for part in parts] == ["done"] * 3
    assert files(out) == files(tmp_path / "whole")
    # And once more: all of it is there.
    assert main([*words, str(out), *job]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["kept_splits"]) == ["test", "train"]
