"""Labels in captions give way to descriptions: all equally often, the same ones each time, and the label stays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from clip_med.config import ConfigError, validate
from clip_med.data.captions import CaptionPolicy
from clip_med.data.images import Preprocess
from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.order import SampleOrder
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from clip_med.knowledge.augmentation import DescribeConfig, Describer
from clip_med.knowledge.load import load_base
from clip_med.pretrain import PretrainConfig
from tests.labelled_shards import write_labelled


def sample(caption: str, *labels: str, modality: str = "fundus", dataset: str = "d") -> Sample:
    return Sample(
        key="k",
        image=b"x",
        image_suffix="jpg",
        captions=(caption,),
        labels=labels,
        modality=modality,
        dataset=dataset,
        group="g",
        split="train",
    )


def written(config: DescribeConfig, of: Sample, count: int = 3000) -> Counter[str]:
    describer, rng = Describer(config), np.random.default_rng(0)
    return Counter(describer.write(of.captions[0], of, rng) for _ in range(count))


def test_name_and_descriptions_are_drawn_equally_often() -> None:
    of = sample("A fundus photograph with a Glaucoma.", "glaucoma")
    config = DescribeConfig()
    finding = load_base().findings["fundus_glaucoma"]
    found = written(config, of)
    assert len(found) == 2 + len(finding.descriptions.appearance)
    assert of.captions[0] in found
    # The article goes with the label.
    assert all(text.startswith("A fundus photograph with ") and text.endswith(".") for text in found)
    assert sum("with a Glaucoma" in text for text in found) == 1
    assert stats.chisquare(list(found.values())).pvalue > 1e-3
    assert set(Describer(config).every(of.captions[0], of)) == set(found)
    share = written(DescribeConfig(probability=0.25, facets=("definition",)), of)[of.captions[0]] / 3000
    assert abs(share - 0.75) < 0.04


def test_only_whole_labels_that_are_known_in_the_modality_are_replaced() -> None:
    config = DescribeConfig(facets=("definition",))
    describer, rng = Describer(config), np.random.default_rng(0)
    for unchanged in (
        sample("Glaucomatous disc.", "glaucoma"),
        sample("Glaucoma.", "glaucoma", modality="CT"),
        sample("A dragon.", "dragon"),
        sample("Something else.", "glaucoma"),
    ):
        assert describer.write(unchanged.captions[0], unchanged, rng) == unchanged.captions[0]
        assert describer.every(unchanged.captions[0], unchanged) == unchanged.captions
    begins = sample("Glaucoma in a fundus photograph.", "glaucoma")
    assert describer.write(begins.captions[0], begins, rng)[0].isupper()
    both = sample("Glaucoma and cataract.", "glaucoma", "cataract")
    assert len(written(config, both)) == 2
    assert dict(describer.coverage([both, sample("A dragon.", "dragon")]).texts) == {"glaucoma": 1, "cataract": 1}
    assert describer.coverage([sample("A dragon.", "dragon")]).unknown == ("dragon",)
    assert len(describer.texts([both])) == 2


def test_labels_can_be_named_and_data_sets_left_out() -> None:
    of = sample("Ultrasound: benign tumor.", "benign tumor", modality="ultrasound", dataset="busi")
    named = DescribeConfig(facets=("definition",), findings={"benign tumor": "breast_benign"}, datasets=("busi",))
    assert Describer(named).every(of.captions[0], of)[0].startswith("Ultrasound: a breast lesion")
    other = sample(of.captions[0], "benign tumor", modality="ultrasound", dataset="else")
    assert Describer(named).every(other.captions[0], other) == other.captions
    assert Describer(named).coverage([other]).texts == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"probability": 0.0}, "above 0"),
        ({"facets": ["name"]}, "besides name"),
        ({"facets": ["definition", "definition"]}, "each once"),
    ],
)
def test_augmentation_that_changes_nothing_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(DescribeConfig, values)


def test_an_unknown_id_is_named() -> None:
    with pytest.raises(ValueError, match="'lump': 'no_such' is no id"):
        Describer(DescribeConfig(findings={"lump": "no_such"}))


def test_positives_by_caption_are_refused() -> None:
    values = {"model": {"kind": "vit"}, "shards": ["s"], "train": {"samples": 512}, "describe": {}}
    with pytest.raises(ConfigError, match=r"describe needs loader\.positives: label, got caption"):
        validate(PretrainConfig, values)


def test_batches_keep_images_order_and_labels_and_change_with_the_epoch(tmp_path: Path) -> None:
    """Also with workers: what is shown depends on seed, epoch and index alone."""
    (tmp_path / "own.json").write_text('{"cyst": ["Dark ball.", "Sac."], "mass": ["Lump."], "normal": ["Nothing."]}')
    shards = ShardSet.open(write_labelled(tmp_path / "shards"))
    describer = Describer(DescribeConfig(facets=("appearance",), path=tmp_path / "own.json"))
    order = SampleOrder(shards.sizes, seed=3)

    def epochs(workers: int, described: bool) -> list[tuple[tuple[str, ...], list[list[int]], list[int]]]:
        config = LoaderConfig(workers=workers, positives="label", captions=CaptionPolicy(choice="first"))
        rewrite = describer.write if described else None
        loader = TrainLoader(shards, order, Preprocess(size=32), config, global_batch=24, rewrite=rewrite)
        batches = [next(loader) for _ in range(2)]
        loader.close()
        return [(b.captions, b.group_ids[:, 1:].tolist(), b.images.flatten(1).sum(1).tolist()) for b in batches]

    plain, told = epochs(0, False), epochs(0, True)
    assert told == epochs(1, True)
    for before, after in zip(plain, told, strict=True):
        assert before[1:] == after[1:]
        assert not {"A cyst.", "A mass.", "A normal."} & set(after[0])
        assert set(after[0]) == {"Dark ball.", "Sac.", "Lump.", "Nothing."}
    first, second = (Counter(batch[0]) for batch in told)
    assert first != second or told[0][0] != told[1][0]
