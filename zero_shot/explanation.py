"""Images explained by a dual encoder: findings with their descriptors, and a map of where each finding is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8

from clip_med.data.augment import eval_image
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import evaluating, text_features
from zero_shot.descriptors import TEMPLATES, Described, prompt_pairs
from zero_shot.grounding import Grounding, box_mask, ground, similarity_map, smooth, to_image
from zero_shot.intervals import bootstrap_metrics
from zero_shot.metrics import auroc
from zero_shot.patches import patch_features
from zero_shot.result import Result
from zero_shot.xplainer import FindingScore, descriptor_probabilities, explain, mean_over_views

# In the place of pixels that have been seen.
_NOTHING: Final = np.zeros((0, 0, 1), dtype=np.uint8)

Boxes = Mapping[str, Sequence[Sequence[int | float]]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image to explain. Pictures of one `study` are views of it; `boxes`: finding to where it is known to be.

    `labels`: what is known to be seen, None if nothing is known; `group`: the patient.
    """

    name: str
    pixels: UInt8[np.ndarray, "H W C"]
    study: str
    boxes: Boxes = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A study: its views by name, and its findings, best first; labels are those of any view."""

    study: str
    views: tuple[str, ...]
    findings: tuple[FindingScore, ...]
    labels: tuple[str, ...] | None
    group: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"study": self.study, "views": list(self.views), "findings": [one.to_dict() for one in self.findings]}


@dataclass(frozen=True, kw_only=True)
class FindingMap:
    """Cosine of every pixel of a picture with a finding (NaN: not seen), and how it meets the boxes, if there are."""

    picture: str
    finding: str
    values: Float[np.ndarray, "H W"]
    grounding: Grounding | None

    def metrics(self) -> dict[str, Any]:
        """Plain values for JSON, without the map; metrics that are undefined or infinite are None."""
        found = {} if self.grounding is None else asdict(self.grounding)
        return {
            "picture": self.picture,
            "finding": self.finding,
            **{name: value if np.isfinite(value) else None for name, value in found.items()},
        }


class Explainer:
    """A dual encoder with the descriptors of some findings, whose prompts are encoded once.

    Raises:
        ValueError: as `prompt_pairs`, or a text whose feature is not finite.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        described: Sequence[Described],
        *,
        templates: tuple[str, str] = TEMPLATES,
        temperature: float = 0.5,
    ) -> None:
        self.encoder = encoder
        self.described = tuple(described)
        self.temperature = temperature
        pairs = prompt_pairs(described, templates)
        both = text_features(encoder, [*pairs.present, *pairs.absent])
        self._present, self._absent = both[: len(pairs.present)], both[len(pairs.present) :]
        owner = np.asarray(pairs.owner)
        means = np.stack([self._present[owner == number].mean(axis=0) for number in range(len(described))])
        # A finding on maps: the prompt ensemble of its present descriptors.
        self._finding = means / np.linalg.norm(means, axis=1, keepdims=True)

    def explain(
        self, pictures: Iterable[Picture], *, on_picture: Callable[[Picture], None] | None = None
    ) -> tuple[Explanation, ...]:
        """Findings of every study, its views averaged. Pictures are taken one by one, and none is kept.

        Raises:
            ValueError: no pictures.
        """
        rows: list[np.ndarray] = []
        views: dict[str, list[Picture]] = {}
        studies: list[str] = []
        for picture in pictures:
            rows.append(self._encode(picture))
            views.setdefault(picture.study, []).append(replace(picture, pixels=_NOTHING))
            studies.append(picture.study)
            if on_picture is not None:
                on_picture(picture)
        if not rows:
            raise ValueError("there are no images to explain")
        probabilities = descriptor_probabilities(
            np.concatenate(rows), self._present, self._absent, temperature=self.temperature
        )
        mean, _ = mean_over_views(probabilities, studies)
        found: list[Explanation] = []
        for (study, seen), row in zip(views.items(), mean, strict=True):
            known = [picture.labels for picture in seen if picture.labels is not None]
            found.append(
                Explanation(
                    study=study,
                    views=tuple(picture.name for picture in seen),
                    findings=explain(row, self.described),
                    labels=tuple(dict.fromkeys(label for labels in known for label in labels)) if known else None,
                    group=seen[0].group,
                )
            )
        return tuple(found)

    def maps(self, picture: Picture, *, sigma: float | None = None) -> Iterator[FindingMap]:
        """The map of every finding over one picture, smoothed by `sigma` places.

        None: as much of the image as BioViL's 1.5 of 14 places; on a coarse grid 1.5 places would leave nothing.

        Raises:
            ValueError: a tower without places, or boxes of a finding that was not asked for.
        """
        names = [one.finding for one in self.described]
        if unknown := [name for name in picture.boxes if name not in names]:
            raise ValueError(f"{picture.name}: boxes of {unknown[0]!r}, but the findings are {', '.join(names)}")
        height, width = picture.pixels.shape[:2]
        with evaluating(self.encoder):
            patches = patch_features(self.encoder, self._tensor(picture))[0].float().cpu().numpy()
        places = 1.5 * patches.shape[0] / 14 if sigma is None else sigma
        for name, text in zip(names, self._finding, strict=True):
            values = to_image(smooth(similarity_map(patches, text), places), height, width, self.encoder.preprocess)
            boxes = picture.boxes.get(name)
            grounding = None if boxes is None else ground(values, box_mask(boxes, height, width))
            yield FindingMap(picture=picture.name, finding=name, values=values, grounding=grounding)

    def _encode(self, picture: Picture) -> Float[np.ndarray, "1 D"]:
        with evaluating(self.encoder):
            return self.encoder.encode_image(self._tensor(picture)).float().cpu().numpy()

    def _tensor(self, picture: Picture) -> torch.Tensor:
        return eval_image(picture.pixels, self.encoder.preprocess)[None].to(self.encoder.logit_scale.device)


def finding_aurocs(
    explanations: Sequence[Explanation], described: Sequence[Described], *, seed: int = 0
) -> tuple[Result, ...]:
    """AUROC of S+ of every finding over the studies whose labels are known, with intervals over patients.

    A study without the label counts as one without the finding. Findings that none, or all, of the studies have are
    left out.
    """
    known = [one for one in explanations if one.labels is not None]
    results: list[Result] = []
    for finding in described:
        scores = np.array([next(f.present for f in one.findings if f.finding == finding.finding) for one in known])
        truth = np.array([any(map(finding.is_named, one.labels or ())) for one in known], dtype=bool)
        if truth.any() and not truth.all():
            results += bootstrap_metrics(
                lambda rows, scores=scores, truth=truth: (auroc(scores[rows], truth[rows]),),
                names=(finding.finding,),
                n=len(known),
                groups=[one.group or one.study for one in known],
                seed=seed,
            )
    return tuple(results)


__all__ = ["Explainer", "Explanation", "FindingMap", "Picture", "finding_aurocs"]
