"""What is evaluated, on which samples. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from clip_med.config import Fraction, NonNegativeInt, PositiveInt, config
from clip_med.knowledge.prompts import ClassPrompts, absence_prompts, prompt_weights, render_prompts
from clip_med.models.config import HFTower

Ensemble = Literal["embedding", "embedding_no_renorm", "logit", "probability", "max"]


@config
class ClassificationTask:
    """Zero-shot classification: each image has exactly one of the classes among its labels."""

    kind: Literal["classification"] = "classification"
    name: str
    shards: str
    """Folder, pattern or URL of a shard set."""
    datasets: tuple[str, ...] = ()
    """Only samples of these; empty: all."""
    modalities: tuple[str, ...] = ()
    prompts: ClassPrompts
    score: Literal["cosine", "queries"] = "cosine"
    """cosine: of images and prompts; queries: the answers of the decoder that the model was trained with."""
    knowledge_encoder: HFTower | None = None
    """With score queries: what puts `prompts` into queries, as the decoder was trained. None: classes that the decoder
    was trained on, by label."""
    ensemble: Ensemble = "embedding"
    """How several prompts of a class become one score; see `zero_shot.classify.class_scores`."""
    metric: Literal[
        "top-1", "top-5", "balanced accuracy", "macro F1", "macro AUROC", "AUROC", "quadratic kappa", "sensitivity"
    ] = "top-1"
    """What this data set is judged by, declared before it is looked at: it stands first among the results."""
    ordinal: bool = False
    """The classes are grades in their order: quadratic kappa is reported too."""
    positive: str | None = None
    """Of two classes the one that is looked for: its AUROC and its sensitivity at `specificity` are reported too."""
    specificity: Fraction = 0.9

    def __post_init__(self) -> None:
        """Refuse a choice of one, an ensemble of prompts that have no partner, and metrics without sense."""
        names = list(self.prompts.classes)
        if self.positive is not None and (len(names) != 2 or self.positive not in names):
            raise ValueError(f"positive must be one of two classes, got {self.positive!r} of {names}")
        needs = {
            "quadratic kappa": (self.ordinal, "ordinal: true"),
            "AUROC": (self.positive is not None, "positive"),
            "sensitivity": (self.positive is not None, "positive"),
            "top-5": (len(names) > 5, "more than five classes"),
        }
        met, needed = needs.get(self.metric, (True, ""))
        if not met:
            raise ValueError(f"metric {self.metric} needs {needed}")
        if len(self.prompts.classes) < 2:
            raise ValueError(f"prompts.classes must hold at least two classes, got {list(self.prompts.classes)}")
        counts = {label: len(texts) for label, texts in render_prompts(self.prompts).items()}
        if self.ensemble == "probability" and len(set(counts.values())) > 1:
            raise ValueError(f"ensemble probability needs equally many prompts per class, got {counts}")
        _check_weights(self.prompts, self.ensemble)
        _check_queries(self.score, self.knowledge_encoder, self.ensemble)


@config
class MultiLabelTask:
    """Zero-shot findings: an image has any number of them among its labels, and none that it does not list."""

    kind: Literal["multi_label"] = "multi_label"
    name: str
    shards: str
    datasets: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    prompts: ClassPrompts
    """What says that each finding is there, by label."""
    absent: ClassPrompts | None = None
    """What says that it is not, for the same labels; None: the negative statements of `prompts.knowledge`."""
    score: Literal["pair", "sigmoid", "softmax", "queries"] = "pair"
    """pair: presence against absence, the softmax over the two and so the sigmoid of their difference; sigmoid: of
    presence alone with the model's bias; softmax: presence against that of the other findings; queries: the sigmoid of
    what the model's decoder answers."""
    knowledge_encoder: HFTower | None = None
    """As in `ClassificationTask`."""
    ensemble: Ensemble = "embedding"
    metric: Literal["macro AUROC", "macro AUPRC"] = "macro AUROC"
    """What this data set is judged by, declared before it is looked at: it stands first among the results."""

    def __post_init__(self) -> None:
        """Refuse prompts that the score does not use or lacks, and an ensemble of prompts that have no partner."""
        labels = list(self.prompts.classes)
        if len(labels) < (2 if self.score == "softmax" else 1):
            raise ValueError(f"prompts.classes: score {self.score} needs more findings than {labels}")
        if self.prompts.knowledge is not None and self.prompts.knowledge.absent:
            raise ValueError("prompts.knowledge.absent is for classification; here `absent` says what denies a finding")
        if self.score != "pair" and self.absent is not None:
            raise ValueError(f"absent: score {self.score} does not use it; leave it out, or take score pair")
        if self.absent is not None and list(self.absent.classes) != labels:
            raise ValueError(
                f"absent.classes must be those of prompts, in order, {labels}, got {list(self.absent.classes)}"
            )
        if self.score == "pair" and self.absent is None and self.prompts.knowledge is None:
            raise ValueError("absent: score pair needs what says that each finding is not there, or prompts.knowledge")
        for prompts in (self.prompts, self.absent or self.prompts):
            _check_weights(prompts, self.ensemble)
        _check_queries(self.score, self.knowledge_encoder, self.ensemble)
        self._check_partners({label: len(texts) for label, texts in self.present_texts().items()}, self.absent_texts())

    def present_texts(self) -> dict[str, tuple[str, ...]]:
        """By label what says that the finding is there."""
        return render_prompts(self.prompts)

    def absent_texts(self) -> dict[str, tuple[str, ...]]:
        """By label what says that it is not; none where the score uses none."""
        if self.score != "pair":
            return {}
        return absence_prompts(self.prompts) if self.absent is None else render_prompts(self.absent)

    def weights(self) -> tuple[tuple[float, ...], ...] | None:
        """The weight of each text, finding by finding, those of presence first; None where all count alike."""
        both = [prompt_weights(self.prompts), None if self.absent is None else prompt_weights(self.absent)]
        if both == [None, None]:
            return None
        texts = [self.present_texts(), self.absent_texts()]
        return tuple(
            weights
            for own, told in zip(both, texts, strict=True)
            for weights in (own or [(1.0,) * len(some) for some in told.values()])
        )

    def _check_partners(self, present: Mapping[str, int], absent: Mapping[str, Sequence[str]]) -> None:
        """Of the ensemble `probability`, which compares prompt with prompt."""
        if self.ensemble != "probability":
            return
        if self.score == "sigmoid":
            raise ValueError("ensemble probability compares prompts with others; score sigmoid has none")
        if self.score == "softmax" and len(set(present.values())) > 1:
            raise ValueError(f"ensemble probability needs equally many prompts per finding, got {dict(present)}")
        for label, texts in absent.items():
            if len(texts) != present[label]:
                raise ValueError(
                    f"ensemble probability needs as many prompts for absence as for presence, got {len(texts)} and "
                    f"{present[label]} of {label!r}"
                )


def _check_weights(prompts: ClassPrompts, ensemble: Ensemble) -> None:
    if ensemble in ("max", "probability") and prompt_weights(prompts) is not None:
        raise ValueError(f"prompts.knowledge.attribute_weights: ensemble {ensemble} has no weights of prompts")


def _check_queries(score: str, encoder: HFTower | None, ensemble: Ensemble) -> None:
    if score != "queries" and encoder is not None:
        raise ValueError(f"knowledge_encoder is for score queries, got score {score}")
    if score == "queries" and ensemble != "embedding":
        raise ValueError(f"score queries has one query for each class and no ensemble, got ensemble {ensemble}")


@config
class RetrievalTask:
    """Image-to-text and text-to-image retrieval over all captions."""

    kind: Literal["retrieval"] = "retrieval"
    name: str
    shards: str
    datasets: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    ks: tuple[PositiveInt, ...] = (1, 5, 10)
    duplicates: Literal["one", "correct", "wrong"] = "one"
    """Captions that are equal up to case and spaces. one: one text, right for all their images; correct: texts of their
    own, each right for all those images; wrong: right for their own image only, as benchmarks by number have it."""
    by: tuple[Literal["modality", "dataset"], ...] = ()
    """Results of each modality or data set too; its queries are ranked among all items."""

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing, and of the same twice."""
        if not self.ks or len(set(self.ks)) != len(self.ks):
            raise ValueError(f"ks must hold one or more different numbers, got {list(self.ks)}")
        if len(set(self.by)) != len(self.by):
            raise ValueError(f"by must hold different names, got {list(self.by)}")


EvalTask = ClassificationTask | MultiLabelTask | RetrievalTask


@config
class EvalConfig:
    """An evaluation: its tasks, and how images are read."""

    tasks: tuple[EvalTask, ...]
    batch_size: PositiveInt = 128
    workers: NonNegativeInt = 0
    """Processes that decode images; the results are the same."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast while encoding; unit rows, scores and metrics stay fp32 or better."""
    seed: NonNegativeInt = 0
    """Of the bootstrap intervals."""

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing, and results that could not be told apart."""
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError("tasks must hold at least one task")
        if len(set(names)) != len(names):
            raise ValueError(f"tasks must have different names, got {', '.join(names)}")


__all__ = ["ClassificationTask", "Ensemble", "EvalConfig", "EvalTask", "MultiLabelTask", "RetrievalTask"]
