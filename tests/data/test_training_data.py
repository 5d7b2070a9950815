"""Training sets of several sources: shares, batch rules and elastic resume through real shards and loaders."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from clip_med.config import ConfigError, validate
from clip_med.data.augment import AugmentConfig
from clip_med.data.images import Preprocess
from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.mixed_order import MixedOrder
from clip_med.data.order import SampleOrder
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardError
from clip_med.data.training_data import (
    MixtureConfig,
    ModalityWeight,
    SourceConfig,
    TrainingData,
    open_training_data,
)
from tests.data.test_loader import sample

# Samples of each modality in each source.
COUNTS = {"alpha": {"X-ray": 40, "CT": 20}, "beta": {"CT": 90}, "gamma": {"MRI": 15, "X-ray": 15}}
BATCH = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    number = 0
    for name, modalities in COUNTS.items():
        with ShardWriter(root / name, samples_per_shard=7) as writer:
            for modality, count in modalities.items():
                for i in range(count):
                    labels = (f"class {number % 5}",) if number % 10 else ()
                    writer.add(
                        sample(
                            number % 37,
                            key=f"{name}{number}",
                            modality=modality,
                            group=f"{name}{modality}{i // 3}",
                            labels=labels,
                        )
                    )
                    number += 1
    return {name: root / name for name in COUNTS}


def opened(folders: dict[str, Path], mixture: MixtureConfig, batch_size: int = BATCH, **weights: float) -> TrainingData:
    sources = [
        SourceConfig(name=name, shards=(str(folder),), weight=weights.get(name, 1.0))
        for name, folder in folders.items()
    ]
    return open_training_data(sources, mixture, seed=11, batch_size=batch_size, window_shards=2)


def realised(data: TrainingData, count: int = 20_480) -> tuple[Counter[str], Counter[str]]:
    """Rows by source and by modality."""
    indices = data.order.draw(0, count).indices
    columns = data.shards.columns()
    return Counter(data.source_of(indices)), Counter(columns.modalities[i] for i in columns.modality[indices])


def agrees(found: Counter[str], shares: dict[str, float]) -> None:
    assert abs(sum(shares.values()) - 1.0) < 1e-9
    counts = [found[name] for name in shares]
    assert sum(counts) == sum(found.values())
    assert stats.chisquare(counts, [share * sum(counts) for share in shares.values()]).pvalue > 1e-3


def test_one_weight_for_all_is_plain_shuffling(folders: dict[str, Path]) -> None:
    data = opened(folders, MixtureConfig())
    assert isinstance(data.order, SampleOrder)
    assert (
        data.order.indices(0, 180).tolist()
        == SampleOrder(data.shards.sizes, seed=11, window_shards=2).indices(0, 180).tolist()
    )
    assert [(s.name, s.first, s.samples) for s in data.sources] == [
        ("alpha", 0, 60),
        ("beta", 60, 90),
        ("gamma", 150, 30),
    ]
    assert data.describe(360)[1] == "source beta: 90 samples, 50.0 % of those drawn, each 2.00 times"


def test_weights_of_sources(folders: dict[str, Path]) -> None:
    data = opened(folders, MixtureConfig(), gamma=4.0)
    total = 60 + 90 + 4 * 30
    shares = {"alpha": 60 / total, "beta": 90 / total, "gamma": 120 / total}
    agrees(realised(data)[0], shares)
    assert {source.name: source.share for source in data.sources} == pytest.approx(shares)
    assert "44.4 % of those drawn, each 8.00 times" in data.describe(540)[2]


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_temperature(folders: dict[str, Path], alpha: float) -> None:
    data = opened(folders, MixtureConfig(alpha=alpha))
    sizes = {"alpha": 60**alpha, "beta": 90**alpha, "gamma": 30**alpha}
    agrees(realised(data)[0], {name: size / sum(sizes.values()) for name, size in sizes.items()})


def test_by_modality(folders: dict[str, Path]) -> None:
    weights = (ModalityWeight(modality="MRI", weight=2.0),)
    data = opened(folders, MixtureConfig(over="modality", alpha=0.0, modality_weights=weights), alpha=3.0)
    sources, modalities = realised(data)
    agrees(modalities, {"X-ray": 0.25, "CT": 0.25, "MRI": 0.5})
    # Inside a modality sources count by weight * samples: X-ray 3 * 40 against 15, CT 3 * 20 against 90.
    shares = {"alpha": 0.25 * 120 / 135 + 0.25 * 60 / 150, "beta": 0.25 * 90 / 150, "gamma": 0.5 + 0.25 * 15 / 135}
    agrees(sources, shares)
    assert {source.name: source.share for source in data.sources} == pytest.approx(shares)


def test_single_source_batches(folders: dict[str, Path]) -> None:
    for mixture in (
        MixtureConfig(),
        MixtureConfig(over="modality", alpha=0.5),
        MixtureConfig(batches="distinct_groups"),
    ):
        data = opened(folders, replace(mixture, single_source_batches=True))
        assert data.order.batch_size == BATCH
        names = np.array(data.source_of(data.order.draw(0, 1024 * BATCH).indices)).reshape(-1, BATCH)
        assert all(len(set(batch)) == 1 for batch in names.tolist())
        agrees(Counter(names[:, 0].tolist()), {source.name: source.share for source in data.sources})


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("single", [False, True])
def test_no_group_twice_in_a_batch(folders: dict[str, Path], alpha: float, single: bool) -> None:
    data = opened(folders, MixtureConfig(batches="distinct_groups", alpha=alpha, single_source_batches=single))
    groups = data.shards.columns().group[data.order.draw(0, 600 * BATCH).indices].reshape(-1, BATCH)
    assert all(len(set(batch)) == BATCH for batch in groups.tolist())
    with pytest.raises(ValueError, match="would hold it twice"):
        opened(folders, MixtureConfig(batches="distinct_groups", single_source_batches=single), batch_size=100)


def test_k_per_class(folders: dict[str, Path]) -> None:
    data = opened(folders, MixtureConfig(batches="per_class", per_class=2))
    labels = data.shards.columns()
    drawn = labels.label[data.order.draw(0, 200 * BATCH).indices].reshape(-1, BATCH)
    assert all(sorted(Counter(batch).values()) == [2, 2, 2, 2] for batch in drawn.tolist())
    assert data.unused == 18
    assert "18 samples have no label and are never drawn" in data.describe(100)[-1]


def test_what_cannot_be_is_refused(folders: dict[str, Path]) -> None:
    weights = (ModalityWeight(modality="mri", weight=2.0),)
    with pytest.raises(ValueError, match=r"no sample has the modality 'mri'.*MRI"):
        opened(folders, MixtureConfig(over="modality", modality_weights=weights))
    with pytest.raises(ValueError, match=r"needs mixture\.over: modality"):
        MixtureConfig(modality_weights=weights)
    with pytest.raises(ValueError, match="per_class draws classes equally often"):
        MixtureConfig(batches="per_class", alpha=0.5)
    named_alike = [SourceConfig(name="a", shards=(str(folder),)) for folder in list(folders.values())[:2]]
    with pytest.raises(ValueError, match="the name 'a' is given 2 times"):
        open_training_data(named_alike, MixtureConfig(), seed=0, batch_size=4)
    same = [SourceConfig(name=name, shards=(str(folders["alpha"]),)) for name in "ab"]
    with pytest.raises(ShardError, match="same content is also in"):
        open_training_data(same, MixtureConfig(), seed=0, batch_size=4)
    with pytest.raises(ConfigError, match="weight"):
        validate(SourceConfig, {"name": "a", "shards": ["x"], "weight": 0.0})


# ---- elastic resume


SETTINGS = {
    "plain": MixtureConfig(),
    "temperature": MixtureConfig(alpha=0.5),
    "modality, one source per batch": MixtureConfig(over="modality", alpha=0.5, single_source_batches=True),
    "distinct groups": MixtureConfig(batches="distinct_groups", alpha=0.5),
    "per class": MixtureConfig(batches="per_class", per_class=2),
}
PLAIN = LoaderConfig(augment=AugmentConfig(rotation=0.0))


def part(data: TrainingData, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> TrainLoader:
    config = replace(PLAIN, workers=workers, prefetch=1)
    return TrainLoader(
        data.shards,
        data.order,
        Preprocess(size=8),
        config,
        global_batch=BATCH,
        rank=rank,
        world_size=world_size,
        tokenize=lambda texts: torch.tensor([[len(text)] for text in texts]),
    )


def flat(loaders: list[TrainLoader], number: int) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for _ in range(number):
        parts = [next(loader) for loader in loaders]
        assert len({batch.position for batch in parts}) == 1
        found.append(
            (
                parts[0].position,
                [key for batch in parts for key in batch.keys],
                [caption for batch in parts for caption in batch.captions],
                b"".join(batch.images.numpy().tobytes() for batch in parts),
                [ids for batch in parts for ids in batch.group_ids.tolist()],
            )
        )
    return found


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> dict[str, list[tuple[object, ...]]]:
    """The first 30 global batches of each mixture by one process: beyond the first epoch of 180 samples."""
    return {name: flat([part(opened(folders, mixture))], 30) for name, mixture in SETTINGS.items()}


CASES = [(world_size, workers) for world_size in (1, 2, 4, 8) for workers in (0, 1, 2)]


@pytest.mark.parametrize(("world_size", "workers"), CASES)
@pytest.mark.parametrize("name", ["plain", "modality, one source per batch"])
def test_resume_with_any_ranks_and_workers(
    folders: dict[str, Path], reference: dict[str, list[tuple[object, ...]]], name: str, world_size: int, workers: int
) -> None:
    """Saved by 2 ranks with a worker each, continued by any number, across the epoch's edge at batch 22.5."""
    data = opened(folders, SETTINGS[name])
    saved = [part(data, rank=rank, world_size=2, workers=workers % 2) for rank in range(2)]
    try:
        assert flat(saved, 1) == reference[name][:1]
        for done in (1, 21):
            state = {**saved[1].state_dict(), "position": done * BATCH}
            loaders = [part(data, rank=rank, world_size=world_size, workers=workers) for rank in range(world_size)]
            for loader in loaders:
                loader.load_state_dict(state)
            try:
                assert flat(loaders, 3) == reference[name][done : done + 3]
                assert {loader.position for loader in loaders} == {(done + 3) * BATCH}
            finally:
                for loader in loaders:
                    loader.close()
    finally:
        for loader in saved:
            loader.close()


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_mixture_resumes_anywhere(
    folders: dict[str, Path], reference: dict[str, list[tuple[object, ...]]], name: str
) -> None:
    data = opened(folders, SETTINGS[name])
    for done in (0, 7, 22, 28):
        loaders = [part(data, rank=rank, world_size=4) for rank in range(4)]
        for loader in loaders:
            loader.load_state_dict({**loader.state_dict(), "position": done * BATCH})
        assert flat(loaders, 2) == reference[name][done : done + 2]


def test_a_mixture_made_otherwise_is_refused_by_name_and_digest(folders: dict[str, Path]) -> None:
    data = opened(folders, MixtureConfig(alpha=0.5))
    state = part(data).state_dict()
    for other in (opened(folders, MixtureConfig(alpha=0.6)), opened(folders, MixtureConfig())):
        with pytest.raises(ValueError, match=f"mixture were {data.order.digest}, are {other.order.digest}"):
            part(other).load_state_dict(state)
    fewer = opened({name: folders[name] for name in ("alpha", "beta")}, MixtureConfig())
    with pytest.raises(ValueError, match=f"shards were {data.shards.digest}, are {fewer.shards.digest}"):
        part(fewer).load_state_dict(state)
    single = opened(folders, MixtureConfig(single_source_batches=True))
    moved = part(single)
    moved.load_state_dict({**state, "position": 13}, allow_data_change=True)
    assert moved.position == 16


def test_a_deep_resume_computes_one_block_and_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 shards of 1,000 samples at step 10**8: only plans, windows and blocks at that place are drawn."""
    from clip_med.data import mixed_order, order

    drawn: list[int] = []
    plain = order.permutation
    for module in (order, mixed_order):
        monkeypatch.setattr(module, "permutation", lambda bits, count: drawn.append(count) or plain(bits, count))
    halves = [
        SampleOrder([1000] * 5000, seed=1, members=np.arange(i * 5_000_000, (i + 1) * 5_000_000), part=i)
        for i in range(2)
    ]
    mixed = MixedOrder(halves, [1.0, 3.0], seed=1)
    assert len(mixed.draw(256 * 10**8, 256).indices) == 256
    assert sum(drawn) <= 2 * 1024 + 2 * (5000 + 2 * 16_000)
