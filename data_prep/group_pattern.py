"""Finding the patient in the path of an image, by a regular expression with one group."""

from __future__ import annotations

import re


def check_group_pattern(pattern: str) -> None:
    """Refuse what is no regular expression or has not one group; "" stands for none.

    Raises:
        ValueError: names the pattern.
    """
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"group_pattern {pattern!r}: {error}") from error
    if pattern and groups != 1:
        raise ValueError(f"group_pattern {pattern!r} must have one group in parentheses, has {groups}")


def group_in(path: str, pattern: str) -> str | None:
    """What the group of the pattern finds; "" without a pattern, None where it does not match.

    Example:
        >>> group_in("cyst/P17_3.png", r"/(P[0-9]+)_"), group_in("a.png", ""), group_in("a.png", "(P.)")
        ('P17', '', None)
    """
    if not pattern:
        return ""
    match = re.search(pattern, path)
    return match[1] if match else None


__all__ = ["check_group_pattern", "group_in"]
