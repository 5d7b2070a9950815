"""Steps with what knowledge adds to the loss: by chunks and by two ranks they have the gradients of the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models.tiny_bert import write_bert
from tests.rank_server import RankServer
from tests.training import rank_work
from tests.training.knowledge_terms import KINDS, step_gradients

TOWERS = ("visual.conv1.weight", "text_projection")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return write_bert(tmp_path_factory.mktemp("terms") / "bert", weights=True)


@pytest.fixture(scope="module")
def by_ranks(bert: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions and labels that belong together, and images that take part, lie unequally on the ranks."""
    out = tmp_path_factory.mktemp("two")
    assert ranks.results(2, rank_work.knowledge_steps, str(bert), str(out)) == [len(KINDS)] * 2
    return out


def test_tiles_of_the_alignment_change_nothing(bert: Path) -> None:
    (loss, whole), (tiled, other) = (step_gradients(bert, kind=kind) for kind in ("align", "align in tiles"))
    assert tiled == pytest.approx(loss, abs=1e-12)
    for name, value in whole.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_two_ranks_give_the_gradients_of_the_batch(bert: Path, by_ranks: Path, kind: str) -> None:
    loss, whole = step_gradients(bert, kind=kind)
    chunked, chunks = step_gradients(bert, micro_batch=2, kind=kind)
    # The knowledge encoder of the alignment is fp32.
    within = 1e-7 if kind.startswith("align") else 1e-12
    assert chunked == pytest.approx(loss, abs=within)
    for other in (chunks, load_file(by_ranks / kind)):
        assert other.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=within, msg=name)
    # The term has a part in it.
    plain = step_gradients(bert, kind=kind, weight=1e-9)[1]
    moved = {name for name in TOWERS if (whole[name] - plain[name]).abs().max() > 1e-6}
    # The alignment divides the contrastive loss, and so the gradients of the image tower too.
    assert moved == ({TOWERS[0]} if kind in ("prototypes", "facets", "queries") else set(TOWERS))
    for name in set(TOWERS) - moved:
        torch.testing.assert_close(whole[name], plain[name], rtol=0, atol=1e-12)
    assert ("queries/decoder.layers.1.norm1.weight" in whole) == (kind in ("queries", "facets and captions"))
    assert ("facets/change" in whole) == kind.startswith("facets")
