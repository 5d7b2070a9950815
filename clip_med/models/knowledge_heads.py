"""What knowledge trains beside the two towers, and its files in a model folder, which open_clip passes over.

The heads are `DualEncoder.facets` and `DualEncoder.queries`, None in a model trained without. A folder with heads holds
`knowledge.safetensors` (names begin with the head's and a slash) and `knowledge.json` (what each is made of).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.facet_projections import FacetProjections
from clip_med.models.query_decoder import QueryDecoder

TENSORS_NAME: Final = "knowledge.safetensors"
DESCRIPTION_NAME: Final = "knowledge.json"


def heads(encoder: DualEncoder) -> dict[str, FacetProjections | QueryDecoder]:
    """The heads that a model has, by name."""
    own = {"facets": encoder.facets, "queries": encoder.queries}
    return {name: head for name, head in own.items() if head is not None}


def head_parameters(encoder: DualEncoder) -> dict[str, nn.Parameter]:
    """Their parameters, by names such as `queries/answer.weight`."""
    return {f"{head}/{name}": p for head, module in heads(encoder).items() for name, p in module.named_parameters()}


def head_tensors(encoder: DualEncoder) -> dict[str, Tensor]:
    """Their parameters and saved buffers, by the same names."""
    return {f"{head}/{name}": t for head, module in heads(encoder).items() for name, t in module.state_dict().items()}


def drop_heads(encoder: DualEncoder) -> None:
    """Take them off: they fit the towers that they were trained with, and no others."""
    encoder.facets = encoder.queries = None


def save_heads(encoder: DualEncoder, directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the two files into a model folder; nothing for a model without heads.

    Args:
        tensors: contiguous copies of `head_tensors` on the CPU.
    """
    from safetensors.torch import save_file

    document = {name: head.describe() for name, head in heads(encoder).items()}
    if document:
        save_file(dict(tensors), directory / TENSORS_NAME)
        (directory / DESCRIPTION_NAME).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_heads(encoder: DualEncoder, directory: Path) -> None:
    """Read what `save_heads` wrote; a model without heads gets those that the folder has.

    Raises:
        ValueError: damaged files, or heads other than those that the model has.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, description = directory / TENSORS_NAME, directory / DESCRIPTION_NAME
    own = {name: head.describe() for name, head in heads(encoder).items()}
    document = _read(description) if description.is_file() else {}
    if own and own != document:
        differs = sorted(name for name in own.keys() | document.keys() if own.get(name) != document.get(name))
        raise ValueError(f"{description}: {differs} are not the heads of this model; its classes or sizes differ")
    if not document:
        return
    try:
        if not own:
            _make(encoder, document)
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: missing, damaged, or no safetensors file: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{description}: damaged, or of another version: {error!r}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in head_tensors(encoder).items()}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f"{file}: missing, unexpected or of another shape: {wrong[:5]}")
    for name, head in heads(encoder).items():
        head.load_state_dict(
            {key.removeprefix(f"{name}/"): t for key, t in stored.items() if key.startswith(f"{name}/")}
        )


def _make(encoder: DualEncoder, document: Mapping[str, Any]) -> None:
    device = encoder.logit_scale.device
    if unknown := sorted(document.keys() - {"facets", "queries"}):
        raise TypeError(f"no such head: {unknown}")
    if "facets" in document:
        encoder.facets = FacetProjections.described(document["facets"]).to(device)
    if "queries" in document:
        encoder.queries = QueryDecoder.described(document["queries"]).to(device)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: damaged: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(document).__name__}")
    return document


__all__ = ["drop_heads", "head_parameters", "head_tensors", "heads", "load_heads", "save_heads"]
