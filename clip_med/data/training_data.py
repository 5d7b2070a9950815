"""A training set: named sources, the proportions in which they are mixed, and the order that follows. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from clip_med.config import Fraction, PositiveFloat, PositiveInt, config, nearest
from clip_med.data.batch_rules import ClassBatches, DistinctGroups, batches_per_chunk
from clip_med.data.mixed_order import MixedOrder
from clip_med.data.order import Order, SampleOrder
from clip_med.data.remote import RemoteConfig
from clip_med.data.shards import ShardSet, concatenated, open_shards


@config
class SourceConfig:
    """One source of a mixture.

    Example:
        >>> SourceConfig(name="pmc", shards=("shards/pmc",), weight=2.0).weight
        2.0
    """

    name: str
    shards: tuple[str, ...]
    """Folders or URLs of shard sets, concatenated in this order."""
    weight: PositiveFloat = 1.0
    """Multiplies the share of this source."""


@config
class ModalityWeight:
    """Multiplies the share of a modality, named as in the samples."""

    modality: str
    weight: PositiveFloat


@config
class MixtureConfig:
    """In which proportions sources are drawn, and what a global batch may hold.

    A stratum of n samples gets a share proportional to weight * n ** alpha (temperature sampling; Conneau and Lample,
    arXiv 1901.07291, section 3.1): alpha 1 draws every sample equally often, 0 every stratum.

    Example:
        >>> MixtureConfig(over="modality", alpha=0.5).natural
        False
    """

    over: Literal["source", "modality"] = "source"
    """What the strata are. modality: of all sources together; inside one, sources count by samples and weight."""
    alpha: Fraction = 1.0
    modality_weights: tuple[ModalityWeight, ...] = ()
    """Only with over: modality; those not named have weight 1."""
    single_source_batches: bool = False
    """Every global batch comes from one source, so that no pair can be told apart by the look of its source."""
    batches: Literal["any", "distinct_groups", "per_class"] = "any"
    """distinct_groups: no group (patient or case) twice in a global batch. per_class: `per_class` samples of each class
    (first label) in it, all classes equally often; samples without labels are left out, and counted."""
    per_class: PositiveInt = 4

    def __post_init__(self) -> None:
        """Refuse rules that contradict each other."""
        if self.modality_weights and self.over != "modality":
            raise ValueError("mixture.modality_weights needs mixture.over: modality")
        if self.batches == "per_class" and (not self.natural or self.single_source_batches):
            raise ValueError(
                "mixture.batches: per_class draws classes equally often, whatever their source: it goes with "
                "over: source, alpha: 1 and single_source_batches: false"
            )

    @property
    def natural(self) -> bool:
        """Whether the strata count by their samples, as far as this config says."""
        return self.alpha == 1.0 and not self.modality_weights


@dataclass(frozen=True)
class SourcePart:
    """Where one source lies in the training set, and its expected share of the samples drawn."""

    name: str
    first: int
    samples: int
    share: float


@dataclass(frozen=True)
class TrainingData:
    """Shards of all sources as one set, and the order in which they are drawn.

    `unused` samples belong to no class and are never drawn (`per_class` only).
    """

    shards: ShardSet
    order: Order
    sources: tuple[SourcePart, ...]
    unused: int = 0

    def source_of(self, indices: Int64[np.ndarray, " count"]) -> list[str]:
        """The names of the sources of samples."""
        first = np.array([source.first for source in self.sources])
        return [self.sources[int(i)].name for i in np.searchsorted(first, indices, side="right") - 1]

    def describe(self, samples: int) -> list[str]:
        """One line per source: its samples, its share, and how often a run of `samples` repeats them."""
        lines = [
            f"source {source.name}: {source.samples:,} samples, {100 * source.share:.1f} % of those drawn, each "
            f"{samples * source.share / source.samples:.2f} times"
            for source in self.sources
        ]
        if self.unused:
            lines.append(f"{self.unused:,} samples have no label and are never drawn (mixture.batches: per_class)")
        return lines


def open_training_data(
    sources: Sequence[SourceConfig],
    mixture: MixtureConfig,
    *,
    seed: int,
    batch_size: int,
    window_shards: int = 16,
    remote: RemoteConfig | None = None,
) -> TrainingData:
    """Open all sources and build their order; indexes are read only where the mixture needs modalities or groups.

    Raises:
        ValueError: two sources of one name, a weight for an unknown modality, a rule that the data cannot keep.
        ShardError: shards that cannot be opened, or that two sources share.
    """
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sources: the name {twice[0]!r} is given {names.count(twice[0])} times; names must differ")
    sets = [open_shards(source.shards, remote) for source in sources]
    lengths = [len(part) for part in sets]
    shards = concatenated(sets, remote)
    if mixture.natural and mixture.batches == "any" and (len(sources) == 1 or _alike(sources, mixture)):
        order = SampleOrder(shards.sizes, seed=seed, window_shards=window_shards)
        return TrainingData(shards, order, _parts(names, lengths, [length / len(shards) for length in lengths]))
    builder = _Builder(shards, sources, lengths, mixture, seed, batch_size, window_shards)
    shares = builder.shares
    ends = np.cumsum(lengths)
    by_source = [float(shares[end - length : end].sum()) for end, length in zip(ends, lengths, strict=True)]
    return TrainingData(shards, builder.order(), _parts(names, lengths, by_source), int((shares == 0.0).sum()))


def _alike(sources: Sequence[SourceConfig], mixture: MixtureConfig) -> bool:
    """Whether all samples are drawn equally often, in batches of any source: nothing then has to be known of them."""
    return not mixture.single_source_batches and len({source.weight for source in sources}) == 1


def _parts(names: Sequence[str], lengths: Sequence[int], shares: Sequence[float]) -> tuple[SourcePart, ...]:
    return tuple(
        SourcePart(name, sum(lengths[:number]), lengths[number], shares[number]) for number, name in enumerate(names)
    )


@dataclass(frozen=True)
class _Stratum:
    """Samples of one source that are drawn equally often, and their share of all rows."""

    source: int
    members: Int64[np.ndarray, " n"]
    share: float


class _Builder:
    """From the configuration of a mixture to strata, and from strata to an order."""

    def __init__(
        self,
        shards: ShardSet,
        sources: Sequence[SourceConfig],
        lengths: Sequence[int],
        mixture: MixtureConfig,
        seed: int,
        batch_size: int,
        window_shards: int,
    ) -> None:
        self.shards = shards
        self.mixture = mixture
        self.seed = seed
        self.batch_size = batch_size
        self.window_shards = window_shards
        self.weights = [source.weight for source in sources]
        self.source = np.repeat(np.arange(len(sources)), lengths)
        self.shard = np.repeat(np.arange(len(shards.sizes)), shards.sizes)
        needed = mixture.over == "modality" or mixture.batches != "any"
        self.columns = shards.columns() if needed else None
        self.strata = self._by_modality() if mixture.over == "modality" else self._by_source()
        self.shares = self._shares()

    def order(self) -> Order:
        match self.mixture.batches:
            case "any":
                return self._mixed(None)
            case "distinct_groups":
                assert self.columns is not None
                return self._mixed(self.columns.group)
            case "per_class":
                return self._per_class()

    def _by_source(self) -> list[_Stratum]:
        members = [np.flatnonzero(self.source == number) for number in range(len(self.weights))]
        sizes = np.array([len(samples) for samples in members], dtype=np.float64)
        shares = np.array(self.weights) * sizes**self.mixture.alpha
        return _strata(range(len(members)), members, shares)

    def _by_modality(self) -> list[_Stratum]:
        assert self.columns is not None
        weight = np.array(self.weights)[self.source]
        sizes = np.bincount(self.columns.modality, weights=weight)
        factors = np.ones(len(sizes))
        for entry in self.mixture.modality_weights:
            if entry.modality not in self.columns.modalities:
                raise ValueError(
                    f"mixture.modality_weights: no sample has the modality {entry.modality!r}; "
                    f"{nearest(entry.modality, set(self.columns.modalities))}"
                )
            factors[self.columns.modalities.index(entry.modality)] = entry.weight
        total = factors * sizes**self.mixture.alpha
        members: list[Int64[np.ndarray, " _"]] = []
        shares: list[float] = []
        owners: list[int] = []
        for number in range(len(self.weights)):
            for modality in range(len(sizes)):
                here = np.flatnonzero((self.source == number) & (self.columns.modality == modality))
                if len(here):
                    owners.append(number)
                    members.append(here)
                    shares.append(float(total[modality] * len(here) * self.weights[number] / sizes[modality]))
        return _strata(owners, members, np.array(shares))

    def _shares(self) -> Float64[np.ndarray, " N"]:
        """The expected share of every sample among the rows; 0 for those that are never drawn."""
        shares = np.zeros(len(self.shards))
        if self.mixture.batches == "per_class":
            assert self.columns is not None
            labels = self.columns.label
            counts = np.bincount(labels[labels >= 0], minlength=1)
            shares[labels >= 0] = 1.0 / counts[labels[labels >= 0]] / max(1, len(self.columns.labels))
            return shares
        for stratum in self.strata:
            shares[stratum.members] = stratum.share / len(stratum.members)
        return shares

    def _mixed(self, groups: Int64[np.ndarray, " N"] | None) -> Order:
        sources = {stratum.source for stratum in self.strata}
        if not self.mixture.single_source_batches or len(sources) == 1:
            return self._distinct(self._blend(self.strata, 0), groups, np.arange(len(self.shards)), 0)
        orders: list[Order] = []
        shares: list[float] = []
        for source in sorted(sources):
            strata = [stratum for stratum in self.strata if stratum.source == source]
            members = np.flatnonzero(self.source == source)
            orders.append(self._distinct(self._blend(strata, 1 + source), groups, members, source))
            shares.append(sum(stratum.share for stratum in strata))
        return MixedOrder(orders, shares, seed=self.seed, unit=self.batch_size)

    def _blend(self, strata: list[_Stratum], number: int) -> Order:
        """One order of several strata; where all are drawn in proportion to their samples, simply shuffled."""
        rates = [stratum.share / len(stratum.members) for stratum in strata]
        if max(rates) <= min(rates) * (1.0 + 1e-9):
            members = np.sort(np.concatenate([stratum.members for stratum in strata]))
            return self._leaf(members, number)
        # Leaves of one run have numbers of their own: they are shuffled independently of each other.
        leaves = [self._leaf(stratum.members, 1 + i + number * len(self.strata)) for i, stratum in enumerate(strata)]
        return MixedOrder(leaves, [stratum.share for stratum in strata], seed=self.seed, number=number)

    def _leaf(self, members: Int64[np.ndarray, " n"], part: int) -> SampleOrder:
        sizes = np.bincount(self.shard[members])
        whole = len(members) == len(self.shards)
        return SampleOrder(
            sizes[sizes > 0].tolist(),
            seed=self.seed,
            window_shards=self.window_shards,
            members=None if whole else members,
            part=part,
        )

    def _distinct(
        self, order: Order, groups: Int64[np.ndarray, " N"] | None, members: Int64[np.ndarray, " n"], part: int
    ) -> Order:
        if groups is None:
            return order
        shares = self.shares[members] / self.shares[members].sum()
        batches = batches_per_chunk(groups[members], self.batch_size, shares)
        return DistinctGroups(order, groups, batch_size=self.batch_size, batches=batches, part=part)

    def _per_class(self) -> Order:
        assert self.columns is not None
        names = self.columns.labels
        members = [np.flatnonzero(self.columns.label == number) for number in range(len(names))]
        return ClassBatches(members, names, seed=self.seed, batch_size=self.batch_size, k=self.mixture.per_class)


def _strata(
    sources: Sequence[int], members: list[Int64[np.ndarray, " _"]], shares: Float64[np.ndarray, " strata"]
) -> list[_Stratum]:
    total = float(shares.sum())
    return [
        _Stratum(source, samples, float(share) / total)
        for source, samples, share in zip(sources, members, shares, strict=True)
    ]


__all__ = [
    "MixtureConfig",
    "ModalityWeight",
    "SourceConfig",
    "SourcePart",
    "TrainingData",
    "open_training_data",
]
