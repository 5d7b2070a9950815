"""Distillation in training: the teacher's own tokenizer and normalisation, what is refused, and ranks against one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_med.config import dump_yaml, load_config
from clip_med.data.batch import Batch
from clip_med.models.config import FolderModel, HFTower, LoRAConfig, OpenClipModel, TimmTower, TwoTowerModel
from clip_med.models.folder import build_model, load_folder, save_folder
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.metrics_log import read_metrics
from clip_med.training.teacher import DistillConfig, Teacher
from tests.models.tiny_bert import write_bert
from tests.rank_server import RankServer
from tests.tiny_run import TINY, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = ("left effusion", "a small nodule", "right lung", "upper lobe")


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Wider than the student, with another tokenizer and normalisation."""
    torch.manual_seed(5)
    image = TimmTower(name="test_efficientnet", image_size=32, mean=(0.1, 0.2, 0.3))
    text = HFTower(path=str(write_bert(tmp_path / "bert")), pretrained=False, context_length=40)
    save_folder(build_model(TwoTowerModel(image=image, text=text, embed_dim=24)), tmp_path / "teacher")
    return tmp_path / "teacher"


def batch() -> Batch:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(
        images=images,
        tokens=None,
        captions=CAPTIONS,
        keys=("a", "b", "c", "d"),
        modalities=("CT",) * 4,
        indices=torch.arange(4),
        group_ids=torch.full((4, 1), -1),
        bad=(),
        position=0,
    )


def test_the_teacher_sees_by_its_own_eyes(teacher: Path) -> None:
    student = build_model(TINY)
    called = Teacher(DistillConfig(teacher=FolderModel(path=teacher), weight=0.25), student, "fp32")
    alone = load_folder(teacher).eval()
    with torch.no_grad():
        expected = alone.encode_image(batch().images), alone.encode_text(alone.tokenize(CAPTIONS))
    for got, value in zip(called.features(batch()), expected, strict=True):
        assert torch.equal(got, value)
    assert not any(p.requires_grad for p in called.encoder.parameters())
    assert not any(module.training for module in called.encoder.modules())
    # A student with the teacher's features and scale is left with the contrastive loss alone.
    scale = alone.logit_scale.detach()
    total = called(torch.tensor(2.0), batch(), *expected, scale)
    assert total.item() == pytest.approx(0.75 * 2.0, abs=1e-6)
    other = called(torch.tensor(2.0), batch(), expected[0].flip(0), expected[1], scale)
    assert other.item() > 1.5 + 1e-4


def test_teachers_that_do_not_fit_are_refused(teacher: Path) -> None:
    student = build_model(dataclasses.replace(TINY, image_size=64))
    with pytest.raises(ValueError, match=r"distill.teacher takes images of 32 x 32, the model of 64 x 64"):
        Teacher(DistillConfig(teacher=FolderModel(path=teacher)), student, "fp32")
    with pytest.raises(ValueError, match="teacher ViT-B-32 needs pretrained weights"):
        DistillConfig(teacher=OpenClipModel(name="ViT-B-32"))


def test_a_student_learns_the_teachers_similarities(shards: Path, teacher: Path, tmp_path: Path) -> None:
    """With the whole weight on distillation, the divergence falls; the run is deterministic."""
    config = tiny_config(shards, samples=160, optim=dataclasses.replace(tiny_config(shards).train.optim, lr=5e-3))
    config = dataclasses.replace(config, distill=DistillConfig(teacher=FolderModel(path=teacher), weight=1.0))
    pretrain(config, tmp_path / "run")
    pretrain(config, tmp_path / "again")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert losses == [line["loss"] for line in read_metrics(tmp_path / "again" / "metrics.jsonl") if "loss" in line]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


@pytest.mark.slow
def test_two_ranks_with_adapters_and_a_teacher_train_the_model_of_one(
    ranks: RankServer, shards: Path, teacher: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        tiny_config(shards, samples=48, lock_image="trunk", lock_text="trunk"),
        lora=LoRAConfig(rank=2),
        distill=DistillConfig(teacher=FolderModel(path=teacher)),
    )
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    pretrain(config, tmp_path / "one", device="cpu")
    assert ranks.results(2, train_by_file, str(tmp_path / "c.yaml"), str(tmp_path / "two")) == [6, 6]
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert one.keys() == two.keys()
    assert sum(".lora_" in name for name in one) == 8
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=name)
    assert max(float(value.abs().max()) for name, value in one.items() if name.endswith("lora_b")) > 2e-3


def train_by_file(config: str, run: str) -> None:
    """What a rank does; prints the step reached."""
    print(json.dumps(pretrain(load_config(PretrainConfig, config), Path(run), device="cpu").step))


def trained(run: Path) -> dict[str, Tensor]:
    return load_file(run / json.loads((run / "latest.json").read_text())["checkpoint"] / "model/lora.safetensors")
