"""Knowledge augmentation: a label inside a caption gives way to a description of it; the label itself stays.

FLAIR (Silva-Rodriguez et al., arXiv 2308.07898; jusiro/FLAIR) draws, for every image it shows, one of the name and the
expert descriptions of its category. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clip_med.config import Fraction, config
from clip_med.data.sample import Sample
from clip_med.knowledge.facets import NAMING, Facet, facet_texts
from clip_med.knowledge.hierarchy import Knowledge
from clip_med.knowledge.load import load_knowledge
from clip_med.knowledge.modalities import known_finding
from clip_med.knowledge.prompts import phrase
from clip_med.knowledge.schema import Finding


@config
class DescribeConfig:
    """How labels in captions are replaced; see `Describer`."""

    probability: Fraction = 1.0
    """How often a caption is changed; then every text of the facets is drawn equally often, the name too if it is one
    of them."""
    facets: tuple[Facet, ...] = ("name", "definition", "appearance")
    findings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Label to the id of its finding, where the label alone does not say it."""
    datasets: tuple[str, ...] = ()
    """Only samples of these; empty: all."""
    path: Path | None = None
    """A file or folder of knowledge; None: the shipped base."""

    def __post_init__(self) -> None:
        """Refuse an augmentation that changes nothing."""
        if self.probability == 0.0:
            raise ValueError("probability must lie above 0; leave `describe` out instead")
        if not set(self.facets) - {"name"} or len(set(self.facets)) != len(self.facets):
            raise ValueError(f"facets must name one or more besides name, each once; got {list(self.facets)}")


@dataclass(frozen=True)
class Coverage:
    """Labels that samples have: how many texts there are for each that is known, and those that are not."""

    texts: Mapping[str, int]
    unknown: tuple[str, ...]


class Describer:
    """Writes captions anew. What it writes is a function of caption, sample and generator.

    Example:
        >>> sample = Sample(key="k", image=b"", image_suffix="jpg", captions=("Fundus with glaucoma.",), group="g",
        ...                 labels=("glaucoma",), modality="fundus", dataset="d", split="train")
        >>> Describer(DescribeConfig(facets=("definition",))).every(sample.captions[0], sample)[0][:36]
        'Fundus with optic neuropathy with pr'
    """

    def __init__(self, config: DescribeConfig) -> None:
        """Read the knowledge.

        Raises:
            ConfigError: a file that cannot be read.
            ValueError: an id in `findings` that it does not have.
        """
        self._config = config
        self._known: Knowledge = load_knowledge(config.path)
        for label, name in config.findings.items():
            if name not in self._known.findings:
                raise ValueError(f"describe.findings: {label!r}: {name!r} is no id of a finding")
        self._texts: dict[tuple[str, str], tuple[str, ...]] = {}

    def write(self, caption: str, sample: Sample, rng: np.random.Generator) -> str:
        """The caption with one of its labels described, drawn from those that it holds; or as it is.

        Two numbers are drawn from `rng`, whatever comes of them.
        """
        changes, choice = rng.random(), rng.random()
        places = self._places(caption, sample)
        if not places or changes >= self._config.probability:
            return caption
        # One number for label and text: the whole part of it says which label, the rest which text.
        which = choice * len(places)
        place = places[int(which)]
        return place.filled(caption, place.texts[int((which % 1.0) * len(place.texts))])

    def every(self, caption: str, sample: Sample) -> tuple[str, ...]:
        """All that `write` can make of a caption, each once."""
        written = [place.filled(caption, text) for place in self._places(caption, sample) for text in place.texts]
        kept = [] if written and self._config.probability == 1.0 else [caption]
        return tuple(dict.fromkeys(kept + written))

    def coverage(self, samples: Iterable[Sample]) -> Coverage:
        """Which labels of the samples are known in their modality."""
        texts: dict[str, int] = {}
        for sample in samples:
            for label in sample.labels if self._takes(sample) else ():
                texts[label] = max(texts.get(label, 0), len(self._of(label, sample.modality)))
        return Coverage({k: n for k, n in texts.items() if n}, tuple(sorted(k for k, n in texts.items() if not n)))

    def texts(self, samples: Iterable[Sample]) -> tuple[str, ...]:
        """Every text that may come into captions of the samples."""
        found = {(label, s.modality) for s in samples if self._takes(s) for label in s.labels}
        return tuple(dict.fromkeys(text for key in sorted(found) for text in self._of(*key)))

    def _takes(self, sample: Sample) -> bool:
        return not self._config.datasets or sample.dataset in self._config.datasets

    def _places(self, caption: str, sample: Sample) -> list[_Place]:
        if not self._takes(sample):
            return []
        places: list[_Place] = []
        for label in sample.labels:
            texts = self._of(label, sample.modality)
            found = re.search(rf"(?:\b(?:an?|the)\s+)?(?<!\w){re.escape(label)}(?!\w)", caption, re.IGNORECASE)
            if texts and found:
                places.append(_Place(*found.span(), label, texts))
        return places

    def _of(self, label: str, modality: str) -> tuple[str, ...]:
        key = label, modality
        if key not in self._texts:
            finding = self._finding(label, modality)
            self._texts[key] = () if finding is None else self._written(label, finding)
        return self._texts[key]

    def _finding(self, label: str, modality: str) -> Finding | None:
        if label in self._config.findings:
            return self._known.findings[self._config.findings[label]]
        return known_finding(label, modality, self._known)

    def _written(self, label: str, finding: Finding) -> tuple[str, ...]:
        texts: list[str] = []
        for facet in self._config.facets:
            # The name is what the data set calls it: a caption with it stays as it is.
            own = (label,) if facet == "name" else facet_texts(finding, (facet,))
            texts += own if facet in NAMING else map(phrase, own)
        return tuple(dict.fromkeys(texts))


@dataclass(frozen=True)
class _Place:
    """Where a label stands in a caption, with the article before it, and what can stand there instead."""

    start: int
    end: int
    label: str
    texts: tuple[str, ...]

    def filled(self, caption: str, text: str) -> str:
        if text == self.label:
            return caption
        first = text[:1].upper() + text[1:] if self.start == 0 else text
        return caption[: self.start] + first + caption[self.end :]


__all__ = ["Coverage", "DescribeConfig", "Describer"]
