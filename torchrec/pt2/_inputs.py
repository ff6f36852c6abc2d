"""A ``KeyedJaggedTensor`` made ready for ``torch.compile``."""

from __future__ import annotations

import torch

from torchrec.pt2._private import let_vary
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def kjt_for_pt2_tracing(kjt: KeyedJaggedTensor, convert_to_vb: bool = False) -> KeyedJaggedTensor:
    """Return the same bags, with a number of values that `torch.compile` takes for one that varies.

    One batch has more values than the next. Marked so, the first batch compiles the graph for all.

    Args:
        kjt: a batch.
        convert_to_vb: return it as one whose keys may have batches of different sizes, with inverse
            indices that give each sample its own bag. Default False.

    Returns:
        A ``KeyedJaggedTensor`` on new views of the values and weights; it has lengths, and no offsets.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> kjt = KeyedJaggedTensor.from_lists({"user": [[2, 3], [4]], "ad": [[1], []]})
        >>> kjt_for_pt2_tracing(kjt, convert_to_vb=True).stride_per_key_per_rank()
        [[2], [2]]
    """
    values, weights = kjt.values().detach(), kjt.weights_or_none()
    let_vary(values)
    if weights is not None:
        weights = weights.detach()
        let_vary(weights)
    strides, inverse = None, kjt.inverse_indices_or_none()
    if kjt.variable_stride_per_key():
        strides = kjt.stride_per_key_per_rank()
    elif convert_to_vb:
        strides = [[stride] for stride in kjt.stride_per_key()]
        samples = torch.arange(kjt.stride(), device=values.device)
        inverse = kjt.keys(), samples.repeat(len(strides), 1)
    return KeyedJaggedTensor(
        kjt.keys(),
        values,
        weights,
        lengths=kjt.lengths(),
        stride=kjt.stride() if strides is None else None,
        stride_per_key_per_rank=strides,
        inverse_indices=inverse,
    )
