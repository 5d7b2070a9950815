"""What long work prints where nobody watches."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clip_med.commands import progress


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines of a display that hears of images (seconds, done, total); it starts at 50 s."""

    def lines(*heard: tuple[float, int, int]) -> list[str]:
        clock = [50.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: clock[-1])
        with progress.ItemDisplay() as display:
            for now, done, total in heard:
                clock.append(now)
                display.on_item("images", done, total)
        return capsys.readouterr().err.splitlines()

    return lines


def test_lines_say_the_rate_and_the_time_left_of_what_was_done_now(printed: Callable[..., list[str]]) -> None:
    # What an earlier run has done comes at once.
    earlier = (50.0, 100, 1000)
    assert printed(earlier, (52.0, 120, 1000), (70.0, 300, 1000), (71.0, 310, 1000), (90.0, 500, 1000)) == [
        "images 300/1,000, 10/s, 0:01:10 left",
        "images 500/1,000, 10/s, 0:00:50 left",
    ]


def test_the_next_images_under_the_same_name_have_a_rate_of_their_own(printed: Callable[..., list[str]]) -> None:
    heard = ((51.0, 64, 100), (52.0, 100, 100), (60.0, 10, 60), (70.0, 60, 60))
    assert printed(*heard) == ["images 60/60, 5/s, 0:00:00 left"]
