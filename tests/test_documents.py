"""The code of the documents runs: Python, and commands; the blocks of one file in order, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from torchrec.models import registry

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


def run_console(code: str) -> None:
    """Run the lines that begin with ``$``; what stands below one is what it prints, not checked."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    for line in re.findall(r"^\$ (.*)$", code, re.MULTILINE):
        command = shlex.split(line, comments=True)
        assert command[0] == "torchrec", f"documents show commands of torchrec, not {command[0]}"
        command = [sys.executable, "-m", "torchrec", *command[1:]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if blocks(document)],
    ids=lambda document: str(document.relative_to(ROOT)),
)
def test_code(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # One of them adds a folder of models, which later tests should not know.
    monkeypatch.setattr(registry, "__path__", list(registry.__path__))
    names: dict[str, object] = {"__name__": "__document__"}
    for line, language, code in blocks(document):
        if language == "python":
            exec(compile("\n" * line + code, str(document), "exec"), names)
        else:
            run_console(code)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
