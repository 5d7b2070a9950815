"""Every shipped configuration loads and says what it is for; those that need no data build their model."""

from __future__ import annotations

import argparse
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
from zero_shot.config import ClassificationTask, EvalConfig, MultiLabelTask
from zero_shot.suite import evaluate

SHIPPED = sorted(configs_root().rglob("*.yaml"))


def test_the_number_of_configurations_is_known() -> None:
    assert [str(path.relative_to(configs_root())) for path in SHIPPED] == [
        "eval/biomedcoop11.yaml",
        "eval/chexpert5.yaml",
        "eval/corpus.yaml",
        "eval/medmnist.yaml",
        "eval/unimed21.yaml",
        "knowledge/minilm.yaml",
        "pretrain/corpus_devide.yaml",
        "pretrain/corpus_flair.yaml",
        "pretrain/corpus_k2sight.yaml",
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


def shard_commands(name: str) -> list[argparse.Namespace]:
    """The options of the commands that stand above tasks of a suite."""
    lines = re.findall(
        r"  # (?:[\d,]+ test images: )?(clip-med data .*\n(?:  #   .*\n)*)  - kind",
        (configs_root() / f"eval/{name}.yaml").read_text("utf-8"),
    )
    return [build_parser().parse_args(shlex.split(line.replace("\n  #", ""))[1:]) for line in lines]


@pytest.mark.parametrize(("name", "count"), [("biomedcoop11", 11), ("medmnist", 11), ("unimed21", 21)])
def test_the_lines_above_its_tasks_make_the_shards_of_a_public_suite(name: str, count: int) -> None:
    config = load_config(EvalConfig, configs_root() / f"eval/{name}.yaml")
    commands = shard_commands(name)
    assert len(commands) == len(config.tasks) == count
    for options, task in zip(commands, config.tasks, strict=True):
        split = "Test" if getattr(options, "split_column", None) == ["set"] else "test"
        assert task.shards == f"{options.out}/{split}"
        assert options.dataset == task.name
        assert isinstance(task, ClassificationTask)
        if name == "medmnist":
            assert list(task.prompts.classes) == options.classes
        if columns := getattr(options, "finding_columns", []):
            assert list(task.prompts.classes) == columns


def test_chexpert_has_a_table_of_its_own_and_every_finding_has_its_pair() -> None:
    config = load_config(EvalConfig, configs_root() / "eval/chexpert5.yaml")
    (options,) = shard_commands("chexpert5")
    for task in config.tasks:
        assert isinstance(task, MultiLabelTask)
        assert task.shards == f"{options.out}/{options.split}"
        assert set(task.prompts.classes) < set(options.finding_columns)
        present, absent = task.present_texts(), task.absent_texts()
        assert len(present) == len(absent) == 5
        for label, texts in present.items():
            assert texts
            assert absent[label]
            assert not set(texts) & set(absent[label])
    pairs, statements = config.tasks
    assert isinstance(pairs, MultiLabelTask)
    assert pairs.absent_texts()["Edema"] == ("no edema",)
    assert isinstance(statements, MultiLabelTask)
    assert "There is interstitial oedema." in statements.present_texts()["Edema"]


def test_a_public_suite_without_its_shards_names_what_is_missing(tmp_path: Path) -> None:
    config = load_config(EvalConfig, configs_root() / "eval/medmnist.yaml")
    with pytest.raises(ValueError, match="shards/pathmnist/test: no such directory"):
        evaluate(build_model(TINY), config)
