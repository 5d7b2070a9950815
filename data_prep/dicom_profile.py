"""The basic profile of PS3.15 at every depth of a data set: dicom-anonymizer's table and actions, applied by us.

Its own walk stays at the top: what stands in a sequence that the table does not name (the functional groups of every
enhanced image) would come through. UIDs and dates, which it makes random and constant, are keyed and moved here; free
text, names and dates that the table does not name are removed.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from typing import Any, Final

from dicomanonymizer.simpledicomanonymizer import initialize_actions
from pydicom.dataset import Dataset
from pydicom.uid import UID

from clip_med.data.sample import keyed_hash

# Of PS3.15: the newest that dicom-anonymizer 2.1 has.
_TABLE: Final = "dicomfields_2026c"
# UIDs that say what an object is, not which.
_MEANINGS: Final = "1.2.840.10008."
# Study, series, acquisition and content date, and acquisition date and time.
_KEPT_DATES: Final = ((0x0008, 0x0020), (0x0008, 0x0021), (0x0008, 0x0022), (0x0008, 0x0023), (0x0008, 0x002A))
# Kinds of values that tell of people and days, also where the table does not name the element.
_TELLING: Final = ("PN", "LT", "ST", "UT", "UC", "UR", "DA", "DT", "TM", "UN")
# Dates as text.
_ALSO: Final = ("PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar")
# What the actions of dicom-anonymizer write: texts, dates and times.
_DUMMIES: Final = ("", "ANONYMIZED", "http://anonymized.invalid", "00010101", "00010101010101.000000+0000", "000000.00")

_Action = Callable[[Dataset, Any], None]


def apply_profile(dataset: Dataset, secret: bytes, days: int) -> None:
    """Remove, empty or replace in place what the profile names, in sequences too; private elements go.

    UIDs become keyed ones that are the same in every run, the dates in `_KEPT_DATES` move by so many days. The meta
    header of a file is not looked at.

    Raises:
        NotImplementedError: an element of a type that its action does not know.
    """
    with warnings.catch_warnings():
        # Its actions call a function that pydicom 3 has renamed.
        warnings.simplefilter("ignore", DeprecationWarning)
        _clean(dataset, _Actions(secret, days))


class _Actions:
    """What becomes of an element, by its tag."""

    def __init__(self, secret: bytes, days: int) -> None:
        self._exact: dict[tuple[int, int], _Action] = {}
        # Of repeating groups: group, element, and the bits of both that count.
        self._masked: list[tuple[tuple[int, int, int, int], _Action]] = []
        self._secret, self._days = secret, days
        for tag, action in initialize_actions(_TABLE).items():
            if len(tag) > 2:
                self._masked.append((tag, action))
            elif tag in _KEPT_DATES:
                self._exact[tag] = self._move_date
            elif "UID" not in getattr(action, "__name__", ""):
                # UIDs are met on the way, in sequences of references too.
                self._exact[tag] = action

    def of(self, tag: tuple[int, int]) -> _Action | None:
        """The action of a tag, or none."""
        if tag in self._exact:
            return self._exact[tag]
        for (group, element, groups, elements), action in self._masked:
            if (tag[0] & groups, tag[1] & elements) == (group & groups, element & elements):
                return action
        return None

    def move_uid(self, dataset: Dataset, tag: Any) -> None:
        """A keyed UID, or several, in place of those that say which object it is."""
        element = dataset[tag]
        if element.value:
            values = [element.value] if isinstance(element.value, str) else list(element.value)
            uids = [value if value.startswith(_MEANINGS) else keyed_uid(self._secret, value) for value in values]
            element.value = uids[0] if len(uids) == 1 else uids

    def _move_date(self, dataset: Dataset, tag: Any) -> None:
        element = dataset[tag]
        if element.value:
            element.value = _shifted(str(element.value), self._days)


def _clean(dataset: Dataset, actions: _Actions) -> None:
    for tag in list(dataset.keys()):
        if tag.is_private:
            del dataset[tag]
            continue
        place = (tag.group, tag.element)
        if (action := actions.of(place)) is not None:
            action(dataset, place)
        element = dataset.get(tag)
        if element is None:
            continue
        if element.VR == "SQ":
            for item in element.value:
                _clean(item, actions)
        elif element.keyword in _ALSO or (
            element.VR in _TELLING and place not in _KEPT_DATES and str(element.value) not in _DUMMIES
        ):
            del dataset[tag]
        elif element.VR == "UI" and not element.keyword.endswith("ClassUID"):
            actions.move_uid(dataset, place)


def keyed_uid(secret: bytes, uid: str) -> UID:
    """A UID in the root for UUIDs (PS3.5 B.2) that depends on the secret and the original alone.

    Example:
        >>> keyed_uid(b"secret", "1.2.3") == keyed_uid(b"secret", "1.2.3")
        True
    """
    return UID(f"2.25.{int(keyed_hash(secret, 'uid', uid, length=32), 16)}")


def _shifted(value: str, days: int) -> str:
    """A date, or date and time, some days earlier; what is no date becomes empty."""
    try:
        date = datetime.datetime.strptime(value[:8], "%Y%m%d").date() + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return date.strftime("%Y%m%d") + (value[8:] if value[8:].replace(".", "").isdigit() else "")


__all__ = ["apply_profile", "keyed_uid"]
