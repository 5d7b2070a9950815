"""What the documentation shows as configuration is configuration."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from clip_med.cli import build_parser
from clip_med.config import validate
from clip_med.knowledge.lint import lint
from clip_med.knowledge.load import load_base, read_sources
from clip_med.pretrain import PretrainConfig
from zero_shot.config import EvalConfig
from zero_shot.vqa_questions import read_questions

DOCS = Path(__file__).parents[1] / "docs"


def test_the_yaml_of_the_data_page_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "data.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    config = validate(PretrainConfig, {"model": {"kind": "vit"}, **yaml.safe_load(blocks[0])})
    assert [source.name for source in config.sources] == ["pmc", "cxr"]


def test_the_yaml_and_the_commands_of_the_adaptation_page_are_valid() -> None:
    page = (DOCS / "adaptation.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    configs = [validate(PretrainConfig, yaml.safe_load(block)) for block in blocks]
    assert len(configs) == 5
    assert [config.lora is not None for config in configs] == [False, False, True, False, False]
    assert [config.distill is not None for config in configs] == [False, False, False, True, False]
    commands = re.findall(r"^clip-med (.*)$", page, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        build_parser().parse_args(shlex.split(command, comments=True))


def test_the_format_and_the_commands_of_the_knowledge_page_are_valid(tmp_path: Path) -> None:
    page = (DOCS / "knowledge.md").read_text()
    block, *rest = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "ours.yaml").write_text(block)
    assert lint(read_sources([tmp_path / "ours.yaml"]), known=load_base()) == []
    documents = [yaml.safe_load(text) for text in rest]
    tasks = [one for one in documents if "shards" in one]
    assert [task["kind"] for task in tasks] == ["classification", "multi_label"]
    for task in tasks:
        validate(EvalConfig, {"tasks": [task]})
    whole = {"model": {"kind": "vit"}, "shards": ["s"], "train": {"epochs": 1}}
    configs = [validate(PretrainConfig, {**whole, **one}) for one in documents if "shards" not in one]
    parts = ("describe", "align", "prototypes", "facets", "queries")
    given = [[part for part in parts if getattr(config, part)] for config in configs]
    assert given == [[part] for part in parts]
    commands = re.findall(r"^clip-med ([^#\n]*)", page, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        build_parser().parse_args(shlex.split(command, comments=True))


def test_the_commands_of_the_explanation_and_robustness_pages_parse() -> None:
    for name, count in (("explanation.md", 3), ("robustness.md", 2)):
        commands = re.findall(r"^clip-med (.*)$", (DOCS / name).read_text(), re.MULTILINE)
        assert len(commands) == count
        for command in commands:
            build_parser().parse_args(shlex.split(command, comments=True))


def test_the_commands_and_questions_of_the_evaluation_page_are_valid(tmp_path: Path) -> None:
    page = (DOCS / "evaluation.md").read_text()
    commands = re.findall(r"^clip-med (.*)$", page, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        build_parser().parse_args(shlex.split(command))
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "questions.json").write_text(block)
    (question,) = read_questions(tmp_path / "questions.json")
    assert question.options[question.answer] == "kidney"


def test_the_files_that_the_pages_name_exist() -> None:
    named = {
        path
        for page in DOCS.glob("*.md")
        for path in re.findall(
            r"`((?:clip_med|tests|data_prep|zero_shot|slurm|configs)/[\w/]+\.(?:py|yaml))`", page.read_text()
        )
    }
    assert len(named) >= 15
    assert [path for path in sorted(named) if not (DOCS.parent / path).is_file()] == []


def test_the_commands_of_the_data_preparation_page_parse() -> None:
    page = (DOCS / "data_prep.md").read_text()
    commands = re.findall(r"(?:^|`)clip-med (data [^`\n]*)", page, re.MULTILINE)
    assert len(commands) >= 9
    for command in commands:
        build_parser().parse_args(shlex.split(command, comments=True))
