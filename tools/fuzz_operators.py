"""Call every registered operator with arguments drawn at random, valid and crooked ones, and judge what comes of it.

    python tools/fuzz_operators.py [--first SEED] [--cases N] [--workers N] [--native FOLDER]

The operators are those that are registered: a new one is called as soon as it is there. Each call should give the value
of the specification (`reference.py`), or be refused with a sentence. A case is a seed: what fails prints the line that
runs it again. A worker that dies is started again behind the case it died of. ``--native`` names a folder with another
build of the kernels, such as that of `make sanitize`.
"""

from __future__ import annotations

import argparse
import importlib.util
import mmap
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
SECONDS_A_CASE = 60
VERDICTS = ("right", "refused", "wrong", "poor")
LAYOUT = f"<{1 + len(VERDICTS)}q"


def use_native(folder: Path) -> None:
    """Have the package use the kernels of another build."""
    (path,) = folder.glob("_native*.so")
    spec = importlib.util.spec_from_file_location("torchrec.ops._native", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"`--native` should name a folder with a build. Received {folder}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["torchrec.ops._native"] = module
    spec.loader.exec_module(module)


def samples() -> Any:
    """Return the arguments that `opcheck` has of every operator."""
    path = ROOT / "tests" / "ops" / "opcheck_samples.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"The samples of opcheck should be in {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OPCHECK_SAMPLES


class Progress:
    """The case under way and the verdicts so far, in a file that outlives who writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), 0)

    @staticmethod
    def create(path: Path, first: int) -> Path:
        path.write_bytes(struct.pack(LAYOUT, first, *(0 for _ in VERDICTS)))
        return path

    def write(self, seed: int, verdicts: Counter[str]) -> None:
        struct.pack_into(LAYOUT, self._numbers, 0, seed, *(verdicts[name] for name in VERDICTS))

    def read(self) -> tuple[int, Counter[str]]:
        seed, *numbers = struct.unpack_from(LAYOUT, self._numbers)
        return seed, Counter(dict(zip(VERDICTS, numbers, strict=True)))


def forgotten() -> list[str]:
    """Return the registered operators that nothing is drawn for."""
    from fuzz.judge import definitions, drawn_names

    return sorted(set(definitions) - set(drawn_names(samples())))


def run(seeds: range, progress: Progress | None = None) -> Counter[str]:
    """Judge the cases of some seeds."""
    from fuzz.judge import judge

    given, verdicts = samples(), Counter[str]()

    def too_long(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"A case took more than {SECONDS_A_CASE} s.")

    signal.signal(signal.SIGALRM, too_long)
    for seed in seeds:
        if progress is not None:
            progress.write(seed, verdicts)
        signal.alarm(SECONDS_A_CASE)
        case, verdict = judge(seed, given)
        signal.alarm(0)
        verdicts[verdict.verdict] += 1
        if verdict.verdict in ("wrong", "poor"):
            print(f"{verdict.verdict}: {case}: {verdict.why}\n  {again(seed)}", flush=True)
    if progress is not None:
        progress.write(seeds.stop, verdicts)
    return verdicts


def again(seed: int) -> str:
    return f"python tools/fuzz_operators.py --first {seed} --cases 1"


def start(seeds: range, progress: Path, native: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--progress", str(progress)]
    command += ["--first", str(seeds.start), "--cases", str(seeds.stop - seeds.start)]
    command += ["--workers", str(seeds.step), *(["--native", str(native)] if native else [])]
    return subprocess.Popen(command)


def supervise(first: int, cases: int, workers: int, native: Path | None) -> Counter[str]:
    """Run the workers, and again those that die, behind the case they died of."""
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        waiting = [range(first + worker, first + cases, workers) for worker in range(workers)]
        running = []
        while waiting or running:
            for seeds in waiting:
                path = Progress.create(Path(folder, str(seeds.start)), seeds.start)
                running.append((start(seeds, path, native), path, seeds))
            process, path, seeds = running.pop(0)
            code = process.wait()
            seed, verdicts = Progress(path).read()
            total.update(verdicts)
            waiting = []
            if code:
                print(f"crash: exit {code}\n  {again(seed)}", flush=True)
                total["crash"] += 1
                waiting = [range(seed + seeds.step, seeds.stop, seeds.step)]
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--native", type=Path)
    parser.add_argument("--progress", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    if options.native:
        use_native(options.native)
    end = options.first + options.cases
    if options.progress:
        run(range(options.first, end, options.workers), Progress(Path(options.progress)))
        return 0
    if forgotten():
        print(f"fuzz: nothing draws arguments of {forgotten()}; see tools/fuzz/valid.py")
        return 1
    if options.cases == 1:
        total = run(range(options.first, end))
    else:
        total = supervise(options.first, options.cases, options.workers, options.native)
    print("fuzz:", ", ".join(f"{total[name]} {name}" for name in (*VERDICTS, "crash")))
    return 1 if total["crash"] or total["wrong"] or total["poor"] else 0


if __name__ == "__main__":
    sys.exit(main())
