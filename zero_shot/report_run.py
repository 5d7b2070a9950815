"""What a report was made from and with: command, configuration, digests of model and data, versions."""

from __future__ import annotations

import hashlib
import html
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from clip_med.config import config_hash, dump_yaml
from clip_med.data.shards import ShardSet
from zero_shot.config import EvalConfig
from zero_shot.report_page import facts


@dataclass(frozen=True, kw_only=True)
class WhatWasRun:
    """Names and values for people to read, and the resolved configuration as YAML."""

    facts: tuple[tuple[str, str], ...]
    config: str


def what_was_run(folder: Path, config: EvalConfig, *, device: str) -> WhatWasRun:
    """Reads the weights of the model folder once, for their digest."""
    from clip_med.training.run_folder import environment

    around = environment()
    found = [
        ("command", shlex.join(["clip-med", *around["command"][1:]])),
        ("model", str(folder)),
        *((f"SHA-256 of {path.name}", _digest(path)) for path in sorted(folder.glob("*.safetensors"))),
    ]
    for location in dict.fromkeys(task.shards for task in config.tasks):
        shards = ShardSet.open(location)
        found.append((f"data {location}", f"{len(shards):,} samples in {len(shards.shards)} shards, {shards.digest}"))
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items())
    found += [
        ("configuration", f"hash {config_hash(config)}, seed {config.seed}, encoded in {config.precision}"),
        ("code", around["git"]),
        ("versions", f"Python {around['python']}, {versions}"),
        ("machine", f"{around['platform']}, on {device}" + "".join(f", {name}" for name in around["devices"])),
        ("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
    ]
    return WhatWasRun(facts=tuple(found), config=dump_yaml(config))


def section(run: WhatWasRun) -> str:
    """The facts as a list, and the configuration folded away."""
    yaml = f"<details><summary>resolved configuration</summary><pre>{html.escape(run.config)}</pre></details>"
    return facts(run.facts) + yaml


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["WhatWasRun", "section", "what_was_run"]
