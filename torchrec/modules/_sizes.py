"""Checks of sizes, with one wording for all modules."""

from __future__ import annotations

import operator

from torch import Tensor


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
    try:
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"`{argument}` should be an int >= {at_least}. Received {value!r}."
        ) from None
    if size < at_least:
        raise ValueError(f"`{argument}` should be an int >= {at_least}. Received {size}.")
    return size


def check_features(input: Tensor, features: int, argument: str) -> None:
    """Raise unless the last dimension of ``input`` has ``features`` elements.

    Args:
        input: tensor of shape ``(*, features)``.
        features: expected size of the last dimension.
        argument: constructor argument that set ``features``, for the message.

    Raises:
        ValueError: the last dimension has another size.
    """
    if input.dim() == 0 or input.shape[-1] != features:
        raise ValueError(
            f"`input` should have shape (*, {features}), as `{argument}`={features}. "
            f"Received {tuple(input.shape)}."
        )
