"""State of optimizers under the names of the parameters: out, checked, and back in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from torchrec.optim.kernel_names import from_kernel_names, is_cut_up
from torchrec.optim.wholes import is_part

LiveState = Callable[[Tensor], dict[str, Any]]


def describe(value: object) -> str:
    """Say in an error what a value is: tensors by shape, others by type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def names_of(params: Mapping[str, Tensor]) -> dict[Tensor, str]:
    """Return the name of each parameter.

    Raises:
        ValueError: if a parameter has two names.
    """
    names: dict[Tensor, str] = {}
    for name, param in params.items():
        if param in names:
            raise ValueError(
                f"A parameter should have one name. Received '{names[param]}' and '{name}' for one."
            )
        names[param] = name
    return names


def check_owned(
    params: Mapping[str, Tensor], state: Mapping[Any, Any], groups: Iterable[Mapping[str, Any]]
) -> None:
    """Check that everything in ``state`` and ``groups`` belongs to a named parameter."""
    names = names_of(params)
    for tensor in state:
        if tensor not in names:
            raise ValueError(
                "Keys of `state` should be parameters in `params`. "
                f"Received {describe(tensor)}, which is none of {sorted(params)}."
            )
    for group in groups:
        for tensor in group["params"]:
            if tensor not in names:
                raise ValueError(
                    "`param_groups` should hold parameters in `params`. "
                    f"Received {describe(tensor)}, which is none of {sorted(params)}."
                )


def name_states(
    params: Mapping[str, Tensor], state: Mapping[Any, Any]
) -> dict[str, dict[str, Any]]:
    """Return name -> state, in the order of ``params``, of the parameters that have state.

    A value that is an object with a ``state_dict`` of its own gives that.
    """
    return {
        name: {key: _saved(value) for key, value in state[param].items()}
        for name, param in params.items()
        if param in state
    }


class _Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


def _is_stateful(value: object) -> TypeGuard[_Stateful]:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _saved(value: Any) -> Any:
    return value.state_dict() if _is_stateful(value) else value


def name_groups(
    params: Mapping[str, Tensor], groups: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the parameter groups with names in place of parameters."""
    names = names_of(params)
    return [{**group, "params": [names[param] for param in group["params"]]} for group in groups]


def load(
    state_dict: Mapping[str, Any],
    params: Mapping[str, Tensor],
    state: Mapping[Any, Any],
    groups: Iterable[Mapping[str, Any]],
    live_state: LiveState,
) -> None:
    """Check ``state_dict`` as a whole, then write it into live state and groups.

    Args:
        state_dict: ``"state"`` by name, and ``"param_groups"`` or not.
        params: name -> parameter.
        state: parameter -> state, as it is.
        groups: the groups, as they are.
        live_state: gives the state of a parameter to write to.

    Raises:
        ValueError: if it does not fit.
    """
    if "state" not in state_dict:
        raise ValueError(f"`state_dict` should have 'state'. Received {sorted(state_dict)}.")
    saved = from_kernel_names(state_dict["state"], params, state)
    _check_parts(saved, params, state)
    _check_whole(saved, params, state)
    _check_states(saved, params, state)
    pairs = _match_groups(state_dict.get("param_groups"), params, groups)
    for name, values in saved.items():
        param = params[name]
        live = live_state(param)
        for key, value in values.items():
            _write(live, key, value, param)
    for live_group, saved_group in pairs:
        for key, value in saved_group.items():
            if key != "params":
                live_group[key] = copy.deepcopy(value)


def _check_parts(
    saved: Mapping[str, Mapping[str, Any]], params: Mapping[str, Tensor], state: Mapping[Any, Any]
) -> None:
    """Refuse the state of a table where this rank has a part of it without any: which part would have to be known."""
    for name, param in params.items():
        if saved.get(name) and is_part(param) and not state.get(param):
            raise ValueError(
                f"State of '{name}', a part of a table on many ranks, should be there before one is loaded: "
                "call `init_state()` of the optimizer. Received none."
            )


def _check_whole(
    saved: Mapping[str, Mapping[str, Any]], params: Mapping[str, Tensor], state: Mapping[Any, Any]
) -> None:
    """Refuse pieces of tensors that are cut up over ranks, unless the state that is there is, or parameters are."""
    if any(is_cut_up(param) for param in params.values()):
        return
    for name, values in saved.items():
        own = state.get(params[name], {}) if name in params else {}
        for key, value in values.items():
            if is_cut_up(value) and not is_cut_up(own.get(key)):
                raise ValueError(
                    f"State '{key}' of '{name}' should be a whole tensor. Received "
                    f"{type(value).__name__}: have torch.distributed.checkpoint save it there, and "
                    "load it into the state that this optimizer has."
                )


def _check_states(
    saved: Mapping[str, Mapping[str, Any]], params: Mapping[str, Tensor], state: Mapping[Any, Any]
) -> None:
    """Check names, keys and shapes of the state to be loaded."""
    for name in saved:
        if name not in params:
            raise ValueError(
                f"`state_dict` should hold state of {sorted(params)}. Received '{name}'."
            )
    for name, param in params.items():
        own = state.get(param)
        if not own:
            continue  # made at the first step, or here
        if name not in saved:
            raise ValueError(
                f"`state_dict` should hold state of '{name}'. Received {sorted(saved)}."
            )
        if own.keys() != saved[name].keys():
            raise ValueError(
                f"State of '{name}' should be {sorted(own)}. Received {sorted(saved[name])}."
            )
        for key, value in own.items():
            given = saved[name][key]
            if value is not None and not _fits(given, value):
                raise ValueError(
                    f"State '{key}' of '{name}' should be {describe(value)}. "
                    f"Received {describe(given)}."
                )


def _fits(given: object, value: object) -> bool:
    """Whether a value of a state can take the place of another: of one number a row, cut up, a vector too."""
    shape, found = _shape(value), _shape(given)
    return found == shape or (is_cut_up(value) and shape == (*found, 1))


def _shape(value: object) -> tuple[int, ...]:
    """Return the shape of a tensor, ``()`` of anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _match_groups(
    saved: Iterable[Mapping[str, Any]] | None,
    params: Mapping[str, Tensor],
    groups: Iterable[Mapping[str, Any]],
) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
    """Pair each group with the saved group of the same parameters."""
    if saved is None:
        return []
    by_names = {frozenset(group["params"]): group for group in saved}
    pairs: list[tuple[Any, Mapping[str, Any]]] = []
    for group, named in zip(groups, name_groups(params, groups), strict=True):
        if not named["params"]:
            continue
        names = frozenset(named["params"])
        if names not in by_names:
            raise ValueError(
                f"`state_dict` should have a parameter group of {sorted(names)}. "
                f"Received groups of {[sorted(given) for given in by_names]}."
            )
        pairs.append((group, by_names.pop(names)))
    left = [sorted(names) for names in by_names if names]
    if left:
        raise ValueError(
            "`state_dict` should have the parameter groups of the optimizer. "
            f"Received further groups of {left}."
        )
    return pairs


def _write(live: dict[str, Any], key: str, value: Any, param: Tensor) -> None:
    """Put one value into live state: into the tensor that is there, or as a copy."""
    old = live.get(key)
    if _is_stateful(old):
        old.load_state_dict(_saved(value))
    elif isinstance(old, Tensor):
        with torch.no_grad():
            old.copy_(value if isinstance(value, Tensor) else torch.tensor(value))
    elif isinstance(value, Tensor) and old is not None:
        live[key] = value.item()
    elif isinstance(value, Tensor):
        # Step counters stay on the CPU, where torch's optimizers keep them.
        device = value.device if key == "step" else param.device
        live[key] = value.detach().clone().to(device)
    else:
        live[key] = copy.deepcopy(value)
