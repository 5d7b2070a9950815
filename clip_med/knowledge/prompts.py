"""Prompts of classes: every name of a class in every template, and what the knowledge base says. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from clip_med.config import NonNegativeFloat, PositiveInt, config
from clip_med.knowledge.facets import NAMING, Facet, attribute_sentences, facet_texts
from clip_med.knowledge.hierarchy import Knowledge
from clip_med.knowledge.load import load_knowledge
from clip_med.knowledge.modalities import is_of_modality
from clip_med.knowledge.schema import Attributes, Finding
from clip_med.knowledge.templates import TEMPLATES


@config
class KnowledgePrompts:
    """What is taken from the knowledge base for every class, in this order.

    A class is looked up by a name that is an id, then by its label, then by the other names; the first that means one
    finding counts.
    """

    facets: tuple[Facet, ...] = ("name", "definition", "appearance")
    """name: the names that `classes` gives; synonyms: those of the base. Both stand in every template. The others are
    sentences that do not hold the name, so that without `name` a class is recognised by description alone."""
    modality_templates: bool = False
    """The ensemble of each finding's modality (`clip_med/knowledge/templates.py`) in the place of `templates`."""
    in_templates: bool = False
    """Sentences stand in the templates too, in the place of the name (FLAIR, arXiv 2308.07898)."""
    attribute_weights: Mapping[str, NonNegativeFloat] = field(default_factory=dict[str, float])
    """Property to the weight of its sentence in the mean of a class's prompts, where all other prompts have 1; a
    property of weight 0 is left out. Empty: all alike."""
    modality: str | None = None
    """As samples write it: where a name stands for several findings, that of this modality is meant."""
    path: Path | None = None
    """A file or folder of knowledge; None: the shipped base."""
    absent: tuple[str, ...] = ()
    """Labels that say that the finding, looked up by the names of the class, is not there: their prompts are the
    negative statements; with the facet `positive` for another label, presence stands against absence."""
    most: PositiveInt | None = None
    """Prompts of a class at most, the first ones; None: all. The ensemble `probability` needs equally many."""
    project: bool = False
    """Texts go through the projection of their facet, in evaluations of a model trained with `facets`."""

    def __post_init__(self) -> None:
        """Refuse nothing to say, and the same twice."""
        if not self.facets or len(set(self.facets)) != len(self.facets):
            raise ValueError(f"facets must name one or more facets, each once; got {list(self.facets)}")
        properties = [one.name for one in fields(Attributes)]
        if unknown := set(self.attribute_weights) - set(properties):
            raise ValueError(f"attribute_weights: {sorted(unknown)} are none of the properties {properties}")
        if self.attribute_weights and "attributes" not in self.facets:
            raise ValueError(f"attribute_weights needs the facet attributes, got facets {list(self.facets)}")


@config
class ClassPrompts:
    """What a classifier is told about its classes.

    Example:
        >>> render_prompts(ClassPrompts(classes={"CYST": ("a cyst",)}, templates=("{}", "ultrasound of {}.")))
        {'CYST': ('a cyst', 'ultrasound of a cyst.')}
    """

    classes: Mapping[str, tuple[str, ...]]
    """Label, as the samples carry it, to one or more names or descriptions, with their article where one is needed."""
    templates: tuple[str, ...] = ("{}",)
    """Sentences with one `{}` in the place of the name."""
    knowledge: KnowledgePrompts | None = None
    """Prompts from the knowledge base; None: the names in the templates only."""

    def __post_init__(self) -> None:
        """Refuse templates without a place for the name and classes without a name."""
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold {{}} exactly once, where the class name goes")
        if not self.templates:
            raise ValueError('templates must hold at least one sentence; use "{}" for the bare names')
        for label, names in self.classes.items():
            if not names or not all(name.strip() for name in names):
                raise ValueError(f"class {label!r} needs at least one non-empty name, got {names!r}")
        if self.knowledge is not None and self.knowledge.modality_templates and self.templates != ("{}",):
            raise ValueError("knowledge.modality_templates takes the place of templates: give one of them")
        if self.knowledge is not None and (unknown := set(self.knowledge.absent) - set(self.classes)):
            raise ValueError(f"knowledge.absent: {sorted(unknown)} are none of the classes {list(self.classes)}")


def render_prompts(prompts: ClassPrompts) -> dict[str, tuple[str, ...]]:
    """The prompts of each label: templates in order, within each the names in order; repeated prompts are kept once.

    With `knowledge`, facet by facet in its order.

    Raises:
        ValueError: a class that the knowledge does not know, or of which it has nothing of the chosen facets.

    Example:
        >>> told = ClassPrompts(classes={"glaucoma": ("glaucoma",), "ok": ("normal retina",)},
        ...                     knowledge=KnowledgePrompts(facets=("name", "definition"), modality="fundus"))
        >>> render_prompts(told)["glaucoma"][0]
        'glaucoma'
    """
    return {label: tuple(texts) for label, texts in _rendered(prompts).items()}


def absence_prompts(prompts: ClassPrompts) -> dict[str, tuple[str, ...]]:
    """What says that the finding of each label is not there: the negative statements of the knowledge base.

    Raises:
        ValueError: prompts without `knowledge`, or a finding that it does not know or has no such statement of.

    Example:
        >>> chosen = KnowledgePrompts(facets=("positive",), modality="X-ray")
        >>> absence_prompts(ClassPrompts(classes={"Edema": ("pulmonary edema",)}, knowledge=chosen))["Edema"][0]
        'No pulmonary oedema.'
    """
    if prompts.knowledge is None:
        raise ValueError("prompts.knowledge is needed for what says that a finding is not there")
    known = load_knowledge(prompts.knowledge.path)
    return {
        label: tuple(_denied(label, _finding(label, names, prompts.knowledge, known), prompts.knowledge))
        for label, names in prompts.classes.items()
    }


def prompt_weights(prompts: ClassPrompts) -> tuple[tuple[float, ...], ...] | None:
    """The weight of each prompt of `render_prompts`, class by class; None where all count alike.

    Example:
        >>> chosen = KnowledgePrompts(facets=("name", "attributes"), attribute_weights={"location": 0.5, "size": 0.0})
        >>> (weights,) = prompt_weights(ClassPrompts(classes={"cyst": ("kidney_cyst",)}, knowledge=chosen))
        >>> sorted(set(weights))
        [0.5, 1.0]
    """
    if prompts.knowledge is None or not prompts.knowledge.attribute_weights:
        return None
    return tuple(tuple(one.weight for one in texts.values()) for texts in _rendered(prompts).values())


def prompt_facets(prompts: ClassPrompts) -> tuple[tuple[Facet | None, ...], ...]:
    """The facet of each prompt of `render_prompts`, class by class; None of one that no facet of the knowledge gave.

    Example:
        >>> chosen = KnowledgePrompts(facets=("definition", "appearance"))
        >>> prompt_facets(ClassPrompts(classes={"cyst": ("kidney_cyst",)}, knowledge=chosen))[0][:2]
        ('definition', 'appearance')
    """
    return tuple(tuple(one.facet for one in texts.values()) for texts in _rendered(prompts).values())


@dataclass(frozen=True)
class _Prompt:
    """What a text counts in the mean of its class, and the facet that it comes from."""

    weight: float = 1.0
    facet: Facet | None = None


_PLAIN: Final = _Prompt()


def _rendered(prompts: ClassPrompts) -> dict[str, dict[str, _Prompt]]:
    """The prompts of each label, in order."""
    if prompts.knowledge is None:
        return {
            label: dict.fromkeys(_in_templates(prompts.templates, names), _PLAIN)
            for label, names in prompts.classes.items()
        }
    chosen = prompts.knowledge
    known = load_knowledge(chosen.path)
    rendered: dict[str, dict[str, _Prompt]] = {}
    for label, names in prompts.classes.items():
        finding = _finding(label, names, chosen, known)
        if label in chosen.absent:
            rendered[label] = _denied(label, finding, chosen)
            continue
        rendered[label] = dict(list(_told(finding, names, prompts, chosen).items())[: chosen.most])
        if not rendered[label]:
            raise ValueError(
                f"class {label!r}: finding {finding.id} has no text of the facets {', '.join(chosen.facets)}"
            )
    return rendered


def _denied(label: str, finding: Finding, chosen: KnowledgePrompts) -> dict[str, _Prompt]:
    """The negative statements on a finding."""
    if not finding.negative:
        raise ValueError(f"class {label!r}: finding {finding.id} has no negative statements")
    return dict.fromkeys(finding.negative[: chosen.most], _PLAIN)


def _told(
    finding: Finding, names: tuple[str, ...], prompts: ClassPrompts, chosen: KnowledgePrompts
) -> dict[str, _Prompt]:
    """The texts of all facets, each once, with the weight and the facet that it has where it comes first."""
    texts: dict[str, _Prompt] = {}
    for facet in chosen.facets:
        for text in () if facet == "attributes" else _facet(facet, finding, names, prompts):
            texts.setdefault(text, _Prompt(facet=facet))
        for name, sentence in attribute_sentences(finding).items() if facet == "attributes" else ():
            weight = chosen.attribute_weights.get(name, 1.0)
            for text in _sentences((sentence,), finding, prompts) if weight > 0 else ():
                texts.setdefault(text, _Prompt(weight, facet))
    return texts


def _facet(facet: Facet, finding: Finding, names: tuple[str, ...], prompts: ClassPrompts) -> tuple[str, ...]:
    texts = names if facet == "name" else facet_texts(finding, (facet,))
    if facet in NAMING:
        return _in_templates(_templates(finding, prompts), texts)
    return _sentences(texts, finding, prompts)


def _sentences(texts: tuple[str, ...], finding: Finding, prompts: ClassPrompts) -> tuple[str, ...]:
    assert prompts.knowledge is not None
    if not prompts.knowledge.in_templates:
        return texts
    return _in_templates(_templates(finding, prompts), tuple(map(phrase, texts)))


def _templates(finding: Finding, prompts: ClassPrompts) -> tuple[str, ...]:
    assert prompts.knowledge is not None
    if not prompts.knowledge.modality_templates:
        return prompts.templates
    if finding.modality is None:
        raise ValueError(f"knowledge.modality_templates: finding {finding.id} states no modality")
    return TEMPLATES[finding.modality]


def _in_templates(templates: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(t.replace("{}", name) for t in templates for name in names))


def phrase(text: str) -> str:
    """A sentence as part of another: without its full stop, in lower case at its beginning unless that is a short form.

    Example:
        >>> phrase("A dark sac."), phrase("CT shows air.")
        ('a dark sac', 'CT shows air')
    """
    bare = text.rstrip(". ")
    return bare if bare[1:2].isupper() or bare[1:2] == "-" else bare[:1].lower() + bare[1:]


def _finding(label: str, names: tuple[str, ...], chosen: KnowledgePrompts, known: Knowledge) -> Finding:
    """The finding of a class: a name that is an id says it surely, then the label, then the other names."""
    ids = [name for name in names if name in known.findings]
    candidates = [*ids, *(() if label in chosen.absent else (label,)), *names]
    several = ""
    for name in candidates:
        found = _of_modality(name, chosen.modality, known)
        if len(found) == 1:
            return found[0]
        if found and not several:
            meant = ", ".join(f"{one.id} ({one.modality})" for one in found)
            several = f"; {name!r} means {meant}: state knowledge.modality, or give the id as a name"
    where = "" if chosen.modality is None else f" of modality {chosen.modality!r}"
    raise ValueError(
        f"class {label!r}: neither the label nor a name in {list(names)} is one finding{where} of "
        f"{chosen.path or 'the shipped base'}{several or '; try: clip-med knowledge list'}"
    )


def _of_modality(name: str, modality: str | None, known: Knowledge) -> tuple[Finding, ...]:
    found = known.matches(name)
    if modality is None or (len(found) == 1 and found[0].id == name):
        return found
    return tuple(one for one in found if one.modality is None or is_of_modality(one, modality))


__all__ = [
    "ClassPrompts",
    "KnowledgePrompts",
    "absence_prompts",
    "phrase",
    "prompt_facets",
    "prompt_weights",
    "render_prompts",
]
