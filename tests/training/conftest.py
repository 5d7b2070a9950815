"""A tiny shard set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_run import write_shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Forty noise images in three shards."""
    return write_shards(tmp_path / "shards")
