"""Checks of sizes, with one wording for all modules."""

from __future__ import annotations

import operator
from contextlib import suppress

from torch import Tensor

from torchrec.checks import require_integer
from torchrec.fx.proxies import is_proxy


def checked_size(argument: str, value: object, at_least: int = 1) -> int:
    """Return ``value`` as an int, or say what ``argument`` should have been.

    Args:
        argument: name of the argument, for the message.
        value: what the caller passed: an int, or anything that is one (a NumPy integer).
        at_least: least value allowed. Default 1.

    Returns:
        The size.

    Raises:
        TypeError: ``value`` is no integer.
        ValueError: ``value`` is smaller than ``at_least``.
    """
    with suppress(TypeError):  # what is no integer is left to the check, and so is True
        value = value if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    return require_integer(value, f"`{argument}`", least=at_least)


def check_features(input: Tensor, features: int, argument: str) -> None:
    """Raise unless the last dimension of ``input`` has ``features`` elements.

    Args:
        input: tensor of shape ``(*, features)``.
        features: expected size of the last dimension.
        argument: constructor argument that set ``features``, for the message.

    Raises:
        ValueError: the last dimension has another size.
    """
    if is_proxy(input):
        return
    if input.dim() == 0 or input.shape[-1] != features:
        raise ValueError(
            f"`input` should have shape (*, {features}), as `{argument}`={features}. "
            f"Received {tuple(input.shape)}."
        )
