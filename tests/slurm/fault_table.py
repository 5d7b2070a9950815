"""What runs survived, as a Markdown table; filled by test_faults.py, printed by conftest.py."""

from __future__ import annotations

HEAD = ("after step 6 of 20", "starts", "resumed from step", "seconds", "at the end")
# Here and not in conftest.py, which pytest imports under a name of its own.
TABLE: list[tuple[str, ...]] = []


def markdown() -> list[str]:
    """Its lines, with aligned columns."""
    table = [HEAD, ("",) * len(HEAD), *TABLE]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    return [
        "| " + " | ".join(cell.ljust(w, "-" if n == 1 else " ") for cell, w in zip(row, widths, strict=True)) + " |"
        for n, row in enumerate(table)
    ]
