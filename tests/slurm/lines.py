"""A job of a few statements of Python: python -m tests.slurm.lines STATEMENTS [ARGUMENTS]."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    exec(sys.argv.pop(1))
