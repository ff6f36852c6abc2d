"""Parameters that are parts of tables on many ranks, and what the states that optimizers keep of them are parts of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from weakref import ref

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from torchrec.optim.kernel_names import is_cut_up

__all__ = ["WritableState", "is_part", "set_whole", "shown_state", "shown_states"]


class _Tables(Protocol):
    """Tables that are spread over ranks."""

    def whole_state(self, table: str, name: str, state: Tensor, is_per_row: bool) -> Tensor:
        """Return the state of a table of which this rank has a part, in the memory of the part."""


# Neither the parameter nor the tables are kept alive from here.
_parts = WeakTensorKeyDictionary()


def set_whole(param: Tensor, tables: _Tables, table: str) -> None:
    """Say what a parameter is a part of.

    Args:
        param: the part.
        tables: they have it; somebody has to keep them alive.
        table: which of them.
    """
    _parts[param] = ref(tables), table


def _whole_of(param: Tensor) -> tuple[_Tables, str] | None:
    known = _parts.get(param)
    if known is None:
        return None
    tables: _Tables | None = known[0]()
    if tables is None:
        raise RuntimeError(
            f"The sharded model should be there as long as an optimizer of its parameters is. Received a part of "
            f"table '{known[1]}' whose model is gone."
        )
    return tables, known[1]


def is_part(param: Tensor) -> bool:
    """Whether a parameter is a part of a table on many ranks."""
    return _whole_of(param) is not None


def shown_state(param: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a parameter; where that is a part of a table, the states of the table.

    Ranks that saved what they have under the name of the table would take each other's place.

    Args:
        param: the parameter.
        state: what an optimizer keeps of it.
    """
    whole = _whole_of(param)
    if whole is None:
        return dict(state)
    tables, table = whole
    return {
        name: tables.whole_state(table, name, value, value.shape != param.shape)
        if isinstance(value, Tensor) and not is_cut_up(value)
        else value
        for name, value in state.items()
    }


def shown_states(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the states of all parameters, each as `shown_state` gives it."""
    return {
        param: shown_state(param, values) if is_part(param) else values
        for param, values in state.items()
    }


class WritableState(dict[str, Any]):
    """A state to write to: what is put in place of a number goes to the optimizer as well.

    Args:
        shown: the state, as wholes.
        inside: as the optimizer has it.
    """

    def __init__(self, shown: Mapping[str, Any], inside: dict[str, Any]) -> None:
        super().__init__(shown)
        self._inside = inside

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._inside[name] = value
