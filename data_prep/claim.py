"""A folder of generated shards belongs to one source and one set of settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_med.data.shard_index import write_atomically


def claim_folder(out: Path, marker: str, ours: Mapping[str, Any]) -> None:
    """Mark an empty folder with the settings that fill it, or check that they are the same.

    Raises:
        ValueError: the folder holds something else, or was filled with other settings (naming which).
    """
    file = out / marker
    if file.exists():
        theirs = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name in ours if theirs.get(name) != ours[name]]
        if different:
            raise ValueError(
                f"{out}: holds shards made with other settings ({', '.join(different)} differ); "
                "choose another folder or remove it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    # A kill in the middle of the line below leaves its temporary file.
    if any(not path.name.startswith(f"{marker}.tmp-") for path in out.iterdir()):
        raise ValueError(f"{out}: is not empty and was not written by this command; choose another folder")
    write_atomically(file, json.dumps(dict(ours), indent=1) + "\n")


__all__ = ["claim_folder"]
