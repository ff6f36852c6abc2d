"""Some hundred of the calls that `make sanitize` makes by the thousand, and what the fuzz itself rests on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torchrec.ops import backends

ROOT = Path(__file__).parents[2]
FUZZ = ROOT / "tools" / "fuzz_operators.py"


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZ), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.skipif(
    backends()["embedding_bag"]["cpu"].name != "native",
    reason="plain PyTorch reads what it is given, and may say so in its own words",
)
def test_calls_of_every_operator_give_what_is_right_or_say_what_is_wrong() -> None:
    done = fuzz("--cases", "600")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 wrong, 0 poor, 0 crash" in done.stdout


def test_a_case_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FUZZ.parent))
    from fuzz.judge import draw
    from fuzz_operators import samples

    cases = [[str(draw(seed, samples())) for seed in range(60)] for _ in range(2)]
    assert cases[0] == cases[1]
    assert len(set(cases[0])) == 60


def test_no_registered_operator_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FUZZ.parent))
    import fuzz_operators

    from torchrec.ops._library import definitions

    monkeypatch.setitem(definitions, "a_new_one", definitions["regroup"])
    monkeypatch.setattr(sys, "argv", ["fuzz_operators.py", "--cases", "5"])
    assert fuzz_operators.main() == 1
    assert "nothing draws arguments of [" in (told := capsys.readouterr().out)
    assert "'a_new_one'" in told


def test_what_fails_is_told_with_the_line_that_runs_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FUZZ.parent))
    import fuzz.judge
    import fuzz_operators

    def broken(*_: object) -> str:
        return "another value"

    monkeypatch.setattr(fuzz.judge, "differs", broken)
    assert fuzz_operators.run(range(40))["wrong"] > 0
    told = capsys.readouterr().out
    assert "another value" in told
    assert "python tools/fuzz_operators.py --first" in told


def test_poor_messages_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FUZZ.parent))
    from fuzz.judge import POOR

    assert POOR.search("list index out of range")
    assert POOR.search("'NoneType' object is not iterable")
    assert POOR.search("f(): incompatible function arguments. The following")
    assert not POOR.search("`offsets` should never fall. Received 3, 2.")
