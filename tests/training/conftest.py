"""A tiny shard set, and a warm process that forks ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_run import write_shards
from tests.training.rank_server import RankServer


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Forty noise images in three shards."""
    return write_shards(tmp_path / "shards")


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankServer]:
    """Starts when the first test asks for it; one for each test process."""
    with RankServer() as server:
        yield server
