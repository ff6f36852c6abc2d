"""Calls, files and moves are counted as a reader would follow them."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

COUNT = Path(__file__).parents[2] / "tools" / "count_hops.py"

FILES = {
    "torchrec/__init__.py": "",
    "torchrec/first.py": "from torchrec import second\n\n\n"
    "def start(rate):\n    here()\n    here()\n    return second.go(rate * 2, {'lr': rate})\n\n\n"
    "def here():\n    from torchrec import late\n    assert late.Late\n",
    "torchrec/second.py": "from torchrec import first\n\n\n"
    "def go(twice, options):\n    first.here()\n    return len(str(twice))\n",
    "torchrec/late.py": "class Late:\n    pass\n",
    "flow.py": "from torchrec.first import start\n\n\n"
    "def prepare(folder):\n    return lambda: start(0.25)\n",
}


def count(folder: Path, *options: str, value: str = "") -> list[str]:
    for name, text in {**FILES, "flow.py": FILES["flow.py"] + value}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    command = [sys.executable, str(COUNT), "flow.py", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_calls_files_and_moves(tmp_path: Path) -> None:
    assert count(tmp_path, "--list") == [
        "first.py: start",
        "first.py: here",
        "first.py: here",
        "second.py: go",
        "first.py: here",
        "flow: 5 calls of 3 functions in 2 files, 2 moves between files",
    ]


def test_the_way_of_a_value(tmp_path: Path) -> None:
    assert count(tmp_path, value="VALUE = 0.25\n") == [
        "flow: 2 calls of 2 functions in 2 files, 1 moves between files, 2 names: lr, rate"
    ]
