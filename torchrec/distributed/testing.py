"""Check that a model trains sharded as it does in one process."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.optim.optimizers import in_backward_optimizer_filter

__all__ = ["assert_same_training"]


def assert_same_training(
    model: nn.Module,
    plan: ShardingPlan,
    batches: Sequence[Sequence[Any]],
    env: ShardingEnv | None = None,
    sharders: list[ModuleSharder[Any]] | None = None,
    lr: float = 0.1,
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> DistributedModelParallel:
    """Train a model under a plan and in one process, and compare losses and weights.

    All ranks call this alike. In one process, the loss of a step is the mean of those of all ranks'
    batches. What the backward pass does not update, SGD does.

    Args:
        model: returns a loss for a batch, or a tuple that begins with one; the same weights on all
            ranks. It is left as it is.
        plan: where its tables go.
        batches: of each step, those of all ranks.
        env: see `DistributedModelParallel`.
        sharders: see `DistributedModelParallel`.
        lr: of SGD.
        rtol: how much weights and losses may differ, relative to them.
        atol: how much beside that.

    Returns:
        The sharded model, trained.

    Raises:
        AssertionError: naming the step whose loss differs, or the weights that do.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.tables = EmbeddingBagCollection(
        ...             tables=[EmbeddingBagConfig(10, 4, "t", feature_names=["f"])]
        ...         )
        ...         self.over = nn.Linear(4, 1)
        ...     def forward(self, batch):
        ...         return self.over(self.tables(batch).values()).square().mean()
        >>> model = Model()
        >>> tables = construct_module_sharding_plan(model.tables, {"t": row_wise()}, world_size=1)
        >>> batch = KeyedJaggedTensor.from_lists({"f": [[1, 2], [3]]})
        >>> sharded = assert_same_training(model, ShardingPlan({"tables": tables}), [[batch], [batch]])
    """
    plain, sharded = (
        copied(model),
        DistributedModelParallel(copied(model), env=env, plan=plan, sharders=sharders),
    )
    rank, world_size = sharded.rank, sharded.world_size
    optimizers = [_sgd(plain, lr), _sgd(sharded, lr)]
    for step, of_ranks in enumerate(batches):
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses = [_loss_of(plain(batch)) for batch in of_ranks]
        (torch.stack(losses).sum() / world_size).backward()
        loss = _loss_of(sharded(of_ranks[rank]))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if not torch.allclose(loss, losses[rank], rtol, atol, equal_nan=True):
            raise AssertionError(
                f"The loss of step {step} on rank {rank} should be {losses[rank].item()}, as in one "
                f"process. Received {loss.item()}."
            )
    _compare(plain, sharded, rtol, atol)
    return sharded


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose tables are trained as its own are, in the backward pass.

    Args:
        model: stays as it is.
    """
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.owners import owner_of

    twin = copy.deepcopy(model)
    for own, its in zip(model.parameters(), twin.parameters(), strict=True):
        former, present = owner_of(own), owner_of(its)
        if former is not None and former.applied and not (present and present.applied):
            apply_optimizer_in_backward(former.applied[0], [its], former.applied[1])
    return twin


def _sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [param for _, param in in_backward_optimizer_filter(model.named_parameters())], lr
    )


def _loss_of(output: Any) -> Tensor:
    loss: Tensor = output[0] if isinstance(output, tuple) else output
    return loss


def _compare(plain: nn.Module, sharded: nn.Module, rtol: float, atol: float) -> None:
    expected, received = plain.state_dict(), sharded.state_dict()
    if list(expected) != list(received):
        raise AssertionError(f"Names should be {list(expected)}. Received {list(received)}.")
    for name, whole in expected.items():
        parts = [((0, 0), received[name])] if whole.dim() == 2 else [((0,), received[name])]
        if hasattr(received[name], "local_shards"):
            parts = [
                (tuple(shard.metadata.shard_offsets), shard.tensor)
                for shard in received[name].local_shards()
            ]
        for offsets, part in parts:
            there = whole
            for axis, (offset, size) in enumerate(zip(offsets, part.shape, strict=False)):
                there = there.narrow(axis, offset, size)
            if not torch.allclose(part, there, rtol, atol, equal_nan=True):
                raise AssertionError(
                    f"Weights of '{name}' from {offsets} on should be those of one process. Received "
                    f"others, by up to {(part - there).abs().max().item():.3g}."
                )
