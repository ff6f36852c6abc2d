"""Models compared with each other."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor, nn


class ModelTensors(TypedDict):
    """All tensors of a model, by where they are found, and by name."""

    state_dict: dict[str, Tensor]
    named_buffers: dict[str, Tensor]
    named_parameters: dict[str, Tensor]


def get_state_buffers_parameters(model: nn.Module) -> ModelTensors:
    """Return all tensors of a model.

    Args:
        model: any module.

    Returns:
        ``"state_dict"``, ``"named_buffers"`` and ``"named_parameters"``, each from names to tensors.

    Example:
        >>> sorted(get_state_buffers_parameters(nn.Linear(1, 1))["named_parameters"])
        ['bias', 'weight']
    """
    return {
        "state_dict": model.state_dict(),
        "named_buffers": dict(model.named_buffers()),
        "named_parameters": dict(model.named_parameters()),
    }


def assert_state_buffers_parameters_equal(
    model_1: nn.Module,
    model_2: nn.Module,
    check_named_buffers: bool = True,
    check_named_parameters: bool = True,
    check_state_dict: bool = True,
) -> None:
    """Check that two models have parameters, buffers and state of the same names.

    As in the API, only names count: shapes, dtypes and numbers may differ, as those of a shard do.

    Args:
        model_1: one.
        model_2: the other.
        check_named_buffers: whether to compare buffers. Default True.
        check_named_parameters: whether to compare parameters. Default True.
        check_state_dict: whether to compare state dicts. Default True.

    Raises:
        AssertionError: they differ; names those that only one has.
    """
    one, other = get_state_buffers_parameters(model_1), get_state_buffers_parameters(model_2)
    if check_named_parameters:
        _assert_same_names("named parameter", one["named_parameters"], other["named_parameters"])
    if check_named_buffers:
        _assert_same_names("named buffer", one["named_buffers"], other["named_buffers"])
    if check_state_dict:
        _assert_same_names("tensor of the state", one["state_dict"], other["state_dict"])


def _assert_same_names(kind: str, one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    differing = sorted(one.keys() ^ other.keys())
    if differing:
        raise AssertionError(
            f"The names of each {kind} should be the same. Only one model has {differing}."
        )
