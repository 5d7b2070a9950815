"""Brace patterns: the names of webdataset's own expansion, and refusals that cost nothing."""

from __future__ import annotations

import tracemalloc

import pytest
from braceexpand import braceexpand
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_med.data.braces import expand, has_braces

PATTERNS = {
    "{000..002}.tar": ["000.tar", "001.tar", "002.tar"],
    "s3://b/{8..11}.tar": ["s3://b/8.tar", "s3://b/9.tar", "s3://b/10.tar", "s3://b/11.tar"],
    "{08..10}": ["08", "09", "10"],
    "{9..011}": ["009", "010", "011"],
    "{3..1}": ["3", "2", "1"],
    "{0..9..4}": ["0", "4", "8"],
    "{1..3..0}": ["1", "2", "3"],
    "{5..5}": ["5"],
    "{a..c}": ["a", "b", "c"],
    "{C..A}": ["C", "B", "A"],
    "{a,b}-{0..1}": ["a-0", "a-1", "b-0", "b-1"],
    "x{,.old}": ["x", "x.old"],
    "{a,a}": ["a", "a"],
    "{a{0..1},b{x,y}}": ["a0", "a1", "bx", "by"],
    "{{0..1},{5..6}}": ["0", "1", "5", "6"],
    "a,b.tar": ["a,b.tar"],
    "plain.tar": ["plain.tar"],
    "": [""],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_names_are_those_of_webdataset(pattern: str) -> None:
    assert expand(pattern) == PATTERNS[pattern]
    assert expand(pattern) == (list(braceexpand(pattern)) or [""])
    assert has_braces(pattern) == (len(PATTERNS[pattern]) > 1 or pattern == "{5..5}")


numbers = st.integers(0, 30).map(str) | st.integers(0, 30).map(lambda n: f"{n:03}")
ranges = st.builds("{{{}..{}}}".format, numbers, numbers) | st.builds(
    "{{{}..{}..{}}}".format, numbers, numbers, numbers
)
words = st.text("abXY01./-_", max_size=4)
pieces = st.recursive(
    words | ranges,
    lambda inner: st.lists(inner, min_size=2, max_size=3).map(lambda options: "{" + ",".join(options) + "}"),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(pieces, min_size=1, max_size=3).map("".join))
def test_any_pattern_gives_the_names_of_webdataset(pattern: str) -> None:
    expected = list(braceexpand(pattern)) or [""]
    assert expand(pattern) == expected
    if len(expected) > 1:
        with pytest.raises(ValueError, match=f"stands for {len(expected)} names; at most {len(expected) - 1}"):
            expand(pattern, limit=len(expected) - 1)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a{0..1", "'{' at position 1 is never closed"),
        ("a{b,{c,d}", "'{' at position 1 is never closed"),
        ("a}b", "'}' at position 1 closes nothing"),
        ("{0..1}}", "'}' at position 6 closes nothing"),
        ("{}", "'{}' at position 0 is neither"),
        ("a{b}.tar", "'{b}' at position 1 is neither"),
        ("shard-{:05d}.tar", "'{:05d}' at position 6 is neither"),
        ("{0...9}", "is neither"),
        ("{0..9,}x{1.2}", "'{1.2}' at position 8 is neither"),
        ("{a..Z}", "is neither"),
        ("{-1..2}", "is neither"),
        ("{٠..٩}", "is neither"),
        ("{0..x}", "is neither"),
        ("a::b{0..1}", "'::' at position 1: write several patterns"),
        ("a::b", "'::' at position 1"),
        ("${HOME}/{0..1}", "'${' at position 0: variables"),
        ("a\n{0..1}", "line break"),
        ("{" * 9 + "a,b" + "}" * 9, "more than 8 braces within each other at position 8"),
        ("{" * 4000, "more than 8"),
        ("{0..1}" * 700, "4200 characters, at most 4096"),
        ("{0..99999999}", "stands for 100000000 names; at most 1000000"),
        ("{0..999999999999999999}" * 3, f"stands for {10**54} names"),
        ("{0..1000}/{0..999}", "stands for 1001000 names"),
        ("{" + "0..9999999999999999999" + "}", "is neither"),
    ],
)
def test_refusals_give_the_position_or_the_count(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match="pattern") as error:
        expand(pattern)
    assert message in str(error.value)


def test_a_refusal_expands_nothing() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="stands for"):
            expand("{0..99999999}/{0..99999999}/" + "{a,b}" * 60)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_itself_is_expanded() -> None:
    assert len(expand("{0..9}{0..9}", limit=100)) == 100
