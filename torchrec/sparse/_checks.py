"""The checks made when a sparse type is built: cheap, and on an accelerator without synchronising."""

from __future__ import annotations

from torch import Tensor


def check_jagged(
    values: Tensor, weights: Tensor | None, lengths: Tensor | None, offsets: Tensor | None
) -> None:
    """Check the parts of a jagged tensor."""
    if lengths is None and offsets is None:
        raise ValueError("`lengths` or `offsets` should be given. Received neither.")


def check_keyed_jagged(
    keys: list[str],
    values: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
) -> None:
    """Check the parts of a keyed jagged tensor."""
    if lengths is None and offsets is None:
        raise ValueError("`lengths` or `offsets` should be given. Received neither.")
