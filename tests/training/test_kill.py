"""SIGKILL at any moment, saves included: the run that goes on ends with the bits of the one that was never killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "at_least"), [("calls", 20), ("moments", 4)])
def test_a_killed_run_goes_on_to_the_same_bits(shards: Path, tmp_path: Path, mode: str, at_least: int) -> None:
    """`calls`: killed before each single call by which a save reaches the disk; `moments`: at random times."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_runs", str(shards), str(tmp_path), mode],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["different"] == []
    assert found["kills"] >= at_least
    if mode == "calls":
        assert found["interrupted_saves"] >= 10
