"""Disease queries in training: the loss against NumPy, chunks, two ranks, a run that is continued, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_med.cli import main
from clip_med.data.loader import LoaderConfig
from clip_med.knowledge.prompts import ClassPrompts
from clip_med.losses.queries import query_loss
from clip_med.models.compute_config import ComputeConfig
from clip_med.models.folder import load_folder, resolve_folder
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.config import FSDPConfig
from clip_med.training.metrics_log import read_metrics
from clip_med.training.queries import QueryConfig
from tests.labelled_shards import write_labelled
from tests.models.tiny_bert import write_bert
from tests.slopes import assert_slopes
from tests.tiny_run import final_tensors, signal_at, tiny_config
from tests.training.knowledge_terms import tower

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return write_bert(tmp_path_factory.mktemp("queries") / "bert", weights=True)


def reference(z: np.ndarray, present: np.ndarray) -> float:
    share = 1 / (1 + np.exp(-z))
    each = -np.where(present, np.log(share), np.log(1 - share)).mean(1)
    return float(each[present.any(1)].mean())


def test_value_and_gradient_are_those_of_the_reference() -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    present = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]]).bool()
    value = query_loss(z, present)
    plain = z.detach().numpy()
    assert value.item() == pytest.approx(reference(plain, present.numpy()), abs=1e-12)
    value.backward()
    places = [(0, 0), (0, 2), (1, 1), (2, 1), (3, 2)]
    assert_slopes(lambda moved: reference(moved, present.numpy()), [z], [places], within=1e-8)
    assert z.grad is not None
    assert z.grad[1].abs().max() == 0  # an image without a class
    # KAD's two-way softmax over (absent, present) has the same value.
    two = torch.stack([torch.zeros_like(z), z], dim=-1)[present.any(1)].flatten(0, 1)
    softmax = torch.nn.functional.cross_entropy(two, present[present.any(1)].long().flatten())
    assert softmax.item() == pytest.approx(value.item(), abs=1e-12)


@pytest.fixture(scope="module")
def config(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    shards = write_labelled(tmp_path_factory.mktemp("queried") / "shards")
    classes = {"cyst": ("left effusion",), "mass": ("a small nodule",), "normal": ("right lung",)}
    asked = QueryConfig(
        text=tower(bert), prompts=ClassPrompts(classes=classes), width=16, layers=1, heads=2, feed_forward=32
    )
    return dataclasses.replace(tiny_config(shards), loader=LoaderConfig(workers=0, positives="label"), queries=asked)


def test_a_run_counts_learns_and_goes_on_where_it_was_stopped(config: PretrainConfig, tmp_path: Path) -> None:
    said: list[str] = []
    pretrain(config, tmp_path / "whole", device="cpu", on_start=said.append)
    (line,) = [line for line in said if line.startswith("queries of 3 classes")]
    assert "24 of 24 samples (cyst 12, mass 8, normal 4)" in line
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])

    assert pretrain(config, tmp_path / "parts", device="cpu", on_step=signal_at(5)).stopped_by == "SIGTERM"
    assert pretrain(config, tmp_path / "parts", device="cpu").started_at_step in (5, 6)
    whole = final_tensors(tmp_path / "whole")
    assert final_tensors(tmp_path / "parts") == whole
    assert {"model/queries/answer.weight", "state/optimizer/queries/answer.weight/exp_avg"} <= whole.keys()
    # Usable afterwards, from the run and from an exported folder.
    assert main(["export", str(tmp_path / "whole"), str(tmp_path / "model")]) == 0
    for folder in (tmp_path / "whole", tmp_path / "model"):
        decoder = load_folder(resolve_folder(folder)).queries
        assert decoder is not None
        assert [(one.label, one.texts) for one in decoder.classes][:2] == [
            ("cyst", ("left effusion",)),
            ("mass", ("a small nodule",)),
        ]
        assert decoder.answer.weight.detach().numpy().tobytes() == whole["model/queries/answer.weight"]


def test_what_does_not_go_with_queries_is_refused_by_name(config: PretrainConfig) -> None:
    for changes, match in (
        ({"parallel": FSDPConfig()}, "train.parallel.kind: fsdp: heads are kept whole"),
        ({"precision": "pure_bf16"}, "train.precision: pure_bf16"),
        ({"compute": ComputeConfig(compile=True)}, "train.compute.compile"),
        ({"compute": ComputeConfig(pooled_last_block=True)}, "train.compute.pooled_last_block"),
    ):
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
    with pytest.raises(ValueError, match="positives: label"):
        dataclasses.replace(config, loader=LoaderConfig(workers=0))
    assert config.queries is not None
    with pytest.raises(ValueError, match=r"must be a multiple of queries\.heads"):
        dataclasses.replace(config.queries, width=10, heads=4)
    with pytest.raises(ValueError, match="know nothing"):
        dataclasses.replace(config.queries, text=dataclasses.replace(config.queries.text, pretrained=False))
