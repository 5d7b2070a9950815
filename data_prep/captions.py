"""Captions for rows that have labels: templates by modality, what is known of the image, and knowledge of the findings.

Kinds that can be written: `label` (a template with the bare names), `finding` (sentences with articles), `absent` (what
is known not to be there), `metadata` and `knowledge`. In shards the first three are captions of the kind label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from clip_med.config import ConfigError, nearest
from clip_med.config.yaml_source import read_yaml
from clip_med.data.sample import keyed_hash
from clip_med.knowledge.prompts import ClassPrompts, render_prompts
from data_prep.caption_knowledge import knowledge_sentences
from data_prep.grammar import listed, sentence, with_article
from data_prep.metadata_words import metadata_sentence

TEMPLATES = Path(__file__).with_name("caption_templates.yaml")
Written = Literal["label", "finding", "absent", "metadata", "knowledge"]
# More of what is not there tells less of the image.
_MOST_ABSENT: Final = 3
_PLACEHOLDER: Final = re.compile(r"\{(\w*)\}")
# What is said of no finding cannot be absent.
_NOTHING: Final = re.compile(r"no\b|normal\b|healthy\b", re.IGNORECASE)


@dataclass(frozen=True)
class Templates:
    """The sentences of one modality, each with {} where the names stand; empty: those of the entry "".

    Attributes:
        image: the kind of image with its article, in the place of {image}.
        both: with {absent} for what is not there.
    """

    label: tuple[str, ...] = ()
    finding: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    image: str = ""


# Which placeholders the sentences of a key have, once each; {image} may stand in all but those of `label`.
_NEEDED: Final = {"label": [""], "finding": [""], "absent": [""], "both": ["", "absent"]}


def read_templates(path: Path = TEMPLATES) -> dict[str, Templates]:
    """Part of a modality's name to its sentences; the entry "" serves every modality that no other matches.

    A list of sentences stands for those of `label`.

    Raises:
        ConfigError: of another form, a sentence without its places, or no entry "".
    """
    values = read_yaml(path).values
    if not isinstance(values, Mapping) or "" not in values:
        raise ConfigError(f'{path}: expected a mapping of modality to sentences, with an entry "" for the rest')
    templates: dict[str, Templates] = {}
    for name, entry in values.items():
        keys = entry if isinstance(entry, Mapping) else {"label": entry}
        fields: dict[str, Any] = {}
        for key, given in keys.items():
            if key == "image" and isinstance(given, str) and given:
                fields["image"] = given
            elif key in _NEEDED:
                fields[key] = _checked(given, key, f"{path}: {name!r}")
            else:
                raise ConfigError(f"{path}: {name!r}: {key!r}: {given!r}; {nearest(str(key), [*_NEEDED, 'image'])}")
        templates[str(name).lower()] = Templates(**fields)
    if not templates[""].label:
        raise ConfigError(f'{path}: "": expected a list of sentences for label')
    return templates


def _checked(sentences: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(sentences, list) or not sentences:
        raise ConfigError(f"{where}: expected a list of sentences, got {sentences!r}")
    for text in map(str, sentences):
        found = [place for place in _PLACEHOLDER.findall(text) if key == "label" or place != "image"]
        if sorted(found) != _NEEDED[key]:
            places = " and ".join(f"{{{place}}}" for place in _NEEDED[key])
            raise ConfigError(f"{where}: {key}: {text!r} must hold {places} exactly once")
    return tuple(map(str, sentences))


def templates_for(modality: str, templates: Mapping[str, Templates]) -> Templates:
    """Those of the first entry whose name is in the modality, with what it leaves out from the entry ""."""
    lower = modality.lower()
    # Whole words for short names: "ct" is also in "cataract photography".
    matching = [
        name
        for name in templates
        if name and (re.search(rf"\b{re.escape(name)}\b", lower) if len(name) < 4 else name in lower)
    ]
    own, rest = templates[matching[0] if matching else ""], templates[""]
    return Templates(**{name: getattr(own, name) or getattr(rest, name) for name in vars(rest)})


@dataclass
class CaptionWriter:
    """Writes captions from what a source says in fields; the same sample always gets the same ones.

    Attributes:
        secret: keys the choice of absent findings.
    """

    templates: Mapping[str, Templates]
    written: Sequence[Written]
    secret: bytes
    _of_modality: dict[str, Templates] = field(default_factory=dict[str, Templates])

    def write(
        self,
        labels: Sequence[str],
        modality: str,
        *,
        absent: Sequence[str] = (),
        facts: Mapping[str, str] | None = None,
        view: str = "",
        key: str = "",
    ) -> dict[str, str]:
        """Caption to its kind in shards, in the order of `written`.

        Args:
            absent: findings that are known not to be there.
            facts: see `data_prep.metadata_words`.
            key: of the sample.
        """
        if modality not in self._of_modality:
            self._of_modality[modality] = templates_for(modality, self.templates)
        own = self._of_modality[modality]
        missing = self._chosen(absent, labels, key)
        captions: dict[str, str] = {}
        for kind in self.written:
            match kind:
                case "label":
                    texts, stored = _bare(labels, own), "label"
                case "finding":
                    texts, stored = _findings(labels, missing, own), "label"
                case "absent":
                    texts, stored = [_filled(t, own, listed(missing, "or")) for t in own.absent if missing], "label"
                case "metadata":
                    text = metadata_sentence(own.image, facts or {}, view)
                    texts, stored = [text] * bool(text), "metadata"
                case "knowledge":
                    texts = [text for label in labels for text in knowledge_sentences(label, modality)]
                    stored = "knowledge"
            for text in texts:
                captions.setdefault(text if kind == "label" else sentence(text), stored)
        return captions

    def _chosen(self, absent: Sequence[str], labels: Sequence[str], key: str) -> list[str]:
        """A few of the absent findings, others for every sample, in their own order."""
        possible = [name for name in absent if name not in labels and not _NOTHING.match(name)]
        ranked = sorted(possible, key=lambda name: keyed_hash(self.secret, "absent", key, name))
        kept = set(ranked[:_MOST_ABSENT])
        return [name for name in possible if name in kept]


def _bare(labels: Sequence[str], own: Templates) -> list[str]:
    if not labels:
        return []
    phrase = listed(labels)
    return list(render_prompts(ClassPrompts(classes={phrase: (phrase,)}, templates=own.label))[phrase])


def _findings(labels: Sequence[str], absent: Sequence[str], own: Templates) -> list[str]:
    if not labels:
        return []
    phrase = listed([with_article(label) for label in labels])
    both = [_filled(text, own, phrase, listed(absent, "or")) for text in own.both if absent]
    return [_filled(text, own, phrase) for text in own.finding] + both


def _filled(text: str, own: Templates, phrase: str, absent: str = "") -> str:
    """A template with its places filled, in one pass: a label may hold braces."""
    values = {"": phrase, "image": own.image, "absent": absent}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


__all__ = ["TEMPLATES", "CaptionWriter", "Templates", "Written", "read_templates", "templates_for"]
