"""The code of the documents runs: Python, and commands; the blocks of one file in order, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tools import install_checkout
from torchrec.datasets.synthetic import read_limits
from torchrec.models import registry
from torchrec.runs import RunFolder, numbers_of

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("csrc/**/*.md")])
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: Path) -> list[tuple[int, str, str]]:
    """List the line that each block starts on, its language and its code."""
    text = document.read_text()
    return [
        (text[: found.start(2)].count("\n"), found[1], found[2]) for found in BLOCK.finditer(text)
    ]


class Shell:
    """The shell of a reader, in the folder of a checkout after ``make native``.

    Args:
        folder: gets a ``.venv`` with the command ``torchrec``.
        activated: whether the command is on the path from the start.
    """

    def __init__(self, folder: Path, activated: bool) -> None:
        self.folder = folder
        venv.create(folder / ".venv", symlinks=True)
        install_checkout.install(folder, folder / ".venv" / "bin", sys.executable)
        others = [
            path
            for path in os.environ["PATH"].split(os.pathsep)
            if not Path(path, "torchrec").exists()
        ]
        self.path = os.pathsep.join([str(folder / ".venv" / "bin")] * activated + others)

    def run(self, code: str) -> None:
        """Run the lines that begin with ``$``, as they are; what stands below one is not checked."""
        lines = re.findall(r"^\$ (.*)$", code, re.MULTILINE)
        for line in lines:
            command = shlex.split(line, comments=True)[0]
            assert command in ("torchrec", "."), f"documents show commands of torchrec: {command}"
        remember = f'printf %s "$PATH" > {shlex.quote(str(self.folder / ".path"))}'
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "PATH": self.path}
        done = subprocess.run(
            ["/bin/sh", "-ec", "\n".join([*lines, remember])],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        self.path = (self.folder / ".path").read_text()


@pytest.mark.parametrize(
    "document",
    [
        # The README trains on a million clicks.
        pytest.param(document, marks=[pytest.mark.slow] if document.name == "README.md" else [])
        for document in DOCUMENTS
        if blocks(document)
    ],
    ids=lambda document: str(document.relative_to(ROOT)),
)
def test_code(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # One of them adds a folder of models, which later tests should not know.
    monkeypatch.setattr(registry, "__path__", list(registry.__path__))
    names: dict[str, object] = {"__name__": "__document__"}
    found = blocks(document)
    if sys.platform == "win32" and any(language == "console" for _, language, _ in found):
        pytest.skip("the lines are for a POSIX shell")
    # The README says how the command gets there; the others stand on it.
    shell = Shell(tmp_path, activated=document.name != "README.md")
    for line, language, code in found:
        if language == "python":
            exec(compile("\n" * line + code, str(document), "exec"), names)
        else:
            shell.run(code)

    if document.name == "README.md":
        test = RunFolder("runs/first").read_result().test
        limits = read_limits(Path("clicks/test.parquet"))
        assert limits is not None
        assert limits.auc - 0.01 < numbers_of(test)["auc"] < limits.auc + 0.005


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
