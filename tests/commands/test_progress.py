"""What long work prints where nobody watches."""

from __future__ import annotations

import pytest

from clip_med.commands import progress


def test_lines_say_the_rate_and_the_time_left_of_what_was_done_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [50.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[-1])
    with progress.ItemDisplay() as display:
        # What an earlier run has done comes at once.
        display.on_item("images", 100, 1000)
        for now, done in ((52.0, 120), (70.0, 300), (71.0, 310), (90.0, 500)):
            clock.append(now)
            display.on_item("images", done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "images 300/1,000, 10/s, 0:01:10 left",
        "images 500/1,000, 10/s, 0:00:50 left",
    ]


def test_the_next_images_under_the_same_name_have_a_rate_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [50.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[-1])
    with progress.ItemDisplay() as display:
        for now, done, total in ((51.0, 64, 100), (52.0, 100, 100), (60.0, 10, 60), (70.0, 60, 60)):
            clock.append(now)
            display.on_item("images", done, total)
    assert capsys.readouterr().err.splitlines() == ["images 60/60, 5/s, 0:00:00 left"]
