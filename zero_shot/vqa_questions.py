"""Multiple-choice questions on images, read from JSON and checked as a whole. Imports no torch."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LETTERS: Final = string.ascii_uppercase


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question on one or several images; `answer` is the number of the right option. `group`: patient or case."""

    id: str
    images: tuple[str, ...]
    text: str
    options: tuple[str, ...]
    answer: int
    category: str
    group: str


def read_questions(path: Path) -> tuple[Question, ...]:
    """Questions of a JSON file: a list of objects, or an object with that list as its only one.

    Keys of a question; others are not read:
    - `image`: a path, or `images`: a list of paths, relative to the folder that the caller names
    - `question`: the text
    - `options`: a list, or an object of letters A, B, ... to texts; or the letters themselves as keys of the question,
      where null and "" mean that there is none
    - `answer`: the letter, or the text of the right option
    - `id` or `index`, `category`, `group` (patient or case; without it, questions on the same images are one group)

    Raises:
        ValueError: a file or question that is not so; names file, question and key.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    if isinstance(document, Mapping):
        lists = [key for key, value in document.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise ValueError(f"{path}: expected a list of questions, or an object with one list, got lists at {lists}")
        document = document[lists[0]]
    if not isinstance(document, list) or not document:
        raise ValueError(f"{path}: expected a list of at least one question, got {str(document)[:60]}")
    questions: list[Question] = []
    seen: set[str] = set()
    for number, entry in enumerate(document):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{path}: question {number}: expected an object, got {str(entry)[:60]!r}")
        name = str(entry.get("id", entry.get("index", number)))
        try:
            question = _question(name, entry)
        except ValueError as error:
            raise ValueError(f"{path}: question {name}: {error}") from None
        if name in seen:
            raise ValueError(f"{path}: question {name}: this id comes twice")
        seen.add(name)
        questions.append(question)
    return tuple(questions)


def _question(name: str, entry: Mapping[str, Any]) -> Question:
    options = _options(entry)
    images = _images(entry)
    group = entry.get("group")
    return Question(
        id=name,
        images=images,
        text=_text("question", entry.get("question")),
        options=options,
        answer=_answer(entry.get("answer"), options),
        category=_text("category", entry["category"]) if entry.get("category") is not None else "",
        group=" + ".join(sorted(images)) if group is None else str(group),
    )


def _images(entry: Mapping[str, Any]) -> tuple[str, ...]:
    found = [key for key in ("image", "images") if key in entry]
    if len(found) != 1:
        raise ValueError(f"image: give image (a path) or images (a list of paths), got {found or 'neither'}")
    value = entry[found[0]]
    paths = value if isinstance(value, list) else [value]
    if not paths:
        raise ValueError(f"{found[0]}: expected at least one path")
    return tuple(_text(found[0], path) for path in paths)


def _options(entry: Mapping[str, Any]) -> tuple[str, ...]:
    value = entry.get("options")
    if value is None:
        value = {letter: entry[letter] for letter in LETTERS if entry.get(letter) not in (None, "")}
    if isinstance(value, Mapping):
        letters = list(value)
        if sorted(letters) != list(LETTERS[: len(letters)]):
            raise ValueError(f"options: expected the letters A, B, ... without a gap, got {', '.join(letters)}")
        value = [value[letter] for letter in sorted(letters)]
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"options: expected a list of 2 to {len(LETTERS)} texts, got {str(value)[:60]}")
    options = tuple(_text("options", option) for option in value)
    if len(set(options)) != len(options):
        raise ValueError(f"options: {next(o for o in options if options.count(o) > 1)!r} comes twice")
    return options


def _answer(value: Any, options: tuple[str, ...]) -> int:
    if isinstance(value, str):
        if value in LETTERS[: len(options)] and len(value) == 1:
            return LETTERS.index(value)
        if value in options:
            return options.index(value)
    last = LETTERS[len(options) - 1]
    raise ValueError(f"answer: expected a letter from A to {last} or the text of an option, got {value!r}")


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: expected text, got {str(value)[:60]!r}")
    return value


__all__ = ["LETTERS", "Question", "read_questions"]
