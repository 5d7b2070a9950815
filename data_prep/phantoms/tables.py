"""What can be drawn: modalities, findings, their coded attributes, and the combinations kept out of training.

A *combination* is a finding with a value for each of its attributes ("large left pleural effusion"). One combination
per finding is held out: splits `train`, `val` and `test` never contain it, split `heldout` contains nothing else.
Every value of a held-out combination occurs in training with the same finding and with other findings, so that a
model which composes finding and attributes can name it, and one which memorises whole phrases cannot.

Sides are the patient's. In a frontal chest radiograph the patient faces the viewer: the patient's right is on the
left of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Final

SPLITS: Final = ("train", "val", "test", "heldout")
MODALITIES: Final = ("X-ray", "fundus", "dermoscopy", "ultrasound", "histology")

AXES: Final[Mapping[str, tuple[str, ...]]] = {
    "side": ("left", "right"),
    "size": ("small", "large"),
    "zone": ("upper", "lower"),
    "place": ("superior", "inferior"),
    "amount": ("few", "numerous"),
    "tone": ("pale", "dark"),
    "depth": ("superficial", "deep"),
    "extent": ("focal", "multifocal", "diffuse"),
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A finding that can be drawn.

    `label` formats a combination from the values of `axes`; `held_out` has a value for each of `axes`, in order.
    """

    name: str
    axes: tuple[str, ...] = ()
    label: str = ""
    held_out: tuple[str, ...] = ()

    def all(self) -> tuple[dict[str, str], ...]:
        """Every combination of attribute values, held out or not."""
        return tuple(dict(zip(self.axes, values, strict=True)) for values in product(*(AXES[a] for a in self.axes)))

    def combinations(self, split: str) -> tuple[dict[str, str], ...]:
        """The combinations that may occur in `split`; for `heldout` only the one that is held out."""
        kept_out = dict(zip(self.axes, self.held_out, strict=True)) if self.held_out else None
        return tuple(c for c in self.all() if (c == kept_out) == (split == "heldout"))

    def named(self, attributes: Mapping[str, str]) -> str:
        """The name of a combination."""
        return self.label.format(**attributes) if self.axes else self.name


def _kind(name: str, axes: str = "", held_out: str = "", label: str = "") -> Kind:
    names = tuple(axes.split())
    template = label or " ".join([*(f"{{{axis}}}" for axis in names), name])
    return Kind(name=name, axes=names, label=template, held_out=tuple(held_out.split()))


# The first kind of each modality is its normal state.
KINDS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "X-ray": (
        _kind("normal chest"),
        _kind("pleural effusion", "size side", "large left"),
        _kind("pneumothorax", "size side", "small right"),
        _kind("consolidation", "side zone", "left upper", "{side} {zone} zone consolidation"),
        _kind("lung mass", "side zone", "right lower", "{side} {zone} zone lung mass"),
        _kind("cardiomegaly"),
    ),
    "fundus": (
        _kind("normal retina"),
        _kind("retinal haemorrhages", "amount place", "numerous inferior"),
        _kind("hard exudates", "amount place", "few superior"),
        _kind("choroidal naevus", "size place", "large superior"),
        _kind("chorioretinal scar", "size place", "small inferior"),
        _kind("glaucomatous cupping"),
    ),
    "dermoscopy": (
        _kind("normal skin"),
        _kind("melanocytic naevus", "size tone", "large dark"),
        _kind("melanoma", "size tone", "small pale"),
        _kind("seborrhoeic keratosis", "size tone", "large pale"),
        _kind("basal cell carcinoma", "size tone", "small dark"),
        _kind("haemangioma", "size tone", "large dark"),
    ),
    "ultrasound": (
        _kind("normal breast"),
        _kind("simple cyst", "size depth", "large deep"),
        _kind("fibroadenoma", "size depth", "small superficial"),
        _kind("carcinoma", "size depth", "large superficial"),
        _kind("lipoma", "size depth", "small deep"),
        _kind("coarse calcification", "size depth", "small superficial"),
    ),
    "histology": (
        _kind("normal colonic mucosa"),
        _kind("adenocarcinoma", "extent", "multifocal"),
        _kind("inflammation", "extent", "diffuse"),
        _kind("necrosis", "extent", "focal"),
        _kind("fibrosis", "extent", "multifocal"),
        _kind("haemorrhage", "extent", "focal"),
    ),
}

CLASSES: Final[Mapping[str, tuple[str, ...]]] = {m: tuple(kind.name for kind in kinds) for m, kinds in KINDS.items()}
"""Finding names per modality, the normal state first: the classes of the first label."""

COMBINATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    m: tuple(kind.named(c) for kind in kinds for c in kind.all()) for m, kinds in KINDS.items()
}
"""Every combination per modality, held-out ones included (a kind without attributes is its own combination)."""

HELD_OUT: Final[Mapping[str, tuple[str, ...]]] = {
    m: tuple(kind.named(c) for kind in kinds for c in kind.combinations("heldout")) for m, kinds in KINDS.items()
}
"""The combinations per modality that occur in split `heldout` only."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a phantom shows.

    Attributes:
        name: one of `CLASSES[modality]`.
        combination: one of `COMBINATIONS[modality]`.
        attributes: the coded values, for example {"size": "large", "side": "left"}; sides are the patient's.
        facts: what else was drawn or belongs to the made-up case: view, eye, artefacts, age and sex.
    """

    name: str
    combination: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def assigned(index: int, split: str) -> tuple[str, Kind, dict[str, str]]:
    """Modality, kind and attributes of sample `index`: modalities in turn, then kinds, then combinations.

    90 consecutive indices hold every combination of a split; modalities and findings are balanced to within one.
    """
    modality = MODALITIES[index % len(MODALITIES)]
    index //= len(MODALITIES)
    kinds = [kind for kind in KINDS[modality] if kind.combinations(split)]
    kind = kinds[index % len(kinds)]
    combinations = kind.combinations(split)
    return modality, kind, combinations[(index // len(kinds)) % len(combinations)]


__all__ = [
    "AXES",
    "CLASSES",
    "COMBINATIONS",
    "HELD_OUT",
    "KINDS",
    "MODALITIES",
    "SPLITS",
    "Finding",
    "Kind",
    "assigned",
]
