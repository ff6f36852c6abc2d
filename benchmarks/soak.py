"""Runs all operators on random shapes for minutes: for wrong values, crashes, and memory or time that drifts.

``python -m benchmarks.soak --minutes 10`` draws operators and arguments, small ones of every kind (those of
``tools/fuzz``) and large ones that several threads share. Each call runs on one thread and on each other number of
``--threads``, which has to give the same bits; and as its specification, where sums are exact: on eighths. Every half
minute it prints the memory that the process has, and the processor time of some fixed calls. A failure prints the seed,
and ``--first SEED --cases 1`` runs it again. Ends with 1 if a value was wrong, or if in the second half, beside the
second quarter, the least memory was 32 MB more, or the least time of the fixed calls longer by a quarter.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from torchrec.ops import collision, hash_collision
from torchrec.ops._library import definitions
from torchrec.ops.embedding import (
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    new_hyper,
    write_hyper,
)
from torchrec.ops.embedding.updates import RULES
from torchrec.threads import using_threads

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from fuzz import judge, valid
from fuzz_operators import samples

GROWTH, SLOWER, EVERY = 32.0, 1.25, 30.0  # MB, times, seconds
Arguments = list[Any]


class Large:
    """Draws arguments that are large enough to be shared by threads, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.exact = self.random.random() < 0.5

    def numbers(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.exact:
            return (torch.randint(-16, 17, shape, generator=self.generator) / 8).to(dtype)
        return torch.randn(shape, generator=self.generator).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def offsets(self, lengths: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])

    def table(self, number: int) -> tuple[TableSpec, Tensor, list[Tensor], Any]:
        random = self.random
        rows, dim = random.choice((30, 2000, 20_000)), random.choice((1, 4, 17, 64, 128))
        kind = random.choice([None, *RULES])
        weight = self.numbers(rows, dim, dtype=random.choice(valid.FLOATS))
        states: list[Tensor] = []
        settings = None
        if kind is not None:
            rule = RULES[kind]
            settings = rule.hyper({"lr": 0.125})
            names = rule.state_names(settings)
            states = [rule.new_state(name, weight, settings).float() for name in names]
        spec = TableSpec(
            f"t{number}", dim, rows, rows, PolicyCode.ERROR, kind, len(states), 0, rows
        )
        return spec, weight, states, settings

    def look_up(self) -> dict[str, Any]:
        """Return what operators of look-ups take, by the names of their arguments."""
        random = self.random
        drawn = [self.table(t) for t in range(random.randint(1, 4))]
        specs = [spec for spec, _, _, _ in drawn]
        hyper = new_hyper(len(drawn))
        for row, (_, _, _, settings) in zip(hyper, drawn, strict=True):
            if settings is not None:
                write_hyper(row, settings)
        batch, most = random.choice(((3, 900), (64, 40), (1500, 1), (700, 9)))
        slots: list[SlotSpec] = []
        lengths, values, column = [], [], 0
        for s in range(random.randint(1, 5)):
            number, pooling = random.randrange(len(specs)), random.choice(list(PoolingCode))
            one = torch.ones(batch, dtype=torch.int64)
            lengths.append(
                one if pooling == PoolingCode.NONE else self.integers(0, most + 1, batch)
            )
            count = int(lengths[-1].sum())
            ids = self.integers(0, specs[number].num_embeddings, count)
            values.append(ids % 7 if random.random() < 0.2 else ids)  # a few rows, often
            slots.append(SlotSpec(f"f{s}", number, s, pooling, column))
            column += specs[number].dim
        spec, flat = LookupSpec(specs, slots, len(slots), column), torch.cat(lengths)
        offsets, counts = self.offsets(flat), [v.numel() for v in values]
        dtype = random.choice(valid.FLOATS)
        return {
            "grad": self.numbers(batch, column, dtype=dtype),
            "grads": [
                self.numbers(count, specs[slot.table].dim, dtype=dtype)
                for slot, count in zip(slots, counts, strict=True)
            ],
            "weights": [weight for _, weight, _, _ in drawn],
            "states": [state for _, _, states, _ in drawn for state in states],
            "hyper": hyper,
            "spec": spec.tensor,
            "values": torch.cat(values),
            "offsets": offsets,
            "starts": offsets[::batch][:-1].tolist(),
            "counts": counts,
            "dims": spec.dims,
            "sample_weights": self.numbers(int(offsets[-1])) if random.random() < 0.5 else None,
            "divisors": None,
            "num_keys": len(slots),
            "num_tables": len(specs),
            "width": column,
            "dtype": dtype,
            "names": spec.names,
        }

    def of_look_up(self, name: str) -> Arguments:
        drawn = self.look_up()
        if name == "embedding_bag_weights_grad" and drawn["sample_weights"] is None:
            drawn["sample_weights"] = self.numbers(drawn["values"].numel())
        return [drawn[argument.name] for argument in definitions[name].schema.arguments]

    def jagged(self, keys: int) -> tuple[Tensor, Tensor]:
        """Return lengths and values."""
        lengths = self.integers(0, 9, keys * self.random.choice((1, 900)))
        rest = self.random.choice(((), (), (16,)))
        return lengths, self.numbers(int(lengths.sum()), *rest)

    def permute_jagged(self) -> Arguments:
        keys = self.random.randint(1, 9)
        lengths, values = self.jagged(keys)
        order = [self.random.randrange(keys) for _ in range(self.random.randint(0, 12))]
        by_key = lengths.view(keys, -1)
        total = int(by_key[order].sum())
        weights = self.numbers(values.size(0)) if self.random.random() < 0.5 else None
        return [lengths, values, weights, [by_key.size(1)] * keys, order, total]

    def jagged_index_select(self) -> Arguments:
        lengths, values = self.jagged(3)
        bags = self.integers(0, lengths.numel(), self.random.choice((5, 4000)))
        return [values, lengths, bags, int(lengths[bags].sum())]

    def jagged_to_padded(self) -> Arguments:
        lengths, values = self.jagged(3)
        return [values, self.offsets(lengths), self.random.randint(0, 12), 0.5]

    def padded_to_jagged(self) -> Arguments:
        lengths, _ = self.jagged(3)
        padded = self.numbers(lengths.numel(), self.random.randint(0, 12), 8)
        return [padded, self.offsets(lengths), int(lengths.sum())]

    def hash_strings(self) -> Arguments:
        lengths = self.integers(0, 70, self.random.choice((9, 9000)))
        data = self.integers(0, 256, int(lengths.sum())).to(torch.uint8)
        return [data, self.offsets(lengths), 3]

    def vectors(self) -> tuple[Tensor, Tensor]:
        batch, features = self.random.choice((5, 1500)), self.random.choice((3, 26))
        dim, dtype = self.random.choice((16, 17, 64)), self.random.choice(valid.FLOATS)
        return (
            self.numbers(batch, dim, dtype=dtype),
            self.numbers(batch, features, dim, dtype=dtype),
        )

    def dot_interaction_grad(self) -> Arguments:
        dense, sparse = self.vectors()
        features = sparse.size(1)
        width = dense.size(1) + features * (features + 1) // 2
        return [self.numbers(dense.size(0), width, dtype=dense.dtype), dense, sparse]

    def id_map(self) -> tuple[collision.IdMap, Tensor]:
        """Return a map that is almost full, and a batch of ids of which it holds many."""
        rows = self.random.choice((100, 20_000))
        made = collision.new_id_map(rows)
        held = torch.randperm(3 * rows, generator=self.generator)[: rows - rows // 10]
        collision.insert_ids(made, held * 7919, torch.arange(held.numel()))
        return made, self.integers(0, 4 * rows, self.random.choice((50, 30_000))) * 7919

    def id_map_find(self) -> Arguments:
        made, batch = self.id_map()
        return [made.ids, made.entries, batch, -1]

    def id_map_count_(self) -> Arguments:
        made, batch = self.id_map()
        counts, last = (torch.zeros_like(made.ids) for _ in range(2))
        history = collision.new_history(batch.numel())
        totals = torch.zeros(3, dtype=torch.int64)
        return [made.ids, made.entries, counts, last, *history, totals, batch, 7, -1]

    def id_map_replace_(self) -> Arguments:
        made, batch = self.id_map()
        candidates = -1 - batch.unique()  # none of which it holds
        scores = (self.integers(0, 9, of.numel()) for of in (made.ids, candidates))
        return [*made, next(scores), candidates, next(scores)]

    def hash_slots_assign_(self) -> Arguments:
        size, batch = 8 * self.random.choice((9, 3000)), self.random.choice((50, 20_000))
        identities, bounds = torch.full((size,), -1), torch.arange(9) * (size // 8)
        ids, totals = self.integers(0, 2 * size, batch), torch.zeros(5, dtype=torch.int64)
        numbers = [0, 8, 0, False, 0, self.random.choice((4, 128)), True]
        assign = hash_collision.schema.hash_slots_assign_
        assign(identities, None, bounds, totals, ids // 2, None, None, *numbers, 0, False)
        return [identities, None, bounds, totals, ids, None, None, *numbers, 0, False]

    def draws(self) -> dict[str, Callable[[], Arguments]]:
        own = (
            self.permute_jagged, self.jagged_index_select, self.jagged_to_padded, self.padded_to_jagged,
            self.hash_strings, self.dot_interaction_grad, self.id_map_find, self.id_map_count_,
            self.id_map_replace_, self.hash_slots_assign_,
        )  # fmt: skip
        look_ups = [n for n in definitions if n.startswith("embedding") or n == "choose_rows"]
        return {
            "lengths_to_offsets": lambda: [self.jagged(9)[0]],
            "dot_interaction": lambda: list(self.vectors()),
            **{draw.__name__: draw for draw in own},
            **{name: lambda name=name: self.of_look_up(name) for name in look_ups},
        }


def small(seed: int, given: judge.Samples) -> tuple[str, Arguments]:
    """Return an operator and small arguments of every kind that it takes."""
    random, names = Random(seed), judge.drawn_names(given)
    name = random.choice(names)
    if name in valid.DRAWS:
        return name, valid.DRAWS[name](random)
    return name, judge.copied(random.choice([each for of, each in given if of == name]))


def large(seed: int) -> tuple[str, Arguments, bool]:
    """Return an operator and large arguments, and whether sums of them are exact."""
    drawing = Large(seed)
    name, draw = drawing.random.choice(list(drawing.draws().items()))
    return name, draw(), drawing.exact


def results(call: Callable[..., Any], name: str, arguments: Arguments) -> list[Any]:
    """Return what a call returns, and what became of the arguments that it writes."""
    arguments = judge.copied(arguments)
    returned = call(*arguments)
    written = [
        value
        for argument, value in zip(definitions[name].schema.arguments, arguments, strict=True)
        if argument.alias_info is not None and argument.name not in judge.UNSPECIFIED
    ]
    return [judge.plain(returned), *judge.plain(written)]


def same_bits(found: Any, wanted: Any) -> bool:
    if isinstance(found, Tensor):
        return torch.equal(found.nan_to_num(nan=12.5), wanted.nan_to_num(nan=12.5))
    if isinstance(found, (list, tuple)):
        return all(map(same_bits, found, wanted))
    return bool(found == wanted)


def failure(seed: int, threads: list[int], given: judge.Samples) -> tuple[str, str]:
    """Run a case; return the operator, and what was wrong: nothing, if all was right."""
    if seed % 2:
        (name, arguments), exact = small(seed, given), True
    else:
        name, arguments, exact = large(seed)
    definition = definitions[name]
    with using_threads(1):
        one = results(definition.call, name, arguments)
    for number in threads:
        with using_threads(number):
            if not same_bits(results(definition.call, name, arguments), one):
                return name, f"other bits on {number} threads"
    if not exact:
        return name, ""
    return name, judge.differs(one, results(definition.reference, name, arguments))


def memory() -> float:
    """Return the megabytes that the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def fixed_calls() -> float:
    """Return the least processor time of the same calls, in milliseconds."""
    cases = [large(seed)[:2] for seed in range(0, 24, 2)]
    times = []
    for _ in range(5):
        copies = [(name, judge.copied(arguments)) for name, arguments in cases]
        start = time.process_time()
        for name, arguments in copies:
            definitions[name].call(*arguments)
        times.append(time.process_time() - start)
    return min(times) * 1e3


def soak(seeds: Iterator[int], threads: list[int], seconds: float) -> bool:
    """Run the cases until time is up; return whether all went well."""
    given, counts, wrong = samples(), Counter[str](), 0
    began = last = time.monotonic()
    readings: list[tuple[float, float]] = []
    for seed in seeds:
        name, why = failure(seed, threads, given)
        counts[name] += 1
        if why:
            wrong += 1
            print(f"wrong: seed {seed}: {name}: {why}", flush=True)
        now = time.monotonic()
        if now - last > EVERY or now - began > seconds:
            last = now
            readings.append((memory(), fixed_calls()))
            print(
                f"{now - began:5.0f} s: {counts.total():7,} cases, {wrong} wrong, {readings[-1][0]:.0f} MB, "
                f"fixed calls {readings[-1][1]:.1f} ms",
                flush=True,
            )
        if now - began > seconds:
            break
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    if not readings:
        return not wrong
    half = len(readings) // 2
    before, after = readings[half // 2 : half + 1], readings[half:]
    growth = min(size for size, _ in after) - min(size for size, _ in before)
    slower = min(spent for _, spent in after) / min(spent for _, spent in before)
    print(f"soak: {wrong} wrong, {growth:+.0f} MB, fixed calls {slower:.2f} times as long")
    return not wrong and growth <= GROWTH and slower <= SLOWER


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, help="no more than so many")
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    stop = None if options.cases is None else options.first + options.cases
    seeds = itertools.count(options.first) if stop is None else iter(range(options.first, stop))
    return 0 if soak(seeds, options.threads, options.minutes * 60) else 1


if __name__ == "__main__":
    sys.exit(main())
