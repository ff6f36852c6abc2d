"""The command of a checkout: where it is called, and how its environment is named, do not matter."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="`make` is for POSIX systems"),
]

TOOL = Path(__file__).parents[2] / "tools" / "install_checkout.py"


def test_the_command_runs_from_anywhere(tmp_path: Path) -> None:
    environment = tmp_path / ("an environment " + "with a long name " * 10)
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    subprocess.run([python, TOOL], check=True)
    found = subprocess.check_output([python, "-c", "import rowwise; print(rowwise.__file__)"])
    assert Path(found.decode().strip()).parents[1] == TOOL.parents[1]

    folder = tmp_path / "work"
    (folder / "rowwise").mkdir(parents=True)  # somebody's own
    (folder / "rowwise" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    # Typer and rich, which the new environment lacks, are those of this one.
    path = os.pathsep.join(entry for entry in sys.path if entry.endswith("site-packages"))
    done = subprocess.run(
        [environment / "bin" / "torchrec", "--version"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rowwise ")
