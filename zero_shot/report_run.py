"""What a report was made from and with: command, configuration, digests of model and data, versions."""

from __future__ import annotations

import html
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_med.config import config_hash, dump_yaml
from clip_med.data.shard_index import sha256_of
from clip_med.data.shards import ShardSet
from zero_shot.config import EvalConfig
from zero_shot.report_page import facts
from zero_shot.scores import SUFFIX


@dataclass(frozen=True, kw_only=True)
class WhatWasRun:
    """Names and values for people to read, and the resolved configuration as YAML."""

    facts: tuple[tuple[str, str], ...]
    config: str


def what_was_run(
    models: Mapping[str, Path],
    configs: Sequence[EvalConfig],
    *,
    settings: Sequence[tuple[str, str]],
    timed: bool = True,
) -> WhatWasRun:
    """What stands behind the numbers of one or several models; reads their weights once, for the digests.

    Args:
        models: name to model folder (or open_clip:NAME:WEIGHTS), or to a folder of scores.
        settings: what else the numbers depend on, such as a seed.
        timed: False leaves the time out, so that equal commands give equal bytes.
    """
    from clip_med.models.open_clip_names import is_named, weights_of
    from clip_med.models.weights import PICKLED_NAME
    from clip_med.training.run_folder import environment

    around = environment()
    found = [
        ("command", shlex.join(["clip-med", *around["command"][1:]])),
    ]
    for name, folder in models.items():
        found.append((name, str(folder)))
        kept = sorted([*folder.glob("*.safetensors"), *folder.glob(PICKLED_NAME), *folder.glob(f"*{SUFFIX}")])
        files = [weights_of(folder)] if is_named(folder) else kept
        found += [(f"SHA-256 of {path.name}", sha256_of(path)) for path in files]
    for location in dict.fromkeys(task.shards for config in configs for task in config.tasks):
        shards = ShardSet.open(location)
        found.append((f"data {location}", f"{len(shards):,} samples in {len(shards.shards)} shards, {shards.digest}"))
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items())
    found += [
        *(
            ("configuration", f"hash {config_hash(own)}, seed {own.seed}, encoded in {own.precision}")
            for own in configs
        ),
        *settings,
        ("code", around["git"]),
        ("versions", f"Python {around['python']}, {versions}"),
        ("machine", around["platform"] + "".join(f", {name}" for name in around["devices"])),
    ]
    if timed:
        found.append(("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())))
    return WhatWasRun(facts=tuple(found), config="---\n".join(map(dump_yaml, configs)))


def section(run: WhatWasRun) -> str:
    """The facts as a list, and the configuration folded away."""
    if not run.config:
        return facts(run.facts)
    yaml = f"<details><summary>resolved configuration</summary><pre>{html.escape(run.config)}</pre></details>"
    return facts(run.facts) + yaml


__all__ = ["WhatWasRun", "section", "what_was_run"]
