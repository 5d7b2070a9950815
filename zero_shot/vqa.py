"""Multiple-choice questions answered by the similarity of image and text, next to what needs no image.

A dual encoder does not read questions: it says which option's sentence is closest to the image. Options can often be
told from the question alone, so that a score says little without its controls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from clip_med.data.augment import eval_image
from clip_med.data.images import ImageError, decode_image
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import evaluating, image_rows, text_features
from zero_shot.intervals import bootstrap_mean
from zero_shot.metrics import top_k_accuracy
from zero_shot.result import Result
from zero_shot.significance import Difference, paired_difference
from zero_shot.vqa_questions import LETTERS, Question

Doubles = NDArray[np.float64]

TEMPLATE: Final = "{question} {option}"


@dataclass(frozen=True, kw_only=True)
class VqaReport:
    """What a model gets right, and what it gets right without looking.

    `hits` [Q]: per question 1, 0 or, where options tie, the share of the right one. `results`: accuracy, then the
    controls: `text only` answers by the cosine of question and option, `average image` with the mean feature of all
    images in place of the question's own, `always X` with the commonest letter. `chance` guesses. `gain` is accuracy
    less each of the first two. `cut`: texts that are longer than the context and lose their end.
    """

    n: int
    chance: float
    results: tuple[Result, ...]
    gain: dict[str, Difference]
    categories: tuple[tuple[Result, float], ...]
    answers: tuple[int, ...]
    hits: Doubles
    texts: int
    cut: int

    def to_dict(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Plain values for JSON; `questions` are those that were answered."""
        return {
            "n": self.n,
            "chance": self.chance,
            "results": [result.to_dict() for result in self.results],
            "gain": {name: difference.to_dict() for name, difference in self.gain.items()},
            "categories": [result.to_dict() | {"chance": chance} for result, chance in self.categories],
            "texts": self.texts,
            "cut_texts": self.cut,
            "answers": [
                {"id": question.id, "answer": LETTERS[answer], "right": LETTERS[question.answer], "score": float(hit)}
                for question, answer, hit in zip(questions, self.answers, self.hits, strict=True)
            ],
        }


def answer_questions(
    encoder: DualEncoder,
    questions: Sequence[Question],
    images: Path,
    *,
    template: str = TEMPLATE,
    batch_size: int = 64,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> VqaReport:
    """Answer every question by the option whose sentence has the highest cosine with the image.

    Several images of a question count as the renormalised mean of their features. Every image and every sentence is
    encoded once. Intervals and tests draw whole groups.

    Args:
        images: the folder that paths of images start from.
        template: a sentence with {option} and, if wanted, {question}.

    Raises:
        ValueError: no questions, a template without {option}, an image that is missing or damaged.
    """
    if not questions:
        raise ValueError("there are no questions")
    if "{option}" not in template:
        raise ValueError(f"template {template!r} must hold {{option}} (and may hold {{question}})")
    own = _image_features(encoder, questions, images, batch_size, on_progress)
    sentences = [
        [template.replace("{question}", q.text.strip()).replace("{option}", option) for option in q.options]
        for q in questions
    ]
    texts = list(dict.fromkeys(text for options in sentences for text in options))
    rows = dict(zip(texts, text_features(encoder, texts).astype(np.float64), strict=True))
    plain = list(dict.fromkeys(text for q in questions for text in (q.text, *q.options)))
    alone = dict(zip(plain, text_features(encoder, plain).astype(np.float64), strict=True))
    scores = [np.array([rows[s] for s in options]) @ image for options, image in zip(sentences, own, strict=True)]
    mean = _unit(own.mean(axis=0))
    blind = {
        "text only": [np.array([alone[o] for o in q.options]) @ alone[q.text] for q in questions],
        "average image": [np.array([rows[s] for s in options]) @ mean for options in sentences],
    }
    groups = [q.group for q in questions]
    hits = _hits(scores, questions)
    controls = {name: _hits(found, questions) for name, found in blind.items()}
    counts = np.bincount([q.answer for q in questions])
    letter = int(counts.argmax())
    controls[f"always {LETTERS[letter]}"] = np.array([float(q.answer == letter) for q in questions])
    chances = np.array([1 / len(q.options) for q in questions])
    return VqaReport(
        n=len(questions),
        chance=float(chances.mean()),
        results=tuple(
            bootstrap_mean(values, name=name, groups=groups, seed=seed)
            for name, values in {"accuracy": hits, **controls}.items()
        ),
        gain={name: paired_difference(hits, controls[name], groups=groups, seed=seed) for name in blind},
        categories=tuple(_categories(questions, hits, chances, seed)),
        answers=tuple(int(found.argmax()) for found in scores),
        hits=hits,
        texts=len(texts),
        cut=encoder.truncated(texts),
    )


def _image_features(
    encoder: DualEncoder,
    questions: Sequence[Question],
    folder: Path,
    batch_size: int,
    on_progress: Callable[[str, int, int], None] | None,
) -> Doubles:
    """A unit row [Q, D] per question."""
    names = list(dict.fromkeys(name for question in questions for name in question.images))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(names)} images are not in {folder}, the first: {missing[0]}")
    features: dict[str, Doubles] = {}
    with evaluating(encoder):
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            try:
                views = [
                    eval_image(decode_image((folder / name).read_bytes(), source=name), encoder.preprocess)
                    for name in part
                ]
            except ImageError as error:
                raise ValueError(f"{folder}: {error}") from error
            rows = image_rows(encoder, torch.stack(views)).double().numpy()
            for name, row in zip(part, rows, strict=True):
                if not np.isfinite(row).all():
                    raise ValueError(f"{folder / name}: the image feature is not finite")
                features[name] = row
            if on_progress is not None:
                on_progress("images", start + len(part), len(names))
    return np.stack([_unit(np.mean([features[name] for name in q.images], axis=0)) for q in questions])


def _hits(scores: Sequence[Doubles], questions: Sequence[Question]) -> Doubles:
    return np.array(
        [top_k_accuracy(own[None], np.array([q.answer]))[0] for own, q in zip(scores, questions, strict=True)]
    )


def _categories(
    questions: Sequence[Question], hits: Doubles, chances: Doubles, seed: int
) -> list[tuple[Result, float]]:
    """Accuracy of each category, in alphabetical order, with its chance level; none where there are no categories."""
    names = sorted({question.category for question in questions})
    if names == [""]:
        return []
    found: list[tuple[Result, float]] = []
    for name in names:
        rows = [row for row, question in enumerate(questions) if question.category == name]
        result = bootstrap_mean(hits[rows], name="x", groups=[questions[row].group for row in rows], seed=seed)
        found.append((replace(result, name=name or "no category"), float(chances[rows].mean())))
    return found


def _unit(row: Doubles) -> Doubles:
    length = float(np.linalg.norm(row))
    if length == 0:
        raise ValueError("image features cancel out: their mean has no direction")
    return row / length


__all__ = ["TEMPLATE", "VqaReport", "answer_questions"]
