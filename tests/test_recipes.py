"""Every recipe and its small twin builds and trains 20 steps, on phantoms and with tiny towers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from clip_med.config import configs_root, load_config
from clip_med.data.shard_writer import ShardWriter
from clip_med.knowledge.modalities import known_finding
from clip_med.knowledge.prompts import ClassPrompts, render_prompts
from clip_med.models.config import TwoTowerModel
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.config import ScheduleConfig
from data_prep.phantoms.tables import assigned
from data_prep.phantoms.write import phantom_sample
from tests.models.tiny_bert import write_bert

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPES = ("unimed_clip", "flair", "keep", "devide", "medclip", "kad")
STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of skin, whose labels the base knows, with a caption of knowledge; and a tiny text tower."""
    root = tmp_path_factory.mktemp("recipes")
    torch.manual_seed(0)
    write_bert(root / "bert", weights=True)
    written = 0
    with ShardWriter(root / "shards") as writer:
        for index in (i for i in range(400) if assigned(i, "train")[0] == "dermoscopy"):
            sample = phantom_sample(index, "train", size=32)
            finding = known_finding(sample.labels[0], sample.modality)
            if finding is not None:
                captions = (f"Dermoscopy: {sample.labels[0]}.", finding.descriptions.appearance[0])
                writer.add(dataclasses.replace(sample, captions=captions, caption_kinds=("other", "knowledge")))
                written += 1
    assert written >= 32
    return root


def tiny(config: PretrainConfig, root: Path) -> PretrainConfig:
    """The same recipe with towers that a test can bear; everything else that it says stays."""
    model = config.model
    assert isinstance(model, TwoTowerModel)
    image = dataclasses.replace(
        model.image, name="test_efficientnet", image_size=32, pretrained=False, weights=None, mean=None, std=None
    )
    text = dataclasses.replace(model.text, path=str(root / "bert"), context_length=16)
    model = dataclasses.replace(model, image=image, text=text, embed_dim=16)
    train = dataclasses.replace(
        config.train,
        samples=8 * STEPS,
        epochs=None,
        batch_size=8,
        log_every_steps=1,
        schedule=ScheduleConfig(warmup_samples=16),
        # bf16 and its convolutions take ten times as long on old CPUs.
        precision="fp32",
        channels_last=False,
    )
    loader = dataclasses.replace(config.loader, workers=0)
    queries, facets = config.queries, config.facets
    classes = {label: (label,) for label in ("melanoma", "melanocytic naevus")}
    for head in (queries, facets):
        # Their own classes are known to the base; the phantoms have others.
        assert head is None or len(render_prompts(head.prompts)) >= 14
    assert sum(len(render_prompts(one.prompts)) for one in config.prototypes) in (0, 24)
    if queries is not None:
        prompts = ClassPrompts(classes=classes)
        queries = dataclasses.replace(queries, text=text, prompts=prompts, width=16, layers=1)
    if facets is not None:
        assert facets.prompts.knowledge is not None
        told = dataclasses.replace(facets.prompts.knowledge, modality="dermoscopy")
        facets = dataclasses.replace(facets, prompts=ClassPrompts(classes=classes, knowledge=told))
    prototypes = tuple(
        dataclasses.replace(one, prompts=ClassPrompts(classes=classes, knowledge=one.prompts.knowledge))
        for one in config.prototypes[:1]
    )
    config = dataclasses.replace(config, model=model, train=train, loader=loader)
    config = dataclasses.replace(config, queries=queries, facets=facets, prototypes=prototypes)
    return dataclasses.replace(config, shards=(str(root / "shards"),), sources=())


@pytest.mark.parametrize("name", [*RECIPES, *(f"corpus_{name}" for name in (*RECIPES, "k2sight"))])
def test_it_trains_twenty_steps(name: str, data: Path, tmp_path: Path) -> None:
    config = load_config(PretrainConfig, f"pretrain/{name}")
    said: list[str] = []
    summary = pretrain(tiny(config, data), tmp_path / "run", device="cpu", on_start=said.append)
    assert summary.finished
    assert summary.step == STEPS
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))
    for begins, part in (
        ("descriptions of", config.describe),
        ("facets of 2 classes", config.facets),
        ("queries of 2 classes", config.queries),
        ("prototypes of 2 classes", config.prototypes or None),
    ):
        assert any(line.startswith(begins) for line in said) == (part is not None)


@pytest.mark.parametrize("name", RECIPES)
def test_its_header_says_what_is_reproduced_what_deviates_and_which_data(name: str) -> None:
    header = (configs_root() / "pretrain" / f"{name}.yaml").read_text(encoding="utf-8")
    for word in ("Reproduced:", "Deviates:", "Data:", "Hardware:", "not run by us"):
        assert word in header
