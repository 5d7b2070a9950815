"""Reports of the Indiana University chest X-ray collection (Open-i): one XML file a study."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass

from data_prep.record import RejectedImageError


@dataclass(frozen=True, kw_only=True)
class OpeniReport:
    """What one file says. `images` are names without folder and ending; `labels` the headings of its MeSH terms."""

    study: str
    sections: Mapping[str, str]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    licence: str


def read_openi(data: bytes) -> OpeniReport:
    """A report from the bytes of its file.

    Raises:
        RejectedImageError: not XML, with a document type (which could hold entities), or without a study number.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise RejectedImageError("damaged report", "XML with a document type of its own")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise RejectedImageError("damaged report", f"XML: {error}") from error
    uid = root.find("uId")
    if uid is None or not uid.get("id"):
        raise RejectedImageError("damaged report", "no uId: not a report of Open-i")
    texts = {
        text.get("Label", "").lower(): " ".join("".join(text.itertext()).split()) for text in root.iter("AbstractText")
    }
    labels = [(major.text or "").split("/")[0].strip().lower() for major in root.iter("major")]
    return OpeniReport(
        study=str(uid.get("id")),
        sections={**texts, "report": " ".join(filter(None, (texts.get("findings"), texts.get("impression"))))},
        images=tuple(name for image in root.iter("parentImage") if (name := image.get("id"))),
        labels=tuple(dict.fromkeys(label for label in labels if label)),
        licence=(root.findtext("licenseURL") or root.findtext("licenseType") or "").strip(),
    )


__all__ = ["OpeniReport", "read_openi"]
