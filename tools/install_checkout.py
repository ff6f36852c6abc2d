"""Make this checkout a part of the environment whose Python runs this: importable, and the command ``torchrec`` there.

python tools/install_checkout.py

Like an editable installation, but without a build: the kernels are those of `make native`.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The first two lines are a shell's: the path of an environment may be long and have spaces, which a line with `#!` may
# not. Unlike `python -m`, a script does not look for modules where it is called.
SCRIPT = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys

from rowwise.cli import main

if __name__ == "__main__":  # processes that are started read the script as well
    sys.exit(main())
"""


def install(site: Path, scripts: Path, python: str) -> Path:
    """Write the path file into ``site`` and the command into ``scripts``, and return the command."""
    (site / "rowwise-checkout.pth").write_text(f"{ROOT}\n")
    command = scripts / "torchrec"
    command.write_text(SCRIPT.format(python=python))
    command.chmod(0o755)
    return command


if __name__ == "__main__":
    install(
        Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("scripts")), sys.executable
    )
