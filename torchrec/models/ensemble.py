"""Several models as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class Ensemble(nn.Module):
    """Predicts the mean of the logits of models of the same inputs.

    Its probability is that of the geometric mean of the members' odds. Of logits rather than of
    probabilities, so that what computes with logits (metrics, scores that are compared) goes on as
    with one model.

    Args:
        members: from ``(dense_features, sparse_features)`` to logits, of equal shapes; one or more.

    Raises:
        ValueError: there are none.

    Example:
        >>> class Constant(nn.Module):
        ...     def __init__(self, value):
        ...         super().__init__()
        ...         self.value = value
        ...     def forward(self, dense, sparse):
        ...         return dense.new_full((len(dense), 1), self.value)
        >>> none = KeyedJaggedTensor.from_lists({"f": [[], []]})
        >>> Ensemble([Constant(0.5), Constant(1.5)])(torch.zeros(2, 0), none)
        tensor([[1.],
                [1.]])
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ValueError("`members` should be models, one at least. Received none.")
        self.members = nn.ModuleList(members)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Return the mean of the members' logits.

        Args:
            dense_features: float32 ``(B, N)``.
            sparse_features: bags of ids.
        """
        logits = [member(dense_features, sparse_features) for member in self.members]
        return torch.stack(logits).mean(dim=0)
