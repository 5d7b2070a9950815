"""What a run has really drawn: rows by source and modality, and how often each source was repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clip_med.data.batch import Batch
from clip_med.data.training_data import SourcePart


@dataclass
class Rows:
    """Rows by source and by modality, and how many damaged samples were replaced."""

    sources: Counter[str] = field(default_factory=Counter[str])
    modalities: Counter[str] = field(default_factory=Counter[str])
    replaced: int = 0


class RealisedMix:
    """Counts the rows that a loader hands out; stand-ins count where they come from, not where they stand.

    A rank counts its own rows; `merge` takes those of all ranks, so that every rank knows the totals of the run.

    Args:
        sources: where each source lies in the shard set; without them only modalities are counted.
    """

    def __init__(self, sources: Sequence[SourcePart] = ()) -> None:
        self._sources = tuple(sources)
        self._first = np.array([source.first for source in sources])
        self._fresh = Rows()
        self._latest = Rows()
        self._total: Counter[str] = Counter()

    def add(self, batch: Batch) -> None:
        """Count the rows of one batch."""
        self._fresh.modalities.update(batch.modalities)
        self._fresh.replaced += len(batch.bad)
        if self._sources:
            found = np.searchsorted(self._first, batch.indices.numpy(), side="right") - 1
            self._fresh.sources.update(self._sources[int(number)].name for number in found)

    def fresh(self) -> Rows:
        """The rows since the last call; the count begins anew."""
        taken, self._fresh = self._fresh, Rows()
        return taken

    def merge(self, ranks: Sequence[Rows]) -> None:
        """Take the fresh rows of all ranks."""
        self._latest = Rows()
        for rows in ranks:
            self._latest.sources += rows.sources
            self._latest.modalities += rows.modalities
            self._latest.replaced += rows.replaced
        self._total += self._latest.sources

    def line(self) -> dict[str, Any]:
        """For the log: rows by source and modality at the last merge, and passes over each source so far."""
        samples = {source.name: source.samples for source in self._sources}
        return {
            "mix": {
                "sources": dict(sorted(self._latest.sources.items())),
                "modalities": dict(sorted(self._latest.modalities.items())),
            },
            "replaced": self._latest.replaced,
            "passes": {name: round(self._total[name] / count, 4) for name, count in samples.items()},
        }

    def state_dict(self) -> dict[str, int]:
        """Rows of each source so far, up to the last merge."""
        return dict(self._total)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from saved totals; sources that are no longer there are dropped."""
        names = {source.name for source in self._sources}
        self._total = Counter({name: int(count) for name, count in state.items() if name in names})


__all__ = ["RealisedMix", "Rows"]
