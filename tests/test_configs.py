"""Every shipped configuration loads and says what it is for; those that need no data build their model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from clip_med.cli import build_parser
from clip_med.commands.config import config_class
from clip_med.config import configs_root, load_config
from clip_med.models.config import TwoTowerModel
from clip_med.models.folder import build_model
from clip_med.pretrain import PretrainConfig
from clip_med.prompt_learning.tune_config import TuneConfig
from clip_med.training.knowledge_text import KnowledgeTextConfig
from clip_med.training.optim import learning_rate
from slurm.job import JobSpec
from tests.tiny_run import TINY
from zero_shot.config import ClassificationTask, EvalConfig
from zero_shot.suite import evaluate

SHIPPED = sorted(configs_root().rglob("*.yaml"))


def test_the_number_of_configurations_is_known() -> None:
    assert [str(path.relative_to(configs_root())) for path in SHIPPED] == [
        "eval/biomedcoop11.yaml",
        "eval/corpus.yaml",
        "eval/medmnist.yaml",
        "knowledge/minilm.yaml",
        "pretrain/corpus_devide.yaml",
        "pretrain/corpus_flair.yaml",
        "pretrain/corpus_kad.yaml",
        "pretrain/corpus_keep.yaml",
        "pretrain/corpus_lora.yaml",
        "pretrain/corpus_medclip.yaml",
        "pretrain/corpus_small.yaml",
        "pretrain/corpus_unimed_clip.yaml",
        "pretrain/corpus_vit.yaml",
        "pretrain/demo.yaml",
        "pretrain/devide.yaml",
        "pretrain/flair.yaml",
        "pretrain/kad.yaml",
        "pretrain/keep.yaml",
        "pretrain/medclip.yaml",
        "pretrain/unimed_clip.yaml",
        "slurm/cpu.yaml",
        "slurm/gpu.yaml",
        "slurm/local.yaml",
        "slurm/preemptible.yaml",
        "tune/busi.yaml",
        "tune/corpus_a.yaml",
        "tune/corpus_b.yaml",
        "tune/corpus_vit_a.yaml",
        "tune/corpus_vit_b.yaml",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_it_loads_and_has_a_header(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert len(header) >= 3
    assert any("Command: clip-med " in line for line in header)
    loaded = load_config(config_class(path), path)
    assert isinstance(loaded, PretrainConfig | EvalConfig | JobSpec | KnowledgeTextConfig | TuneConfig)
    if isinstance(loaded, PretrainConfig):
        # The schedule fits runs of the data that the header names (7,000 images or more).
        samples = loaded.train.total_steps(7000) * loaded.train.batch_size
        assert learning_rate(0, samples, loaded.train.optim, loaded.train.schedule) >= 0


def test_the_demo_model_builds() -> None:
    assert build_model(load_config(PretrainConfig, "pretrain/demo").model).preprocess.size == 96


def test_the_corpus_model_builds(shared_models: Path, minilm: Path) -> None:
    config = load_config(PretrainConfig, "pretrain/corpus_small").model
    assert isinstance(config, TwoTowerModel)
    weights = shared_models / "tf_efficientnet_lite0.safetensors"
    import dataclasses

    encoder = build_model(dataclasses.replace(config, image=dataclasses.replace(config.image, weights=weights)))
    assert encoder.preprocess.mean == (0.498, 0.498, 0.498)


@pytest.mark.parametrize("name", ["biomedcoop11", "medmnist"])
def test_the_lines_above_its_tasks_make_the_shards_of_a_public_suite(name: str) -> None:
    path = configs_root() / f"eval/{name}.yaml"
    config = load_config(EvalConfig, path)
    lines = re.findall(
        r"  # (?:[\d,]+ test images: )?(clip-med data .*\n(?:  #   .*\n)*)  - kind", path.read_text("utf-8")
    )
    assert len(lines) == len(config.tasks) == 11
    for line, task in zip(lines, config.tasks, strict=True):
        options = build_parser().parse_args(shlex.split(line.replace("\n  #", ""))[1:])
        assert task.shards == f"{options.out}/test"
        assert options.dataset == task.name
        assert isinstance(task, ClassificationTask)
        if name == "medmnist":
            assert list(task.prompts.classes) == options.classes


def test_a_public_suite_without_its_shards_names_what_is_missing(tmp_path: Path) -> None:
    config = load_config(EvalConfig, configs_root() / "eval/medmnist.yaml")
    with pytest.raises(ValueError, match="shards/pathmnist/test: no such directory"):
        evaluate(build_model(TINY), config)
