"""One real Slurm cluster for all tests of this folder that ask for it, and a table of what was survived on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, why_not

PAIRS = 10
# Lines of the table, filled by test_faults.py; printed where the tests run in one process (`make test-slurm`).
TABLE: list[tuple[str, ...]] = []


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
    """The table, as Markdown."""
    if TABLE:
        terminalreporter.section("faults survived")
        for line in markdown_table(
            ("after step 6 of 20", "starts", "resumed from step", "seconds", "final weights"), TABLE
        ):
            terminalreporter.write_line(line)


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table with aligned columns."""
    table = [head, tuple("-" * 3 for _ in head), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return [
        "| " + " | ".join(cell.ljust(w, "-" if n == 1 else " ") for cell, w in zip(row, widths, strict=True)) + " |"
        for n, row in enumerate(table)
    ]


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of twenty steps on noise, with a checkpoint every four."""
    from clip_med.config import dump_yaml
    from tests.tiny_run import tiny_config, write_shards

    folder = tmp_path_factory.mktemp("tiny")
    config = tiny_config(write_shards(folder / "shards"), samples=160, save_every_samples=32)
    (folder / "tiny.yaml").write_text(dump_yaml(config))
    return folder / "tiny.yaml"
