"""``python -m torchrec``: the command line."""

import sys

from torchrec.cli import main

sys.exit(main())
