"""Measures training on several ranks beside another Python with the same API, and beside what nobody can save.

``python -m benchmarks.ranks --peer /path/to/python`` starts the ranks of both sides, each on one thread, over gloo, and
gives them their turns round after round. Times are those of a step: by the clock, and of a rank's processor. Wanted is
the peer's time over ours, by the clock, the median of the ratios within a round.

The floor is what is left where nothing is routed, packed or waited for: a rank's share of the tables looked up and
updated for the batches of all ranks, and its vectors and their gradients sent by two calls of ``all_to_all_single``;
each measured in the same rounds. Calls are those of the process group in a step, bytes those that all ranks have sent
through sockets: what goes through memory that ranks share is neither. "Memory kept": on all sides the C library keeps
what a step frees, as `torchrec.heap.keep_freed_memory` has it do.

``--world 8`` on a machine with two cores: only the processor's time tells something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import HERE, Process
from benchmarks.scenarios import KEEPING

Answer = dict[str, float]
HEAD = "scenario|peer|ours|peer / ours|wanted|floor|floor / ours|peer, processor|ours, processor|"
HEAD += "peer, calls|ours, calls|peer, MB|ours, MB"


@dataclass(frozen=True)
class Scenario:
    """One thing to measure.

    Attributes:
        name: what the report calls it.
        work: which of ``benchmarks.ranks_worker`` makes it, sharding type, samples a rank, ids a bag.
        wanted: of the peer's time over ours.
        floor: whether it has one: the model around a collection takes time of its own.
        environment: variables of all sides.
    """

    name: str
    work: list[object]
    wanted: float
    floor: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


def scenarios(batch: int) -> list[Scenario]:
    found = []
    for length, wanted in ((1, 2.0), (20, 1.5)):
        for kind in ("table_wise", "row_wise", "column_wise"):
            ids = "1 id" if length == 1 else f"{length} ids"
            work: list[object] = ["collection", kind, batch, length]
            found.append(Scenario(f"collection, {kind}, {ids}", work, wanted))
    return found + [
        Scenario(f"DLRM, {kind}, 1 id{kept}", ["dlrm", kind, batch, 1], 1.5, False, environment)
        for kept, environment in (("", {}), (", memory kept", KEEPING))
        for kind in ("table_wise", "row_wise", "column_wise")
    ]


class Ranks:
    """The ranks of one side.

    Args:
        python: that runs them.
        work: what they do.
        world: how many.
        folder: where they run: it has our benchmarks, and no torchrec but that of the Python.
        environment: further variables. Default: none.
    """

    def __init__(
        self,
        python: str,
        work: list[object],
        world: int,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        store = tempfile.mktemp(dir=folder)
        arguments = ["-W", "ignore", "-m", "benchmarks.ranks_worker", json.dumps(work)]

        def start(rank: int) -> Process:
            command = [python, *arguments, str(rank), str(world), store]
            return Process(command, folder, {"OMP_NUM_THREADS": "1", **(environment or {})})

        with ThreadPoolExecutor(world) as pool:
            self._processes = list(pool.map(start, range(world)))

    def ask(self, steps: int) -> Answer:
        """Have all ranks take so many steps; return the means of what they answer."""
        with ThreadPoolExecutor(len(self._processes)) as pool:
            answers = list(pool.map(lambda process: process.ask(steps), self._processes))
        return {key: statistics.fmean(answer[key] for answer in answers) for key in answers[0]}

    def close(self) -> None:
        for process in self._processes:
            process.close()


def measure(
    scenario: Scenario, others: dict[str, str], world: int, rounds: int, steps: int, folder: Path
) -> list[dict[str, Answer]]:
    """Give each side its turn in each round; the last answer counts what is sent."""
    sides = {
        side: Ranks(python, scenario.work, world, folder, scenario.environment)
        for side, python in {"ours": sys.executable, **others}.items()
    }
    counted = list(sides)
    if scenario.floor:
        for name in ("exchange", "halved"):
            sides[name] = Ranks(sys.executable, [name, *scenario.work[1:]], world, folder)
    found = [{side: ranks.ask(steps) for side, ranks in sides.items()} for _ in range(rounds)]
    found.append({side: sides[side].ask(-5) for side in counted})
    for ranks in sides.values():
        ranks.close()
    return found


def row_of(scenario: Scenario, found: list[dict[str, Answer]]) -> str:
    *rounds, counted = found

    def middle(side: str, key: str) -> str:
        answers = [each[side][key] for each in rounds if side in each]
        return f"{statistics.median(answers):.1f}" if answers else ""

    def count(side: str, key: str, unit: float) -> str:
        return f"{counted[side][key] / unit:.3g}" if side in counted else ""

    ratio = floor = share = ""
    if "peer" in rounds[0]:
        each = [answer["peer"]["wall"] / answer["ours"]["wall"] for answer in rounds]
        ratio = f"{statistics.median(each):.2f}"
    if scenario.floor:
        floors = [answer["exchange"]["wall"] + answer["halved"]["wall"] for answer in rounds]
        shares = [f / answer["ours"]["wall"] for f, answer in zip(floors, rounds, strict=True)]
        floor, share = f"{statistics.median(floors):.1f}", f"{statistics.median(shares):.0%}"
    cells = [scenario.name, middle("peer", "wall"), middle("ours", "wall"), ratio]
    cells += [f"{scenario.wanted:.1f}", floor, share]
    cells += [middle("peer", "processor"), middle("ours", "processor")]
    cells += [count(side, "calls", 1) for side in ("peer", "ours")]
    cells += [count(side, "bytes", 1e6) for side in ("peer", "ours")]
    return "| " + " | ".join(cells) + " |"


def one_rank(folder: Path, rounds: int, steps: int, batch: int) -> str:
    """Return the line of one rank that shards, against none."""
    works = {kind: ["collection", kind, batch, 1] for kind in ("unsharded", "table_wise")}
    sides = {kind: Ranks(sys.executable, list(work), 1, folder) for kind, work in works.items()}
    found = [
        {kind: ranks.ask(steps)["wall"] for kind, ranks in sides.items()} for _ in range(rounds)
    ]
    for ranks in sides.values():
        ranks.close()
    ratio = statistics.median(each["table_wise"] / each["unsharded"] for each in found)
    return (
        f"One rank, 1 id: a step under DistributedModelParallel takes {ratio:.3f} of one without."
    )


def report(options: argparse.Namespace) -> Iterator[str]:
    others = {"peer": options.peer} if options.peer else {}
    yield f"{options.world} ranks of one thread, {options.batch} samples each; ms a step.\n"
    yield "| " + " | ".join(HEAD.split("|")) + " |\n|" + "---|" * len(HEAD.split("|"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "benchmarks").symlink_to(HERE, target_is_directory=True)
        for scenario in scenarios(options.batch):
            if any(part in scenario.name for part in options.only or [""]):
                found = measure(
                    scenario, others, options.world, options.rounds, options.steps, folder
                )
                yield row_of(scenario, found)
        if any(part in "one rank" for part in options.only or [""]):
            yield "\n" + one_rank(folder, options.rounds, options.steps, options.batch)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", help="Python of an environment with another torchrec")
    parser.add_argument("--world", type=int, default=2, help="ranks")
    parser.add_argument("--batch", type=int, default=1024, help="samples a rank")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=25, help="a turn")
    parser.add_argument("--only", action="append", help="scenarios whose name contains this")
    parser.add_argument("--output", type=Path, help="file to write")
    options = parser.parse_args()
    lines = []
    for line in report(options):
        print(line, flush=True)
        lines.append(line)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
