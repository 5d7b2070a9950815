"""Brace patterns of shard names, `{000..999}` and `{a,b}`, counted before they are expanded. Imports no torch.

webdataset's braceexpand makes every name of `{0..99999999}` before anybody can object: 7 GB for the first 2 million.
The patterns and the order of their names are its own (and bash's); stricter is what follows from a pattern being the
name of data: braces without a range or comma, unbalanced ones, `::` and `${NAME}` are errors here and not text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

MAX_NAMES: Final = 1_000_000
# A name of a file or a URL; with the limit on names it bounds the memory of a result.
_MAX_LENGTH: Final = 4096
_MAX_DEPTH: Final = 8
# 18 digits: the length of any such range is still one of Python's own.
_RANGE: Final = re.compile(
    r"\{(?:(\d{1,18})\.\.(\d{1,18})|([a-z]\.\.[a-z]|[A-Z]\.\.[A-Z]))(?:\.\.(\d{1,18}))?\}", re.ASCII
)
_REFUSED: Final = {
    "::": "write several patterns as several entries of the list",
    "${": "variables of the environment are not expanded",
    "\n": "a line break in the name of a shard",
}


@dataclass(frozen=True)
class _Range:
    """Numbers or the positions of letters, both ends included; `width` digits, or a letter."""

    numbers: range
    width: int | None

    @property
    def count(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[str]:
        for number in self.numbers:
            yield chr(number) if self.width is None else f"{number:0{self.width}d}"


@dataclass(frozen=True)
class _Choice:
    options: Sequence[_Pattern]

    @property
    def count(self) -> int:
        return sum(option.count for option in self.options)

    def __iter__(self) -> Iterator[str]:
        for option in self.options:
            yield from option


@dataclass(frozen=True)
class _Pattern:
    """Pieces that follow each other; the last varies fastest."""

    pieces: Sequence[str | _Range | _Choice]

    @property
    def count(self) -> int:
        return math.prod(piece.count for piece in self.pieces if not isinstance(piece, str))

    def __iter__(self) -> Iterator[str]:
        return map("".join, product(*([piece] if isinstance(piece, str) else piece for piece in self.pieces)))


def has_braces(pattern: str) -> bool:
    """Whether a name is a pattern for `expand`."""
    return "{" in pattern or "}" in pattern


def expand(pattern: str, *, limit: int = MAX_NAMES) -> list[str]:
    """The names that a brace pattern stands for, in the order of webdataset and bash; a plain name stands for itself.

    Read are ranges of numbers (as many digits as the longer end has if one begins with 0) and of letters of one case,
    in either direction and with an optional step (`{0..9..2}`), lists, several groups in one pattern, and groups in
    groups. There is no way to write a literal brace.

    Args:
        pattern: a file name, path or URL.
        limit: the most names.

    Raises:
        ValueError: more names than `limit` (counted, not expanded), unbalanced braces, a group that is neither range
            nor list; the message gives the position.

    Example:
        >>> expand("{train,val}-{08..10}.tar")[:4]
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    for text, why in _REFUSED.items():
        if text in pattern:
            raise ValueError(f"pattern {pattern!r}: {text!r} at position {pattern.index(text)}: {why}")
    if not has_braces(pattern):
        return [pattern]
    if len(pattern) > _MAX_LENGTH:
        raise ValueError(f"pattern {pattern[:60]!r}...: {len(pattern)} characters, at most {_MAX_LENGTH} are read")
    parsed, end = _parse(pattern, 0, 0)
    if end < len(pattern):
        raise ValueError(f"pattern {pattern!r}: '}}' at position {end} closes nothing")
    if parsed.count > limit:
        raise ValueError(f"pattern {pattern!r} stands for {parsed.count} names; at most {limit} are expanded")
    return list(parsed)


def _parse(pattern: str, start: int, depth: int) -> tuple[_Pattern, int]:
    """The pieces from `start` to the end, or to the comma or brace that ends an option of a list."""
    pieces: list[str | _Range | _Choice] = []
    position = start
    while position < len(pattern):
        character = pattern[position]
        if character == "}" or (character == "," and depth):
            break
        if character == "{":
            piece, position = _parse_group(pattern, position, depth)
            pieces.append(piece)
        else:
            pieces.append(character)
            position += 1
    return _Pattern(pieces), position


def _parse_group(pattern: str, start: int, depth: int) -> tuple[_Range | _Choice, int]:
    if match := _RANGE.match(pattern, start):
        return _range(match), match.end()
    if depth == _MAX_DEPTH:
        raise ValueError(f"pattern {pattern!r}: more than {_MAX_DEPTH} braces within each other at position {start}")
    options: list[_Pattern] = []
    position = start
    while position < len(pattern) and (position == start or pattern[position] == ","):
        option, position = _parse(pattern, position + 1, depth + 1)
        options.append(option)
    if position == len(pattern):
        raise ValueError(f"pattern {pattern!r}: '{{' at position {start} is never closed")
    if len(options) == 1:
        group = pattern[start : position + 1]
        raise ValueError(f"pattern {pattern!r}: {group!r} at position {start} is neither like {{000..999}} nor {{a,b}}")
    return _Choice(options), position + 1


def _range(match: re.Match[str]) -> _Range:
    low, high, letters, step = match.groups()
    if letters is not None:
        first, last, width = ord(letters[0]), ord(letters[-1]), None
    else:
        first, last = int(low), int(high)
        padded = any(end.startswith("0") and end != "0" for end in (low, high))
        width = max(len(low), len(high)) if padded else 0
    size = int(step or 1) or 1  # a step of 0 is one of 1, as in bash
    return _Range(range(first, last + 1, size) if first < last else range(first, last - 1, -size), width)


__all__ = ["MAX_NAMES", "expand", "has_braces"]
