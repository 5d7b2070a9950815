"""The loader's benchmark runs, and its checks that both sides do the same work hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.loader import measure


# webdataset leaves the tars that it read half to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_ratio_is_measured_in_every_round(tmp_path: Path) -> None:
    measured = measure(tmp_path, images=10, rounds=1)
    assert set(measured) == {
        "decode_vs_open_clip",
        "decode_grey_vs_open_clip",
        "decode_rgb_vs_open_clip",
        "decode_default_vs_open_clip",
        "decode_default_rgb_vs_open_clip",
        "wide_crops_vs_open_clip",
        "raw_vs_webdataset",
        "resume_seconds_fraction",
    }
    assert all(len(ratios) == 1 and ratios[0] > 0 for ratios in measured.values())
