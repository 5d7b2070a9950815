"""Names and places in text by Microsoft Presidio, for what the rules of `scrub` have no form for.

Names come from a spaCy pipeline that is installed or lies in a folder. Nothing is downloaded: Presidio would get a
pipeline that is missing, and its recogniser of e-mail a list of domains. So the pipeline is loaded here, and only the
recognisers below take part.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

# Labels of pipelines, and what Presidio calls them; its default configuration maps them alike. Left out are
# organisations (scanners and abbreviations are taken for some; Presidio leaves them out too) and groups of people.
_LABELS: Final = {
    **dict.fromkeys(("PERSON", "PER"), "PERSON"),
    **dict.fromkeys(("LOCATION", "LOC", "GPE", "FAC"), "LOCATION"),
}
# What is looked for, and the kind of its surrogate. Not dates, which the rules move: pipelines call "two weeks" one.
# Not addresses of the net, which the rules find: Presidio takes "effusion.No" for one. Not numbers of cards,
# accounts and social security: the rules take every run of seven digits, and numbers of their forms.
_KINDS: Final = {"PERSON": "NAME", "LOCATION": "PLACE", "PHONE_NUMBER": "PHONE", "IP_ADDRESS": "ID"}
# Presidio gives names and places 0.85, IP addresses 0.6, numbers that may be phones 0.4, and 0.75 beside a word that
# says so ("telephone", "cell"): without one they may be measurements.
_SCORE: Final = 0.5


class Entity(NamedTuple):
    """A stretch of text, from `begin` to before `end`, and the kind of surrogate for it."""

    begin: int
    end: int
    kind: str


def check_presidio(pipeline: str) -> str:
    """Load the pipeline, and say the versions that entities depend on.

    Raises:
        ValueError: the extra or the pipeline is not installed, with the line to type; or the pipeline names no people.
    """
    if find_spec("presidio_analyzer") is None:
        raise ValueError(
            "presidio-analyzer is not installed, and --presidio needs it: pip install 'clip-med[presidio]'"
        )
    analyzer = _analyzer(pipeline)
    (language,) = analyzer.supported_languages
    nlp = analyzer.nlp_engine.get_nlp(language)
    packages = ", ".join(f"{name} {version(name)}" for name in ("presidio-analyzer", "spacy"))
    return f"{packages}, {nlp.lang}_{nlp.meta['name']} {nlp.meta['version']}"


def find_entities(text: str, pipeline: str) -> list[Entity]:
    """The entities of a text, none of which overlap, in order."""
    analyzer = _analyzer(pipeline)
    (language,) = analyzer.supported_languages
    found = analyzer.analyze(text, language, score_threshold=_SCORE)
    return merged(Entity(one.start, one.end, _KINDS[one.entity_type]) for one in found)


def merged(entities: Iterable[Entity]) -> list[Entity]:
    """Entities in order, those that overlap as one of the kind of the first (of the longest that begin there).

    Example:
        >>> merged([Entity(3, 8, "PLACE"), Entity(0, 5, "NAME"), Entity(8, 9, "ID")])
        [Entity(begin=0, end=8, kind='NAME'), Entity(begin=8, end=9, kind='ID')]
    """
    apart: list[Entity] = []
    for one in sorted(entities, key=lambda one: (one.begin, -one.end, one.kind)):
        if apart and one.begin < apart[-1].end:
            apart[-1] = apart[-1]._replace(end=max(apart[-1].end, one.end))
        else:
            apart.append(one)
    return apart


@lru_cache(maxsize=1)
def _analyzer(pipeline: str) -> Any:
    """Presidio's engine with the pipeline and our recognisers."""
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry  # pyright: ignore[reportMissingImports]
    from presidio_analyzer.nlp_engine import (  # pyright: ignore[reportMissingImports]
        NerModelConfiguration,
        SpacyNlpEngine,
    )
    from presidio_analyzer.predefined_recognizers import (  # pyright: ignore[reportMissingImports]
        IpRecognizer,
        PhoneRecognizer,
    )

    nlp = _loaded(pipeline)
    labels = {label for component in nlp.pipe_labels.values() for label in component}
    if not any(_LABELS.get(label) == "PERSON" for label in labels):
        raise ValueError(
            f"--presidio {pipeline}: no component of this pipeline finds people (label PERSON or PER); it has "
            f"{', '.join(nlp.pipe_names) or 'none'}"
        )
    engine = SpacyNlpEngine(
        models=[{"lang_code": nlp.lang, "model_name": pipeline}],
        ner_model_configuration=NerModelConfiguration(
            model_to_presidio_entity_mapping=_LABELS, labels_to_ignore=sorted(labels - _LABELS.keys())
        ),
    )
    engine.nlp = {nlp.lang: nlp}
    recognizers = [kind(supported_language=nlp.lang) for kind in (IpRecognizer, PhoneRecognizer)]
    registry = RecognizerRegistry(recognizers, supported_languages=[nlp.lang])
    registry.add_nlp_recognizer(engine)
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[nlp.lang])


def _loaded(pipeline: str) -> Any:
    import spacy  # pyright: ignore[reportMissingImports]

    try:
        return spacy.load(pipeline)
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(
            f"--presidio {pipeline}: no spaCy pipeline of that name can be loaded, nor from such a folder ({error}); "
            f"install one (python -m spacy download en_core_web_lg) or give the folder of one"
        ) from error


__all__ = ["Entity", "check_presidio", "find_entities", "merged"]
