"""One table as a parameter, of several that are kept in one tensor."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["TableBatchedEmbeddingSlice"]


class TableBatchedEmbeddingSlice(nn.Parameter):
    """A table that is a part of a flat tensor, in the very memory of it, and so is its gradient.

    Args:
        data: the weights of all tables, one behind the other, ``(N,)``; its gradient is where gradients are.
        start_offset: of the table.
        end_offset: behind the table.
        num_embeddings: E.
        embedding_dim: D.

    Raises:
        ValueError: if the part is not of ``E * D`` weights.

    Example:
        >>> import torch
        >>> weights = nn.Parameter(torch.arange(6.0))
        >>> table = TableBatchedEmbeddingSlice(weights, 2, 6, 2, 2)
        >>> (2 * weights).sum().backward()
        >>> table.tolist(), table.grad.tolist()
        ([[2.0, 3.0], [4.0, 5.0]], [[2.0, 2.0], [2.0, 2.0]])
    """

    def __new__(
        cls,
        data: Tensor,
        start_offset: int,
        end_offset: int,
        num_embeddings: int,
        embedding_dim: int,
    ) -> TableBatchedEmbeddingSlice:
        """Return the table, without a copy of its weights."""
        if end_offset - start_offset != num_embeddings * embedding_dim:
            raise ValueError(
                f"A table of {num_embeddings} x {embedding_dim} should be {num_embeddings * embedding_dim} weights. "
                f"Received those from {start_offset} to {end_offset}."
            )
        part = data.detach()[start_offset:end_offset].view(num_embeddings, embedding_dim)
        return super().__new__(cls, part, data.requires_grad)

    def __init__(
        self,
        data: Tensor,
        start_offset: int,
        end_offset: int,
        num_embeddings: int,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self._whole, self._part = data, slice(start_offset, end_offset)

    @property
    def grad(self) -> Tensor | None:
        """The part of the gradient of the whole; None: it has none."""
        whole = self._whole.grad
        return None if whole is None else whole[self._part].view(self.shape)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is None and self._whole.grad is None:
            return
        if self._whole.grad is None:
            self._whole.grad = self._whole.new_zeros(self._whole.shape)
        part = self._whole.grad[self._part]  # the other tables keep theirs
        part.copy_(part.new_zeros(part.shape) if value is None else value.reshape(-1))

    @property
    def grad_fn(self) -> None:  # type: ignore[override]
        """None: a parameter comes from no operation."""
        return
