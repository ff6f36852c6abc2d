"""Copy the kernels of the installed package into this checkout, as CI does, which builds them by ``pip install``.

python tools/take_kernels.py [--required]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--required", action="store_true", help="fail where there are none")
    required = parser.parse_args().required
    installed = Path(sysconfig.get_path("platlib"), "torchrec", "ops")
    found = [*installed.glob("_native*.so"), *installed.glob("_native*.pyd")]
    for path in found:
        print(shutil.copy(path, ROOT / "torchrec" / "ops"))
    if not found:
        print(f"no kernels in {installed}")
    return 1 if required and not found else 0


if __name__ == "__main__":
    sys.exit(main())
