"""What is measured: shapes, what is wanted of them, and the limit that the machine sets."""

from __future__ import annotations

from dataclasses import dataclass, field


def feature_names(number: int) -> list[str]:
    """Return so many names."""
    return [f"feature_{i}" for i in range(number)]


KEYS = feature_names(26)
LINE = 64  # bytes that memory moves at least
# As `torchrec.heap.keep_freed_memory`, which our runs and commands call: memory that was freed stays with the process.
KEEPING = {"MALLOC_TRIM_THRESHOLD_": f"{2**31 - 1}", "MALLOC_MMAP_THRESHOLD_": f"{2**28}"}


@dataclass(frozen=True)
class Tables:
    """Tables and a batch for them: as many ids in each bag of each table.

    Attributes:
        tables: how many.
        rows: of each.
        dim: of each.
        batch: bags of each.
        length: ids a bag.
    """

    tables: int
    rows: int
    dim: int
    batch: int
    length: int

    @property
    def numbers(self) -> list[int]:
        return [self.tables, self.rows, self.dim, self.batch, self.length]

    def moved(self, training: bool) -> tuple[float, float]:
        """Return the bytes that a step has to read from memory, and to write there.

        A row that several bags read is read once: a table, or the rows between two of its uses, may fit the cache. A
        training step reads rows twice, as a model stands between look-up and update, and writes them; its state is
        4 bytes a row, of which memory moves whole lines.
        """
        ids = self.batch * self.length
        distinct = self.rows * (1 - (1 - 1 / self.rows) ** ids)  # of so many at random
        rows, pooled = distinct * self.dim * 4, self.batch * self.dim * 4
        read, written = rows + 8 * ids, pooled
        if training:
            lines = self.rows * 4 / LINE
            state = lines * (1 - (1 - 1 / lines) ** distinct) * LINE
            read, written = 2 * read + pooled + state, written + rows + state
        return self.tables * read, self.tables * written


@dataclass(frozen=True)
class Scenario:
    """One thing to measure.

    Attributes:
        name: what the report calls it.
        work: which of ``benchmarks.work`` makes it, and its arguments.
        ratio: that is wanted, of the peer's time over ours.
        share: that is wanted, of the limit's time over ours.
        loop: arguments of ``limits.cpp``: a loop that does the same and nothing else.
        moved: bytes read and written; at the rates of memory they are the limit. Without: the loop is.
        products: the matrix products of this model and batch, and whether backward too, are the limit.
        scaling: whether to measure it on one thread too.
        environment: of all sides.
    """

    name: str
    work: list[object]
    ratio: float | None = None
    share: float | None = None
    loop: list[str] = field(default_factory=list)
    moved: tuple[float, float] | None = None
    products: list[object] = field(default_factory=list)
    scaling: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def look_up(name: str, tables: Tables, ratio: float, *, rates: bool = True) -> Scenario:
    """Look rows up and sum them; the limit are its bytes at the rates of memory, or the loop."""
    return Scenario(
        name,
        ["look_up", *tables.numbers],
        ratio,
        0.8,
        ["look-up", *map(str, tables.numbers)],
        tables.moved(training=False) if rates else None,
        scaling=True,
    )


def growth(name: str, tables: Tables, loop: bool = False) -> Scenario:
    """Look rows up in more and more tables, or bags: no number of them is to be slower than the peer's."""
    return Scenario(
        name,
        ["look_up", *tables.numbers],
        1,
        loop=["look-up", *map(str, tables.numbers)] if loop else [],
        scaling=True,
    )


def training(name: str, tables: Tables) -> Scenario:
    """Look up, and update by row-wise Adagrad in the backward pass."""
    return Scenario(
        name,
        ["training", *tables.numbers],
        2.5,
        0.7,
        ["training", *map(str, tables.numbers)],
        tables.moved(training=True),
        scaling=True,
    )


def model(
    name: str,
    kind: str,
    batch: int,
    train: bool,
    ratio: float | None,
    share: float | None,
    environment: dict[str, str] | None = None,
) -> Scenario:
    """Take a step of a model, or predict by it; the limit are its matrix products."""
    arguments: list[object] = [kind, batch, train]
    return Scenario(
        name,
        ["model", *arguments],
        ratio,
        share,
        products=["products", *arguments],
        scaling=train,
        environment=environment or {},
    )


def sparse(name: str, ratio: float | None) -> Scenario:
    """Call a method of the sparse types: the time is that of calls, nothing limits it."""
    return Scenario(name, ["sparse", name], ratio)


SCENARIOS = [
    Scenario("look-up, B=1", ["look_up", 26, 100_000, 64, 1, 1], 4),
    Scenario("look-up, B=64", ["look_up", 26, 100_000, 64, 64, 1], 4),
    look_up("look-up, B=4096", Tables(26, 100_000, 64, 4096, 1), 2.5),
    look_up("look-up, B=2048, 20 ids", Tables(26, 100_000, 64, 2048, 20), 1.4, rates=False),
    look_up("look-up, 8 x 1M x 128, B=1024, 50 ids", Tables(8, 1_000_000, 128, 1024, 50), 1.5),
    *(
        growth(
            f"look-up, tables of 1,000 x 16: {n:,}, B=256", Tables(n, 1000, 16, 256, 1), loop=True
        )
        for n in (1, 10, 100, 1000)
    ),
    *(
        growth(f"look-up, 8 x 100,000 x 64, B=256, {n} ids", Tables(8, 100_000, 64, 256, n))
        for n in (1, 10, 100)
    ),
    training("training step, B=2048, 1 id", Tables(26, 100_000, 64, 2048, 1)),
    training("training step, B=2048, 20 ids", Tables(26, 100_000, 64, 2048, 20)),
    model("DLRM, training step, B=2048", "dlrm", 2048, True, 1.45, 0.85),
    model("DLRM_DCN, training step, B=2048", "dcn", 2048, True, 1.3, 0.85),
    model("DLRM, training step, memory kept", "dlrm", 2048, True, 1.45, 0.85, KEEPING),
    model("DLRM_DCN, training step, memory kept", "dcn", 2048, True, 1.3, 0.85, KEEPING),
    model("DLRM, inference, B=1", "dlrm", 1, False, 2.5, None),
    model("DLRM, inference, B=256", "dlrm", 256, False, 2.5, None),
    model("DLRM_DCN, inference, B=256", "dcn", 256, False, None, None),
    model("DLRM_DCN, inference, memory kept", "dcn", 256, False, None, None, KEEPING),
    Scenario(
        "managed collision, 100,000 rows, 20,000 ids",
        ["collision", 100_000, 20_000],
        3,
        loop=["probe", "100000", "20000"],
    ),
    sparse("KeyedJaggedTensor", 1.5),
    sparse("split", 1.5),
    sparse("to_dict", 1.5),
    sparse("permute", 1.5),
    sparse("concat", 1.5),
    sparse("[]", 1.5),
    sparse("KeyedTensor.regroup", 1.5),
]
