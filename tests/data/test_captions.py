"""The caption policy: weights by kind, k without replacement, and nothing but the given generator."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from clip_med.config import validate
from clip_med.data.captions import CaptionPolicy, draw_caption, kinds_of
from clip_med.data.sample import Sample, SampleError, sample_from_members

SAMPLE = Sample(
    key="k",
    image=b"x",
    image_suffix="jpg",
    captions=("report", "label 1", "label 2", "label 3", "view"),
    caption_kinds=("report", "label", "label", "label", "metadata"),
    modality="CT",
    dataset="d",
    group="g",
    split="train",
)


def draws(sample: Sample, policy: CaptionPolicy, count: int = 6000) -> Counter[str]:
    rng = np.random.default_rng(0)
    return Counter(draw_caption(sample, policy, rng) for _ in range(count))


def test_kinds_have_their_probabilities_and_captions_of_a_kind_are_alike() -> None:
    found = draws(SAMPLE, CaptionPolicy(report=0.5, label=0.3, metadata=0.2))
    expected = {"report": 3000, "label 1": 600, "label 2": 600, "label 3": 600, "view": 1200}
    assert stats.chisquare([found[text] for text in expected], list(expected.values())).pvalue > 1e-3
    # Kinds that a sample does not have leave their share to the others.
    only = replace(SAMPLE, captions=("report", "view"), caption_kinds=("report", "metadata"))
    share = draws(only, CaptionPolicy(report=0.5, label=0.3, metadata=0.2))["report"] / 6000
    assert abs(share - 5 / 7) < 0.03
    assert set(draws(SAMPLE, CaptionPolicy(report=0.0, metadata=0.0), 200)) == {"label 1", "label 2", "label 3"}


def test_captions_of_unknown_kind_are_uniform() -> None:
    plain = replace(SAMPLE, caption_kinds=())
    assert kinds_of(plain) == ("other",) * 5
    found = draws(plain, CaptionPolicy())
    assert stats.chisquare([found[text] for text in SAMPLE.captions]).pvalue > 1e-3


def test_several_are_drawn_without_replacement_and_joined() -> None:
    policy = CaptionPolicy(count=3)
    for text in draws(replace(SAMPLE, captions=("a", "b", "c", "d", "e")), policy, 300):
        assert len(set(text.split(" "))) == 3
    everything = CaptionPolicy(count=9)
    assert {frozenset(text.split(" ")) for text in draws(replace(SAMPLE, captions=tuple("abcde")), everything, 50)} == {
        frozenset("abcde")
    }


def test_the_first_of_the_kinds_that_are_wanted() -> None:
    assert set(draws(SAMPLE, CaptionPolicy(choice="first"), 5)) == {"report"}
    assert set(draws(SAMPLE, CaptionPolicy(choice="first", report=0.0, count=2), 5)) == {"label 1 label 2"}


def test_nothing_to_draw_is_an_error_that_names_the_sample() -> None:
    with pytest.raises(SampleError, match=r"k: all captions are of kinds with weight 0 \(label, metadata, report\)"):
        draw_caption(SAMPLE, CaptionPolicy(report=0.0, label=0.0, metadata=0.0), np.random.default_rng(0))
    with pytest.raises(ValueError, match="weights of all kinds are 0"):
        validate(CaptionPolicy, dict.fromkeys(("report", "impression", "label", "knowledge", "metadata", "other"), 0.0))


def test_kinds_travel_with_the_sample() -> None:
    members = SAMPLE.members()
    assert sample_from_members("k", members, "a.tar") == SAMPLE
    assert sample_from_members("k", replace(SAMPLE, caption_kinds=()).members(), "a.tar").caption_kinds == ()
    for kinds, message in ((("report",), "one kind for each of the 5"), (("report",) * 4 + ("essay",), "'essay'")):
        with pytest.raises(SampleError, match=message):
            replace(SAMPLE, caption_kinds=kinds)
