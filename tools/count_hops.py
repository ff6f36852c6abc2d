"""Count how many calls and files a reader must follow to understand one thing that the package does.

    python tools/count_hops.py FLOW [--list]

``FLOW`` is the name of a file in ``tools/hops`` or a path to one like them. It defines
``prepare(folder)``, which returns the function to be followed, and may define ``VALUE``, a number:
then only calls count that this number passes through. Counted are Python functions of the package in
this thread: calls, files, and moves, which are calls in another file than the call before. The
package is the ``torchrec`` of the working directory.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType, ModuleType

FLOWS = Path(__file__).parent / "hops"


@dataclass
class Hops:
    """What was called, in order; and under which names a value was seen."""

    calls: list[CodeType] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    @property
    def files(self) -> set[str]:
        return {code.co_filename for code in self.calls}

    @property
    def moves(self) -> int:
        files = [code.co_filename for code in self.calls]
        return sum(before != after for before, after in pairwise(files))

    def __str__(self) -> str:
        names = f", {len(self.names)} names: {', '.join(sorted(self.names))}" if self.names else ""
        functions = len(set(self.calls))
        return (
            f"{len(self.calls)} calls of {functions} functions in {len(self.files)} files, "
            f"{self.moves} moves between files{names}"
        )


def follow(flow: Callable[[], object], package: str, value: float | None = None) -> Hops:
    """Run ``flow`` and count the calls of functions whose files are below ``package``.

    With a value, only those count that have it in a variable, or as a part of one, when they return.
    """
    hops = Hops()
    start = package.rstrip(os.sep) + os.sep
    event_counted = "call" if value is None else "return"

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != event_counted or not code.co_filename.startswith(start):
            return
        if (
            not code.co_flags & inspect.CO_OPTIMIZED
        ):  # the body of a module or class that is imported
            return
        if value is not None:
            names = set(_names_of(value, frame.f_locals))
            if not names:
                return
            hops.names |= names
        hops.calls.append(code)

    sys.setprofile(profile)
    try:
        flow()
    finally:
        sys.setprofile(None)
    return hops


def _names_of(value: float, variables: dict[str, object]) -> Iterator[str]:
    for name, content in variables.items():
        if type(content) is dict:
            yield from (str(key) for key, part in content.items() if _is(part, value))
        elif _is(content, value) or (
            type(content) in (list, tuple) and any(_is(part, value) for part in content)
        ):
            yield name


def _is(part: object, value: float) -> bool:
    return type(part) is float and part == value


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or "").splitlines()[0])
    named = ", ".join(sorted(path.stem for path in FLOWS.glob("*.py")))
    parser.add_argument("flow", help=f"one of {named}, or a file")
    parser.add_argument("--list", action="store_true", help="print every call")
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    import torchrec

    path = Path(options.flow)
    module = _load(path if path.suffix else FLOWS / f"{path.name}.py")
    package = os.path.dirname(torchrec.__file__)
    with tempfile.TemporaryDirectory() as folder:
        flow = module.prepare(Path(folder))
        hops = follow(flow, package, getattr(module, "VALUE", None))
    if options.list:
        for code in hops.calls:
            print(f"{os.path.relpath(code.co_filename, package)}: {code.co_qualname}")
    print(f"{path.stem}: {hops}")


if __name__ == "__main__":
    main()
