"""The guard against forgetting: a pretrained model is evaluated before its first step and after its last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip_med.commands.printing import as_json


class ForgettingGuard:
    """Evaluates for a training run, keeps the scores of the model as it was, and compares at the end.

    `eval/before.json` in the run holds the scores before the first step; a continued run finds them there.
    `eval/forgetting.json` holds the comparison.
    """

    def __init__(self, model: Any, config: Any, run: Path, device: str, say: Callable[[str], None]) -> None:
        from clip_med.config import config_hash

        self._model, self._config, self._run, self._device, self._say = model, config, run, device, say
        self._key = {"model_hash": config_hash(model), "eval_hash": config_hash(config)}
        self._before: dict[str, Any] | None = None
        self._last: Any = None

    def before(self, encoder: Any) -> None:
        """Evaluate the model as it was built, unless the run knows its scores; one from scratch has none to lose."""
        if not _pretrained(self._model):
            return
        known = self._read("before.json")
        if known is None:
            from zero_shot.forgetting import snapshot
            from zero_shot.suite import evaluate

            self._say("evaluating the model as it is before training")
            known = snapshot(evaluate(encoder, self._config))
            self._write("before.json", known)
        self._before = known

    def evaluator(self, encoder: Any) -> list[Any]:
        """The evaluation as the trainer takes it; the last one is remembered."""
        from zero_shot.suite import evaluate, flat_results

        self._last = evaluate(encoder, self._config)
        return flat_results(self._last)

    def compare(self, model: Path) -> list[Any]:
        """The changes from before to the finished model in this folder; none for models from scratch."""
        if self._before is None:
            return []
        from zero_shot.forgetting import Change, changes, snapshot
        from zero_shot.suite import evaluate

        if self._last is None:
            known = self._read("forgetting.json")
            if known is not None:
                return [Change.from_dict(change) for change in known["changes"]]
            import torch

            from clip_med.models.folder import load_folder

            # The process group of the run is closed; this is one process, as evaluation is.
            gpu = self._device != "cpu" and torch.cuda.is_available()
            self._last = evaluate(load_folder(model).to("cuda" if gpu else "cpu"), self._config)
        found = changes(self._before, snapshot(self._last), seed=self._config.seed)
        self._write("forgetting.json", {"changes": [change.to_dict() for change in found]})
        return found

    def _read(self, name: str) -> dict[str, Any] | None:
        """A file that this guard wrote for the same model and evaluation, or None."""
        file = self._run / "eval" / name
        if not file.is_file():
            return None
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file}: damaged: {error}; delete it to evaluate again") from error
        return document if all(document.get(key) == value for key, value in self._key.items()) else None

    def _write(self, name: str, document: dict[str, Any]) -> None:
        from clip_med.data.shard_index import write_atomically

        (self._run / "eval").mkdir(parents=True, exist_ok=True)
        text = as_json({**document, **self._key}, indent=1)
        write_atomically(self._run / "eval" / name, text + "\n")


def _pretrained(model: Any) -> bool:
    """Whether images and texts of the model as it is built have to do with each other."""
    from clip_med.models.config import FolderModel, OpenClipModel

    return isinstance(model, FolderModel) or (isinstance(model, OpenClipModel) and model.pretrained is not None)


__all__ = ["ForgettingGuard"]
