"""Where downloaded shards lie unless the configuration says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_med.data.remote import RemoteConfig, ShardStore


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "/home/me/.cache"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache"),
        ({"TMPDIR": "/local", "XDG_CACHE_HOME": "/cache"}, "/cache"),
        ({"SLURM_JOB_ID": "7"}, "/home/me/.cache"),
        ({"SLURM_JOB_ID": "7", "TMPDIR": "/local", "XDG_CACHE_HOME": "/cache"}, "/local"),
        ({"SLURM_JOB_ID": "7", "SLURM_TMPDIR": "/node", "TMPDIR": "/local"}, "/node"),
    ],
)
def test_the_cache_is_on_the_nodes_own_disk_under_slurm(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("XDG_CACHE_HOME", "TMPDIR", "SLURM_TMPDIR", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert ShardStore(RemoteConfig()).cache == Path(expected) / "clip-med/shards"
    assert ShardStore(RemoteConfig(cache=Path("/own"))).cache == Path("/own")
