"""Exchanges states with another Python that has the same API, both ways.

``python -m tools.interchange --peer /path/to/python`` builds every case of ``modules.py`` and ``optimizers.py``
under both, hands the states over, and says where the outputs that follow are not the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

WORKER = Path(__file__).with_name("worker.py")


def run(python: str, *arguments: str, out: Path) -> dict[str, Any]:
    """Run the cases under a Python and return what they have written."""
    subprocess.run(
        [python, str(WORKER), *arguments, str(out)], check=True, capture_output=True, cwd=out.parent
    )
    written: dict[str, Any] = torch.load(out)
    return written


def verdict(given: dict[str, Any], follows: dict[str, Any] | None) -> str:
    """Say whether the outputs after a state was taken over are those where it was saved."""
    if "error" in given:
        return f"cannot be saved: {given['error']}"
    if follows is None:
        return "not taken over"
    if "error" in follows:
        return f"refused: {follows['error']}"
    pairs = list(zip(given["out"], follows["out"], strict=False))
    if len(given["out"]) != len(follows["out"]) or any(a.shape != b.shape for a, b in pairs):
        return "outputs of other shapes"
    worst = max(
        (
            ((a.double() - b.double()).abs() / (1 + a.double().abs())).max().item()
            for a, b in pairs
            if a.numel()
        ),
        default=0.0,
    )
    return "same" if worst < 1e-5 else f"outputs differ by {worst:.2g}"


def main() -> int:
    """Exchange all states; return how many did not come over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="another Python with the same API")
    peer = parser.parse_args().peer
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        ours = run(sys.executable, "save", out=files / "ours.pt")
        theirs = run(peer, "save", out=files / "theirs.pt")
        here = run(sys.executable, "load", str(files / "theirs.pt"), out=files / "here.pt")
        there = run(peer, "load", str(files / "ours.pt"), out=files / "there.pt")
    missed = 0
    for name in ours:
        results = verdict(theirs[name], here.get(name)), verdict(ours[name], there.get(name))
        missed += results != ("same", "same")
        print(f"{name:45} taken over: {results[0]:12} handed over: {results[1]}")
    print(f"{len(ours)} cases, {missed} that do not come over both ways")
    return missed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
