"""Ways to place tables, table by table."""

from __future__ import annotations

from collections.abc import Iterable

from torchrec.distributed.planner._options import ShardingOption

__all__ = ["by_table"]


def by_table(options: Iterable[ShardingOption]) -> list[list[ShardingOption]]:
    """Return the ways of each table, in the order in which tables come first.

    Args:
        options: ways of several tables.
    """
    tables: dict[tuple[str, str], list[ShardingOption]] = {}
    for option in options:
        tables.setdefault((option.path, option.name), []).append(option)
    return list(tables.values())
