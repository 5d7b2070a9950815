"""Parts of tensors: written by some ranks, read by others, and refused when they are not what they should be."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_med.training.tensor_parts import read_parts, stored_tensors, take_part
from tests.rank_server import RankServer
from tests.training import rank_work


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("written_by", [1, 2, 4])
def test_parts_fit_any_number_of_ranks(ranks: RankServer, tmp_path: Path, written_by: int, sharded: bool) -> None:
    files = ranks.results(written_by, rank_work.write_part, str(tmp_path / "parts"), sharded)
    assert all(len(own) == 1 for own in files)  # every rank writes a share, of replicated tensors too
    for read_by, into_sharded in ((1, False), (2, True), (4, True), (2, False)):
        assert ranks.results(read_by, rank_work.read_part, str(tmp_path / "parts"), into_sharded) == [5] * read_by


def parts(folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(2.0)}
    part = take_part(tensors)
    tensors["b"].fill_(9.0)  # a part is a copy: training goes on
    part.write(folder)
    return tensors


def test_one_process_writes_contiguous_copies(tmp_path: Path) -> None:
    tensors = parts(tmp_path / "parts")
    assert stored_tensors(tmp_path / "parts") == {
        "a": (torch.Size((3, 2)), torch.float32),
        "b": (torch.Size(()), torch.float32),
    }
    into = {"a": torch.zeros(3, 2), "b": torch.zeros(())}
    read_parts(tmp_path / "parts", into)
    assert torch.equal(into["a"], tensors["a"])
    assert float(into["b"]) == 2.0


def test_what_is_absent_or_of_another_shape_is_named(tmp_path: Path) -> None:
    parts(tmp_path / "parts")
    with pytest.raises(ValueError, match="holds no c"):
        read_parts(tmp_path / "parts", {"c": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"a is \(3, 2\), expected \(2, 3\)"):
        read_parts(tmp_path / "parts", {"a": torch.zeros(2, 3)})


class Payload:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_pickled_metadata_file_is_not_read(tmp_path: Path) -> None:
    """DCP's default storage would unpickle it (measured with torch 2.15: our command ran)."""
    parts(tmp_path / "parts")
    (tmp_path / "parts/.metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    read_parts(tmp_path / "parts", {"b": torch.zeros(())})
    (tmp_path / "parts/shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no b"):
        read_parts(tmp_path / "parts", {"b": torch.zeros(())})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("sharding", "said"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"a": {"saved_offsets": "x"}, "b": {"saved_offsets": []}}', "damaged"),
        ('{"a": {"saved_offsets": [1000000000000, 0]}, "b": {"saved_offsets": []}}', "one is missing"),
        ('{"a": {"saved_offsets": [-1, 0]}, "b": {"saved_offsets": []}}', "one is missing"),
        (json.dumps({"b": {"saved_offsets": []}}), "damaged"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, sharding: str, said: str) -> None:
    parts(tmp_path / "parts")
    [file] = (tmp_path / "parts").iterdir()
    save_file(load_file(file), file, metadata={"DCP_SHARDING_INFO": sharding})
    with pytest.raises(ValueError, match=said):
        read_parts(tmp_path / "parts", {"a": torch.zeros(3, 2)})


@pytest.mark.parametrize("content", [b"", b"\x80pickle", b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_files_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged, or no parts written by clip-med"):
        stored_tensors(tmp_path)
