"""`python -m clip_med`: the `clip-med` command, for torchrun and srun."""

import sys

from clip_med.cli import main

sys.exit(main())
