"""One real Slurm cluster for all tests of this folder that ask for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, why_not
from tests.slurm.fault_table import TABLE, markdown

PAIRS = 10


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ten pairs of nodes; Slurm's programs find it through SLURM_CONF."""
    reason = why_not()
    if reason is not None:
        if os.environ.get("CLIP_MED_NEED_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("cluster"), pairs=PAIRS) as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.environment["SLURM_CONF"])
        yield started


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of faults, where the tests ran in this process (`make test-slurm`)."""
    if TABLE:
        terminalreporter.section("faults survived")
        for line in markdown():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of twenty steps on noise, with a checkpoint every four."""
    from clip_med.config import dump_yaml
    from tests.tiny_run import tiny_config, write_shards

    folder = tmp_path_factory.mktemp("tiny")
    config = tiny_config(write_shards(folder / "shards"), samples=160, save_every_samples=32)
    (folder / "tiny.yaml").write_text(dump_yaml(config))
    return folder / "tiny.yaml"
