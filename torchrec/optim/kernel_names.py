"""State of fused tables under the names that the kernels of TorchRec have for it, in and out.

There the state of table ``t`` is ``t.momentum_1`` (or ``t.weight.momentum_1``, ``t.momentum1``) and ``…_2``, a number
a row is ``(E,)``, and there is no step count of a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

from torch import Tensor

_NUMBERED = re.compile(r"momentum_?([12])")


def from_kernel_names(
    saved: Mapping[str, Mapping[str, Any]], params: Mapping[str, Tensor], state: Mapping[Any, Any]
) -> dict[str, Mapping[str, Any]]:
    """Return a state with the entries that are named so under the names that they have here.

    Args:
        saved: name of the parameter, which may lack what stands before the table -> state.
        params: name -> parameter, of the optimizer that takes it over.
        state: parameter -> its state; of fused tables, with a step count.
    """
    counted = {
        name: state[param] for name, param in params.items() if "step" in state.get(param, ())
    }
    renamed: dict[str, Mapping[str, Any]] = {}
    for name, values in saved.items():
        full = [own for own in counted if own.endswith(f".{name}")]
        known = name in params or len(full) != 1
        renamed[name if known else full[0]] = values
    if not any("step" in values for values in saved.values()):
        # A table without state beside the count (SGD) is not named at all.
        stateless = {name for name, own in counted.items() if len(own) == 1}
        renamed |= {name: {} for name in stateless - renamed.keys()}
        # Nor is one that this rank has nothing of: what it has stays.
        absent = {name: own for name, own in counted.items() if _is_elsewhere(own)}
        renamed = {**absent, **renamed}
    for name, own in counted.items():
        given = renamed.get(name)
        if given is not None and all("." in key for key in given):
            renamed[name] = _own(given, own)
    return renamed


def is_cut_up(value: object) -> bool:
    """Whether a tensor is cut up over ranks: of PyTorch's types, or of `torchrec.distributed`."""
    return isinstance(value, Tensor) and (
        hasattr(value, "local_shards") or hasattr(value, "full_tensor")
    )


def _is_elsewhere(own: Mapping[str, Any]) -> bool:
    """Whether other ranks have all of a table's state."""
    values = [value for name, value in own.items() if name != "step"]
    return all(is_cut_up(value) and not value.local_shards() for value in values)


def _own(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in own if name != "step"]
    result: dict[str, Any] = {}
    for key, value in values.items():
        last = key.rsplit(".", 1)[-1]
        numbered = _NUMBERED.fullmatch(last)
        number = int(numbered[1]) - 1 if numbered else None
        name = last if number is None or number >= len(names) else names[number]
        like = own.get(name)
        result[name] = value
        if isinstance(value, Tensor) and isinstance(like, Tensor) and like.shape[1:] == (1,):
            result[name] = _per_row(value, like)
    # The rules with running averages correct them by the count, and no other does.
    if "step" in own and "exp_avg" not in own:
        result["step"] = own["step"]
    return result


class _CutUpByColumns(Protocol):
    """What a state of `torchrec.distributed` knows of one number a row where columns of tables are split."""

    def split_by_columns(self, count: int) -> Tensor: ...

    def mean_of_columns(self, value: Tensor) -> Tensor: ...


def _knows_columns(state: object) -> TypeGuard[_CutUpByColumns]:
    return hasattr(state, "split_by_columns")


def _per_row(value: Tensor, like: Tensor) -> Tensor:
    """Return a state of one number a row; of tables whose columns were split, the mean of those of each part."""
    rows = like.shape[0]
    if is_cut_up(value) and not _knows_columns(like):
        return value
    if value.dim() != 1 or not rows or value.shape[0] % rows:
        return value
    if _knows_columns(like):
        return value if value.shape[0] == rows else like.mean_of_columns(value)
    return value.view(-1, rows).mean(0).view_as(like)


def to_kernel_names(
    saved: Mapping[str, Mapping[str, Any]], column_shards: Mapping[str, int] | None = None
) -> dict[str, dict[str, Any]]:
    """Return a state that has our names under those; `from_kernel_names` is the way back.

    Args:
        saved: name of the parameter -> state. What is no table's stays as it is.
        column_shards: into how many parts the columns of a table are split there, by its name. Default: 1.
    """
    counts = column_shards or {}
    return {name: _of_kernels(name, values, counts) for name, values in saved.items()}


def _of_kernels(
    name: str, values: Mapping[str, Any], column_shards: Mapping[str, int]
) -> dict[str, Any]:
    table = re.fullmatch(r"(?:.*\.)?embedding(?:_bag)?s\.([^.]+)\.weight", name)
    if table is None or "step" not in values:
        return dict(values)
    states = [value for key, value in values.items() if key != "step"]
    count = column_shards.get(table[1], 1)
    return {
        f"{table[1]}.momentum{number}": _for_columns(value, count)
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == 1
        else value
        for number, value in enumerate(states, 1)
    }


def _for_columns(value: Tensor, count: int) -> Tensor:
    """Return one number a row as a vector; for each of some parts of the columns."""
    if count == 1:
        return value.squeeze(1)
    if _knows_columns(value):
        return value.split_by_columns(count)
    return value.squeeze(1).repeat(count)
