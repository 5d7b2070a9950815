"""`clip-med config`: resolved configurations and the list of those that are shipped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clip_med.commands.printing import as_json


def add_parser(commands: Any) -> None:
    """Add `config show` and `config list`."""
    parser = commands.add_parser("config", help="show and list configurations")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="print a configuration with every default and override filled in",
        epilog="example: clip-med config show pretrain/demo --train.batch-size 64",
        allow_abbrev=False,
    )
    show.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, or the name of a shipped one")
    show.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    show.set_defaults(call=_show, takes_overrides=True)
    listing = actions.add_parser("list", help="list the shipped configurations with their first line")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(call=_list)


def _show(arguments: argparse.Namespace) -> int:
    from clip_med.config import config_hash, dump_yaml, load_config, to_plain

    loaded = load_config(config_class(arguments.config), arguments.config, arguments.overrides)
    if arguments.json:
        print(as_json({"hash": config_hash(loaded), "config": to_plain(loaded)}))
    else:
        print(f"# {config_hash(loaded)}")
        print(dump_yaml(loaded), end="")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from clip_med.config import configs_root

    root = configs_root()
    lines = {
        str(path.relative_to(root).with_suffix("")): path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        for path in sorted(root.rglob("*.yaml"))
    }
    if arguments.json:
        print(as_json(lines))
    else:
        width = max(map(len, lines), default=0)
        for name, line in lines.items():
            print(f"{name:<{width}}  {line}")
    return 0


def config_class(path: Path | str) -> type[Any]:
    """The class of a file: with `methods` a few-shot grid, with `tasks` alone an evaluation, with `nodes` a Slurm job,
    with `text` a text tower to be trained on knowledge, any other a pretraining run."""
    from clip_med.config import find_config
    from clip_med.config.yaml_source import read_yaml

    values = read_yaml(find_config(path)).values
    if isinstance(values, dict) and "methods" in values:
        from clip_med.prompt_learning.tune_config import TuneConfig

        return TuneConfig
    if isinstance(values, dict) and "tasks" in values:
        from zero_shot.config import EvalConfig

        return EvalConfig
    if isinstance(values, dict) and "nodes" in values:
        from slurm.job import JobSpec

        return JobSpec
    if isinstance(values, dict) and "text" in values:
        from clip_med.training.knowledge_text import KnowledgeTextConfig

        return KnowledgeTextConfig
    from clip_med.pretrain import PretrainConfig

    return PretrainConfig


__all__ = ["add_parser", "config_class"]
