"""English for names of findings: articles, lists and denials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

# Nouns that need an article when they stand alone; a name whose last word is another (pneumonia, oedema) goes without.
_COUNTED: Final = frozenset(
    (
        *(
            "abscess",
            "adenoma",
            "aneurysm",
            "angioma",
            "artery",
            "blister",
            "body",
            "bone",
            "brain",
            "breast",
            "bruise",
        ),
        *("catheter", "cavity", "cell", "clot", "crystal", "ct", "cyst", "defect", "dermatofibroma", "device", "disc"),
        *(
            "diverticulum",
            "duct",
            "effusion",
            "embolus",
            "fibroid",
            "fibroma",
            "fissure",
            "fistula",
            "fracture",
            "gland",
        ),
        *(
            "glioma",
            "granuloma",
            "haemangioma",
            "haematoma",
            "hand",
            "heart",
            "hemangioma",
            "hematoma",
            "hernia",
            "hip",
        ),
        *("implant", "infarct", "joint", "keratosis", "kidney", "knee", "lens", "lesion", "lipoma", "liver", "lung"),
        *("mass", "melanoma", "meningioma", "metastasis", "mole", "mri", "naevus", "nevus", "nodule", "opacity"),
        *("osteophyte", "pacemaker", "papilloma", "plaque", "pneumothorax", "polyp", "retina", "scan", "scar"),
        *("schwannoma", "shadow", "spine", "spot", "stent", "stone", "tear", "thrombus", "tube", "tumor", "tumour"),
        *("ulcer", "vein", "vessel", "wart", "wire", "x-ray", "abnormality", "aorta", "basophil", "bladder", "cava"),
        *("cecum", "colon", "eosinophil", "erythroblast", "fibroadenoma", "fundus", "gallbladder", "granulocyte"),
        *("hole", "infiltrate", "lymphocyte", "macula", "monocyte", "neutrophil", "pancreas", "platelet", "prostate"),
        *("pylorus", "spleen", "stomach", "veil", "z-line"),
    )
)
# Labels that are adjectives.
_ADJECTIVES: Final = {
    "normal": "normal findings",
    "healthy": "normal findings",
    "abnormal": "abnormal findings",
    "benign": "benign findings",
    "malignant": "malignant findings",
}
# "a unilateral", "a uterine", "an MRI", "an X-ray".
_AS_CONSONANT: Final = re.compile(r"(?:uni(?!n)|ure|uri|ute|use|eu|one\b)", re.IGNORECASE)
# What follows says more of the noun before it.
_AFTER_NOUN: Final = re.compile(r"\s(?:of|in|with|without|other|or|and)\s")
_SPELT: Final = re.compile(r"[A-Z](?:[A-Z0-9]+\b|-)")


def with_article(name: str) -> str:
    """A finding as it stands after "showing".

    Example:
        >>> [with_article(name) for name in ("kidney stone", "pneumonia", "lung opacities", "mass of fat", "normal")]
        ['a kidney stone', 'pneumonia', 'lung opacities', 'a mass of fat', 'normal findings']
    """
    if name.lower() in _ADJECTIVES:
        return _ADJECTIVES[name.lower()]
    words = _AFTER_NOUN.split(name, maxsplit=1)[0].split()
    if words[0].lower() in ("a", "an", "the", "no") or words[-1].lower() not in _COUNTED:
        return name
    return f"{article(name)} {name}"


def article(phrase: str) -> str:
    """The indefinite article before a phrase.

    Example:
        >>> [article(word) for word in ("ulcer", "uterine mass", "X-ray", "CT image", "MRI scan", "opacity")]
        ['an', 'a', 'an', 'a', 'an', 'an']
    """
    if _SPELT.match(phrase):
        return "an" if phrase[0] in "AEFHILMNORSX" else "a"
    return "an" if phrase[0].lower() in "aeiou" and not _AS_CONSONANT.match(phrase) else "a"


def listed(phrases: Sequence[str], last: str = "and") -> str:
    """Phrases as a list.

    Example:
        >>> listed(["a cyst"]), listed(["a", "b", "c"]), listed(["a", "b"], "or")
        ('a cyst', 'a, b and c', 'a or b')
    """
    *first, end = phrases
    return f"{', '.join(first)} {last} {end}" if first else end


def sentence(text: str) -> str:
    """The text with a capital at its beginning, but for words such as pH.

    Example:
        >>> sentence("an X-ray showing a cyst."), sentence("pH probe.")
        ('An X-ray showing a cyst.', 'pH probe.')
    """
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


__all__ = ["article", "listed", "sentence", "with_article"]
