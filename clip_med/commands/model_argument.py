"""What a command takes as a model, in the same words everywhere."""

from __future__ import annotations

from typing import Final

# `clip_med.models.folder.resolve_folder` takes it.
MODEL: Final = "a run, a model folder, hf-hub:OWNER/NAME or open_clip:NAME:WEIGHTS"

__all__ = ["MODEL"]
