"""Check that a model trains sharded as it does in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.shard import outermost
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.distributed.wire import Wire
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.owners import owner_of
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

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
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
) -> DistributedModelParallel:
    """Train a model under a plan and in one process, and compare outputs, weights and states of tables.

    All ranks call this alike, and get the same error. In one process, the loss of a step is the mean of
    those of all ranks' batches.

    Args:
        model: returns a loss for a batch, or a tuple that begins with one; the same weights on all
            ranks. It is left as it is.
        plan: where its tables go.
        batches: of each step, those of all ranks.
        env: see `DistributedModelParallel`.
        sharders: see `DistributedModelParallel`.
        lr: of SGD, which trains what the backward pass does not update.
        rtol: how much outputs, weights and states may differ, relative to them.
        atol: how much beside that.
        optimizer: makes the optimizer of those parameters instead.

    Returns:
        The sharded model, trained.

    Raises:
        AssertionError: naming the rank, and the step whose outputs differ, or the weights or the state that do.

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
    given = optimizer or (lambda params: torch.optim.SGD(params, lr))
    plain = copied(model)
    sharded = DistributedModelParallel(copied(model), env=env, plan=plan, sharders=sharders)
    outside = [_outside(plain, given), _outside(sharded, given)]
    rank, differences = sharded.rank, _Differences(sharded, rtol, atol)
    for step, of_ranks in enumerate(batches):
        expected = _train(plain, of_ranks, outside[0])[rank]
        received = _train(sharded, of_ranks[rank : rank + 1], outside[1])[0]
        for k, (mine, whole) in enumerate(zip(received, expected, strict=True)):
            differences.note(
                f"Output {k} of step {step}" if k else f"The loss of step {step}", mine, whole
            )
        differences.raise_first()
    differences.note_parts("'{}'", sharded.state_dict(), plain.state_dict())
    states = _states(plain)
    for name, state in _states(sharded).items():
        # Not of a `torch.nn.EmbeddingBag`, whose optimizer in one process is its own.
        if name in states:
            differences.note_parts(f"State '{{}}' of '{name}'", state, states[name])
    differences.raise_first()
    return sharded


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose tables are trained as its own are, in the backward pass.

    Args:
        model: stays as it is.
    """
    twin = copy.deepcopy(model)
    for own, its in zip(model.parameters(), twin.parameters(), strict=True):
        former, present = owner_of(own), owner_of(its)
        if former is not None and former.applied and not (present and present.applied):
            apply_optimizer_in_backward(former.applied[0], [its], former.applied[1])
    return twin


def _outside(
    model: nn.Module, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> list[torch.optim.Optimizer]:
    """Return the optimizer of what the backward pass does not update, if there is any."""
    params = [param for _, param in in_backward_optimizer_filter(model.named_parameters())]
    return [make(params)] if params else []


def _train(
    model: nn.Module, batches: Sequence[Any], optimizers: list[torch.optim.Optimizer]
) -> list[list[Tensor]]:
    """Make one step by the mean loss of some batches; return the outputs of each, the loss first."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    outputs = [list(_tensors(model(batch))) for batch in batches]
    (torch.stack([loss for loss, *_ in outputs]).sum() / len(outputs)).backward()
    for optimizer in optimizers:
        optimizer.step()
    return [[tensor.detach() for tensor in each] for each in outputs]


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors that a model returns, which may be in tuples, lists and dictionaries."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (KeyedTensor, JaggedTensor)):
        yield output.values()
    elif isinstance(output, (tuple, list)):
        for each in output:
            yield from _tensors(each)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))


def _states(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return what is kept of each table that the backward pass updates."""
    if isinstance(model, DistributedModelParallel):
        optimizer = model.fused_optimizer
    else:
        found = outermost(model, FusedOptimizerModule)
        optimizer = CombinedOptimizer([(path, child.fused_optimizer) for path, child in found])
    states: dict[str, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return states


class _Differences:
    """The first difference that this rank has met, for all ranks to hear of.

    Args:
        model: the sharded model.
        rtol: how much is none, relative to what is expected.
        atol: how much beside that.
    """

    def __init__(self, model: DistributedModelParallel, rtol: float, atol: float) -> None:
        self._model, self._rtol, self._atol = model, rtol, atol
        self._first: str | None = None

    def note(self, what: str, received: Tensor, expected: Tensor) -> None:
        """Compare a tensor with that of one process."""
        if self._first is not None:
            return
        if received.shape != expected.shape:
            found = f"the shape {tuple(received.shape)} instead of {tuple(expected.shape)}"
        elif torch.allclose(received, expected, self._rtol, self._atol, equal_nan=True):
            return
        else:
            found = f"others, by up to {(received - expected).abs().max().item():.3g}"
        self._first = (
            f"{what} on rank {self._model.rank} should be as in one process. Received {found}."
        )

    def note_parts(
        self, what: str, received: Mapping[str, Any], expected: Mapping[str, Tensor]
    ) -> None:
        """Compare the parts that are here of tensors with those of one process.

        Args:
            what: they are; with the name put in.
            received: name -> the tensor, or what has ``local_shards()`` of it.
            expected: name -> the whole.
        """
        if list(expected) != list(received):
            raise AssertionError(f"Names should be {list(expected)}. Received {list(received)}.")
        for name, whole in expected.items():
            parts = [((0,) * whole.dim(), received[name])]
            if hasattr(received[name], "local_shards"):
                shards = received[name].local_shards()
                parts = [(tuple(each.metadata.shard_offsets), each.tensor) for each in shards]
            for offsets, part in parts:
                there = whole
                for axis, (offset, size) in enumerate(zip(offsets, part.shape, strict=True)):
                    there = there.narrow(axis, offset, size)
                self.note(f"{what.format(name)}, from {offsets} on,", part, there)

    def raise_first(self) -> None:
        """Raise the first difference of any rank, on all of them."""
        found = [self._first]
        if self._model.process_group is not None:
            found = Wire(self._model.process_group).tell(
                self._first, "what differs from one process"
            )
        for difference in found:
            if difference is not None:
                raise AssertionError(difference)
