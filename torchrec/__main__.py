"""``python -m torchrec``: the command line. ``python -m rowwise`` is the same, without PyTorch at its start."""

import sys

from rowwise.cli import main

sys.exit(main())
