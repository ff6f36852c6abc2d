"""Saves the states of all cases, or takes over those of another library.

This file runs by itself under both Pythons, and its cases use nothing but the API that they share:
``worker.py save OUT`` writes the state and the outputs of every case, ``worker.py load IN OUT`` takes over the states
that the other has written, and writes the outputs that follow. What cannot be done is written down as a sentence.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import modules
import optimizers
import torch
from case import Case, State, saved
from torch import Tensor, nn

CASES = {**modules.CASES, **optimizers.CASES}


def save(out: str) -> None:
    """Write state and outputs of all cases."""
    torch.save({name: _attempt(_saved, make) for name, make in CASES.items()}, out)


def _saved(chosen: Case) -> State:
    torch.manual_seed(0)
    module = chosen.build()
    chosen.prepare(module)
    state = saved(module) if isinstance(module, nn.Module) else module.state_dict()
    return {"state": _plain(state), "out": chosen.call(module)}


def load(source: str, out: str) -> None:
    """Take over the states of another library, and write the outputs that follow."""
    given = torch.load(source)

    def taken_over(chosen: Case, state: State) -> State:
        torch.manual_seed(1)
        module = chosen.build()
        module.load_state_dict(state)
        return {"out": chosen.call(module)}

    torch.save(
        {
            name: _attempt(taken_over, make, given[name]["state"])
            for name, make in CASES.items()
            if "state" in given[name]
        },
        out,
    )


def _attempt(action: Callable[..., State], make: Callable[[], Case], *arguments: Any) -> State:
    try:
        return action(make(), *arguments)
    except Exception as error:  # whatever it is, it is told
        return {"error": f"{type(error).__name__}: {error}"}


def _plain(state: Any) -> Any:
    """Return a state of plain tensors, numbers, lists and dicts."""
    if isinstance(state, Tensor):
        plain = getattr(state, "_local_tensor", state)
        return plain.detach().as_subclass(Tensor).clone()
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_plain, state))
    return state


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1] == "save":
        save(sys.argv[2])
    else:
        load(sys.argv[2], sys.argv[3])
