"""What the documentation shows as configuration is configuration."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from clip_med.config import validate
from clip_med.pretrain import PretrainConfig

DOCS = Path(__file__).parents[1] / "docs"


def test_the_yaml_of_the_data_page_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "data.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    config = validate(PretrainConfig, {"model": {"kind": "vit"}, **yaml.safe_load(blocks[0])})
    assert [source.name for source in config.sources] == ["pmc", "cxr"]


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
