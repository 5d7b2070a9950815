"""Windows of CT images by name."""

from __future__ import annotations

from typing import Final, Literal

# Center and width in Hounsfield units, as radiology teaching sites give them (Radiopaedia, "Windowing (CT)").
WINDOWS: Final = {
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
    "soft_tissue": (50.0, 400.0),
    "brain": (40.0, 80.0),
    "mediastinum": (50.0, 350.0),
}
WindowName = Literal["file", "lung", "bone", "soft_tissue", "brain", "mediastinum"]

__all__ = ["WINDOWS", "WindowName"]
