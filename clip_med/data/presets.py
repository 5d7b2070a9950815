"""What may be done to an image of each modality without making its caption untrue. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final

from annotated_types import Ge, Le

from clip_med.config import NonNegativeFloat

Jitter = Annotated[float, Ge(0.0), Le(0.9)]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What may be done to images of one modality without changing what their captions say.

    `mirror`: horizontal flips; `turn`: vertical flips and quarter turns; `rotation`: largest angle in degrees;
    `brightness`, `contrast`, `gamma`: relative ranges (0.1 draws from 0.9 to 1.1); `color`: relative gain per channel.
    """

    mirror: bool = False
    turn: bool = False
    rotation: NonNegativeFloat = 5.0
    brightness: Jitter = 0.1
    contrast: Jitter = 0.1
    gamma: Jitter = 0.1
    color: Jitter = 0.0


# For modalities that are not listed: nothing that could contradict a caption, intensity changes that a reader would
# hardly notice.
CONSERVATIVE: Final = Preset()

PRESETS: Final[dict[str, Preset]] = {
    # A mirrored chest film shows dextrocardia and puts "left effusion" on the right. Patients stand a few degrees
    # off; exposure and detector curves differ widely between machines.
    "xray": Preset(rotation=7.0, brightness=0.15, contrast=0.2, gamma=0.2),
    # Views are named by side (RCC, LMLO). Calcifications live in fine contrast, so less of it than for X-ray.
    "mammography": Preset(rotation=5.0, brightness=0.1, contrast=0.1, gamma=0.1),
    # Grey levels are Hounsfield units through a window: shifting them far makes fat of water. Liver and spleen
    # must keep their sides.
    "ct": Preset(rotation=7.0, brightness=0.05, contrast=0.1, gamma=0.05),
    # Grey levels have no unit and differ by coil and sequence, but their order tells T1 from T2: no inversion.
    "mri": Preset(rotation=7.0, brightness=0.15, contrast=0.2, gamma=0.2),
    # The probe marker fixes the side, depth grows downwards, the sector stands upright. Gain is set by hand.
    "ultrasound": Preset(rotation=5.0, brightness=0.2, contrast=0.2, gamma=0.15),
    # The disc lies nasally: a flip turns a right eye into a left one. Colour is a finding (pallor, haemorrhage).
    "fundus": Preset(rotation=10.0, brightness=0.15, contrast=0.15, gamma=0.1),
    # B-scans: layers are ordered from top to bottom and nasal/temporal from side to side; the retina tilts freely.
    "oct": Preset(rotation=5.0, brightness=0.15, contrast=0.15, gamma=0.15),
    # The camera rolls in the lumen, but sides are reported (otoscopy, laryngoscopy), and colour is a finding.
    "endoscopy": Preset(rotation=15.0, brightness=0.15, contrast=0.15, gamma=0.1),
    # A section lies on the slide any way round. Stain strength varies by laboratory, its hue carries meaning
    # (haematoxylin against eosin, positive against negative immunostain): gains only, and small ones.
    "histology": Preset(mirror=True, turn=True, rotation=0.0, brightness=0.1, contrast=0.15, gamma=0.1, color=0.05),
    # The dermatoscope is put on at any angle. Colours are criteria (blue-white veil): white balance only.
    "dermoscopy": Preset(mirror=True, turn=True, rotation=0.0, brightness=0.1, contrast=0.1, gamma=0.1, color=0.03),
    # Cells have no up and no side. Channels may be fluorophores or stains, so they keep their balance.
    "microscopy": Preset(mirror=True, turn=True, rotation=0.0, brightness=0.1, contrast=0.15, gamma=0.1),
}

_NAMES: Final[dict[str, str]] = {
    alias: modality
    for modality, aliases in {
        "xray": "x ray|xr|radiograph|radiography|plain radiograph|cxr|chest x ray|chest xray|chest radiograph|dx|cr|dr",
        "mammography": "mammogram|mg|digital breast tomosynthesis|dbt",
        "ct": "computed tomography|ct scan|cta|cbct|hrct",
        "mri": "mr|magnetic resonance|magnetic resonance imaging|mr imaging|mra|fmri",
        "ultrasound": "us|ultrasonography|sonography|echo|echocardiography|doppler ultrasound",
        "fundus": "fundus photography|fundus photograph|color fundus photography|colour fundus photography|cfp"
        "|retina|retinal|retinal photography",
        "oct": "optical coherence tomography",
        "endoscopy": "colonoscopy|gastroscopy|bronchoscopy|cystoscopy|laparoscopy|laryngoscopy|otoscopy",
        "histology": "histopathology|pathology|wsi|whole slide image|h&e|he|immunohistochemistry|ihc",
        "dermoscopy": "dermatoscopy|dermoscopic",
        "microscopy": "cytology|blood smear|blood smear microscopy|light microscopy|fluorescence microscopy"
        "|electron microscopy|bone marrow smear",
    }.items()
    for alias in (modality, *aliases.split("|"))
}


def preset_for(modality: str) -> Preset:
    """The preset of a modality by any of its usual names ("CXR", "X-ray", "H&E"); `CONSERVATIVE` for any other.

    Example:
        >>> preset_for("Chest X-ray").mirror, preset_for("histopathology").mirror
        (False, True)
    """
    name = " ".join(re.sub(r"[-_/]", " ", modality.casefold()).split())
    return PRESETS[_NAMES[name]] if name in _NAMES else CONSERVATIVE


_SIDES: Final = re.compile(
    r"\b(?:left|right|sinist|dextr|levo|mirror|situs)|nasal|temporal|clockwise"
    r"|\bo'?\s?clock\b|\b(?:od|os|lul|lll|rul|rml|rll|ruq|rlq|luq|llq|lca|rca|lad|rcc|lcc|rmlo|lmlo)\b",
    re.IGNORECASE,
)
# Single letters count only as capitals: "L kidney", "R > L", but not "l-shaped" or "r = 0.3".
_SIDE_LETTER: Final = re.compile(r"\b[LR]\b")


def states_laterality(caption: str) -> bool:
    """Whether an English caption names a side, so that mirroring its image could make it untrue.

    Errs towards yes ("a temporal trend" counts): a needless yes costs one flip, a wrong no teaches a falsehood.

    Example:
        >>> states_laterality("Left-sided pleural effusion"), states_laterality("bilateral opacities")
        (True, False)
    """
    return bool(_SIDES.search(caption) or _SIDE_LETTER.search(caption))


__all__ = ["CONSERVATIVE", "PRESETS", "Jitter", "Preset", "preset_for", "states_laterality"]
