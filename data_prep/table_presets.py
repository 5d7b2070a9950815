"""Public tables of figures and captions: how their columns are called, and what tells figures of one article."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, kw_only=True)
class TablePreset:
    """What a table needs to be told, where it is a published one."""

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    path_suffix: str = ""
    group_pattern: str = ""


# Names begin with the article: its figures are of one case more often than not, so no split may divide them.
_ARTICLE: Final = r"(?:^|/)(PMC\d+)_"
PRESETS: Final[Mapping[str, TablePreset]] = {
    # radiologytraindata.csv and the like (Pelka et al., 2018): id, name, caption.
    "roco": TablePreset(columns={"path": ("name",), "caption": ("caption",)}, group_pattern=_ARTICLE),
    # train_captions.csv and the like (Rückert et al., 2024): ID, Caption. Articles are not named there.
    "rocov2": TablePreset(columns={"path": ("ID",), "caption": ("Caption",)}, path_suffix=".jpg"),
    # pmc_oa.jsonl (Lin et al., 2023): image, caption and scores of their alignment.
    "pmc-oa": TablePreset(columns={"path": ("image",), "caption": ("caption",)}, group_pattern=_ARTICLE),
}

__all__ = ["PRESETS", "TablePreset"]
