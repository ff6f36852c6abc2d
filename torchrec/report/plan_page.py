"""The page of a plan: ranks with their memory and time, and tables by ranks."""

from __future__ import annotations

import os
from pathlib import Path

from markupsafe import Markup

from torchrec.distributed.planner.types import (
    PlanReport,
    RankReport,
    ShardingPlan,
    TableReport,
)
from torchrec.files import write_file
from torchrec.report.card import Card
from torchrec.report.header import Tile
from torchrec.report.page import Section, page
from torchrec.report.scale import memory

__all__ = ["render_plan", "write_plan"]

# Rows and columns of the drawing of tables by ranks.
_MOST_TABLES, _MOST_RANKS = 400, 128


def write_plan(plan: ShardingPlan, output: str | os.PathLike[str], title: str = "plan") -> Path:
    """Write a plan as one HTML file, that needs no network.

    Args:
        plan: made by a planner.
        output: the file to write.
        title: what it is a plan of.

    Returns:
        The file.

    Raises:
        ValueError: if the plan was not made by a planner.
    """
    path = Path(output)
    write_file(path, render_plan(plan, title))
    return path


def render_plan(plan: ShardingPlan, title: str = "plan") -> str:
    """Return the page of a plan; the arguments as those of `write_plan`."""
    report = plan.report
    if report is None:
        raise ValueError("`plan` should be made by a planner. Received one that was made by hand.")
    slowest, fullest = report.slowest, max(report.ranks, key=_share, default=None)
    total = sum(table.num_bytes for table in report.tables)
    tiles = [
        Tile(
            "Step",
            _ms(report.step_ms),
            "What tables take of a step" if report.dense_ms is None else "Tables and layers",
            [
                f"{_ms(report.fixed_ms)} of it messages",
                *([] if report.dense_ms is None else [f"{_ms(report.dense_ms)} layers"]),
            ],
        ),
        Tile(
            "Slowest rank",
            "-" if slowest is None else str(slowest.rank),
            "It has most to do",
            [] if slowest is None else [_ms(slowest.ms)],
        ),
        Tile(
            "Fullest rank",
            "-" if fullest is None else _percent(_share(fullest)),
            "Of the memory for tables",
            [] if fullest is None else [f"rank {fullest.rank}", memory(fullest.num_bytes)],
        ),
        Tile(
            "Tables",
            str(len(report.tables)),
            "With the state of their optimizers and what is exchanged",
            [memory(total)],
        ),
    ]
    return page(
        "page.html",
        kind="plan",
        title=title,
        refresh=None,
        verdicts=[f"{report.optimality.value.capitalize()}."],
        notes=report.binds,
        summary=[
            ("ranks", str(len(report.ranks))),
            ("device", report.device),
            ("samples a rank", str(report.batch_size)),
            ("rates", "measured" if report.is_measured else "from bandwidths"),
            ("made from", report.made_from[:12]),
        ],
        split="",
        tiles=tiles,
        sections=[
            Section("speed", "Ranks", [_ranks_card(report)]),
            Section("tables", "Tables by ranks", [_grid_card(report)]),
            Section("configuration", "Why each table is where it is", [_why_card(report)]),
        ],
    )


def _ranks_card(report: PlanReport) -> Card:
    ranks = report.ranks
    most_ms = max((rank.ms for rank in ranks), default=0.0) or 1.0
    rows = Markup("").join(
        Markup(
            '<tr title="{title}"><th scope="row">{rank}</th>'
            '<td class="bar-cell"><span class="bar"><i class="train" style="width:{compute:.2f}%"></i>'
            '<i class="valid" style="width:{exchange:.2f}%"></i></span></td><td>{ms}</td>'
            '<td class="bar-cell"><span class="bar"><i class="test" style="width:{full:.2f}%"></i></span></td>'
            "<td>{bytes}</td><td>{layers}</td><td>{tables}</td></tr>"
        ).format(
            title=f"rank {rank.rank}: looks up and updates {_ms(rank.compute_ms)}, exchanges {_ms(rank.exchange_ms)}; "
            f"{memory(rank.num_bytes)} of {memory(rank.capacity)}: {memory(rank.memory.table_bytes)} weights and "
            f"states, {memory(rank.memory.step_bytes)} in a step, {memory(rank.memory.message_bytes)} messages; "
            f"{memory(rank.reserved)} kept free, {memory(rank.dense_bytes)} of these for layers",
            rank=rank.rank,
            compute=100 * rank.compute_ms / most_ms,
            exchange=100 * rank.exchange_ms / most_ms,
            ms=_ms(rank.ms),
            full=100 * min(_share(rank), 1.0),
            bytes=memory(rank.num_bytes),
            layers=memory(rank.dense_bytes) if rank.dense_bytes else "-",
            tables=rank.tables,
        )
        for rank in ranks
    )
    head = Markup(
        "<thead><tr><th>rank</th><th>time</th><th></th><th>memory</th><th></th><th>layers</th><th>tables</th></tr></thead>"
    )
    return Card(
        "Time and memory",
        f"Time of a step, and the share of the memory for tables that is taken. {report.of_layers}".rstrip(),
        Markup('<div class="scroll"><table class="plan">{}<tbody>{}</tbody></table></div>').format(
            head, rows
        ),
        [("train", "look-up and update"), ("valid", "exchange"), ("test", "memory")],
        wide=True,
    )


def _grid_card(report: PlanReport) -> Card:
    tables = sorted(report.tables, key=lambda table: -table.num_bytes)[:_MOST_TABLES]
    ranks = report.ranks[:_MOST_RANKS]
    largest = max((max(_of_ranks(table).values(), default=0) for table in tables), default=0) or 1
    head = Markup("").join(Markup("<th>{}</th>").format(rank.rank) for rank in ranks)
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            table.table,
            Markup("").join(_cell(table, rank.rank, largest) for rank in ranks),
        )
        for table in tables
    )
    left_out = len(report.tables) - len(tables), len(report.ranks) - len(ranks)
    about = "The darker, the more bytes of a table a rank has; the largest tables first."
    if any(left_out):
        about += f" Left out: {left_out[0]} tables, {left_out[1]} ranks."
    return Card(
        "Who has what",
        about,
        Markup(
            '<div class="scroll"><table class="plan grid-of-ranks"><thead><tr><th>table</th>{}</tr></thead>'
            "<tbody>{}</tbody></table></div>"
        ).format(head, rows),
        [],
        wide=True,
    )


def _of_ranks(table: TableReport) -> dict[int, int]:
    found: dict[int, int] = {}
    for rank, size in zip(table.ranks, table.part_bytes, strict=True):
        found[rank] = found.get(rank, 0) + size
    return found


def _cell(table: TableReport, rank: int, largest: int) -> Markup:
    size = _of_ranks(table).get(rank)
    if size is None:
        return Markup("<td></td>")
    ms = sum(t for t, r in zip(table.part_ms, table.ranks, strict=True) if r == rank)
    title = f"{table.table} on rank {rank}, {table.sharding_type}: {memory(size)}, {_ms(ms)}"
    depth = 0.15 + 0.85 * (size / largest) ** 0.25
    return Markup('<td class="held" title="{}" style="opacity:{:.2f}"></td>').format(title, depth)


def _why_card(report: PlanReport) -> Card:
    rows = Markup("").join(
        Markup(
            '<tr><th scope="row">{}</th><td>{:,}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>'
            '<td class="words">{}</td></tr>'
        ).format(
            table.table,
            table.rows,
            table.columns,
            table.sharding_type,
            _ms(table.ms),
            memory(table.num_bytes),
            report.why(table),
        )
        for table in report.tables
    )
    return Card(
        "Types",
        "What a step would take if a table were placed in the next best ways, the others staying.",
        Markup(
            '<div class="scroll"><table class="plan"><thead><tr><th>table</th><th>rows</th><th>columns</th>'
            "<th>type</th><th>time</th><th>memory</th><th>next best</th></tr></thead><tbody>{}</tbody></table></div>"
        ).format(rows),
        [],
        wide=True,
    )


def _share(rank: RankReport) -> float:
    return rank.num_bytes / rank.capacity if rank.capacity else 0.0


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _ms(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms:.0f} ms"
