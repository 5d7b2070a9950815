"""How much of what identifies people comes through: identifiers are planted in copies, and looked for in the results.

An estimate for these places and forms, never a guarantee: what was not planted is not measured, and pixels are not
looked at.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data_prep.dicom_deidentify import deidentify_tree
from data_prep.dicom_reading import DAMAGED, read_dicom
from data_prep.dicom_tree import DicomConfig, DicomSource
from data_prep.files import inside, walk_files
from data_prep.planting import IDENTIFIERS, REPORTS, plant
from data_prep.record import RejectedImageError
from data_prep.scrub import Scrubber
from data_prep.writing import source_to_shards

# Any secret will do: nothing of the audit is kept.
_SECRET: Final = b"an audit keeps nothing"


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """Identifiers that were planted, and those that were found again.

    Attributes:
        places: of each leaked identifier the place or form, with the number of leaks.
        outputs: images or reports that came out; without any, nothing was measured.
    """

    planted: int
    leaked: int
    places: Mapping[str, int]
    outputs: int

    @property
    def upper(self) -> float:
        """Upper end of the one-sided 95 % interval of the leaked share (Clopper-Pearson), for independent trials."""
        from scipy.stats import beta

        if self.leaked == self.planted:
            return 1.0
        return float(beta.ppf(0.95, self.leaked + 1, self.planted - self.leaked))

    def as_values(self) -> dict[str, Any]:
        """For printing."""
        share = self.leaked / self.planted if self.planted else 0.0
        return {
            "planted": self.planted,
            "leaked": self.leaked,
            "leak estimate": f"{share:.4f} (95 % upper bound {self.upper:.4f})",
            "outputs": self.outputs,
        }


def audit_dicom(
    root: Path, *, files: int = 20, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Leaks]:
    """Plant identifiers in copies of up to `files` DICOM images of a folder, and look for them in shards and in files.

    Copies, shards and files lie in a temporary folder that is removed.

    Raises:
        ValueError: no DICOM image below the folder.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "planted").mkdir()
        planted: dict[str, list[str]] = {}
        count = 0
        for relative in walk_files(root):
            if count == files:
                break
            try:
                dataset = read_dicom(inside(root, relative, named="the folder"))
                if "PixelData" not in dataset:
                    continue
                marks = plant(dataset, count)
                dataset.save_as(folder / f"planted/{count:06d}.dcm", enforce_file_format=True)
            except (RejectedImageError, *DAMAGED):
                continue  # not an image: nothing is measured with it
            for place, mark in marks.items():
                planted.setdefault(place, []).append(mark)
            count += 1
            if on_progress is not None:
                on_progress(count, files)
        if not count:
            raise ValueError(f"{root}: holds no DICOM image that an identifier could be planted in")
        source = DicomSource(folder / "planted", DicomConfig(split="audit", burned_in="ignore"))
        report = source_to_shards(source, folder / "shards", secret_file=folder / "key")
        (folder / "shards/rejected.jsonl").unlink()  # names files of the source, for whoever made the shards
        written, _ = deidentify_tree(folder / "planted", folder / "files", _SECRET, burned_in="ignore")
        return {
            "shards": _found(folder / "shards", planted, sum(report.written.values())),
            "files": _found(folder / "files", planted, written),
        }


def audit_text(*, presidio: str | None = None) -> Leaks:
    """Identifiers in reports, through the scrubber; forms that no rule can find are among them.

    Args:
        presidio: see `Scrubber`.
    """
    planted = leaked = 0
    places: dict[str, int] = {}
    scrubber = Scrubber(_SECRET, presidio)
    for kind, identifiers in IDENTIFIERS.items():
        for number, identifier in enumerate(identifiers):
            for report in REPORTS:
                planted += 1
                text = scrubber.scrub(report.format(identifier), group=f"patient {number}")
                if any(word in text for word in _telling(identifier)):
                    leaked += 1
                    places[kind] = places.get(kind, 0) + 1
    return Leaks(planted=planted, leaked=leaked, places=places, outputs=planted)


def _telling(identifier: str) -> list[str]:
    """The words of an identifier that tell something: numbers and names; if there are none, all words."""
    dropped = {
        "Mrs",
        "Prof",
        "Herr",
        "MRN",
        "Patient",
        "ID",
        "Reported",
        "Signed",
        "Discussed",
        "Dr",
        "Saint",
        "Medical",
    }
    words = [word for word in re.findall(r"[\w@.+/:-]*\w", identifier) if len(word) > 1 and word not in dropped]
    telling = [word for word in words if word[0].isupper() or any(c.isdigit() for c in word) or "@" in word]
    return telling or words


def _found(folder: Path, planted: Mapping[str, list[str]], outputs: int) -> Leaks:
    content = b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())
    names = "\0".join(str(file) for file in sorted(folder.rglob("*"))).encode()
    places = {
        place: leaked
        for place, marks in planted.items()
        if (leaked := sum(mark.encode() in content or mark.encode() in names for mark in marks))
    }
    total = sum(len(marks) for marks in planted.values())
    return Leaks(planted=total, leaked=sum(places.values()), places=places, outputs=outputs)


__all__ = ["Leaks", "audit_dicom", "audit_text"]
