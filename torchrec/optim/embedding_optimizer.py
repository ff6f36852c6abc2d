"""The updates in the backward pass of a collection, shown as an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchrec.checks import require_integer
from torchrec.optim.fused import FusedOptimizer
from torchrec.optim.table_update import HyperGroup, TableUpdate


class Together(Protocol):
    """Updates that ranks make together, also those that have no such table."""

    collecting: bool

    def apply_waiting(self, updates: list[TableUpdate]) -> None:
        """Apply what waits, of all tables."""


class ShownUpdates(NamedTuple):
    """What an optimizer of updates in the backward pass shows.

    Attributes:
        updates: name of the parameter -> what updates it, of every fused table.
        params: name -> parameter.
        groups: parameter groups, one a table.
        together: makes those updates that ranks make together. Default: each rank updates what it has.
        states: returns what ``state`` shows of each table: tensors to write to. Default: its own.
    """

    updates: Mapping[str, TableUpdate]
    params: Mapping[str, Tensor]
    groups: Sequence[HyperGroup]
    together: Together | None = None
    states: Callable[[TableUpdate], Mapping[str, Any]] = TableUpdate.named_state

    @classmethod
    def of(
        cls,
        updates: Mapping[str, TableUpdate],
        together: Together | None = None,
        states: Callable[[TableUpdate], Mapping[str, Any]] = TableUpdate.named_state,
    ) -> ShownUpdates:
        """Return what is shown of updates, as they are now."""
        params = {name: update.weight for name, update in updates.items()}
        groups = [u.group for u in updates.values() if u.group is not None and u.in_backward]
        return cls(updates, params, groups, together, states)


class EmbeddingFusedOptimizer(FusedOptimizer):
    """Shows the updates that happen in the backward pass of a collection as an optimizer.

    Its parameter groups, one a table, take a new learning rate (by hand or by a scheduler) that
    counts from the next backward pass on; its ``state_dict`` saves and restores the state of the
    tables under the names of their parameters. ``step`` has only gradients to apply that were
    accumulated, see `accumulate`.

    It is made by a collection, see ``EmbeddingBagCollection.fused_optimizer``. A table that is
    shared with another collection is shown by the one that looked it up first.

    Args:
        shown: returns the updates as they are now: tables may have been brought to other ranks, with parameters and
            states that are new ones.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, OptimizerType
        >>> table = EmbeddingBagConfig(
        ...     10, 4, "t", feature_names=["f"], optimizer=OptimizerType.ADAGRAD, lr=0.1
        ... )
        >>> optimizer = EmbeddingBagCollection(tables=[table]).fused_optimizer
        >>> list(optimizer.params), optimizer.param_groups[0]["lr"]
        (['embedding_bags.t.weight'], 0.1)
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    """

    def __init__(self, shown: Callable[[], ShownUpdates]) -> None:
        self._shown = shown
        self._start()

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Name -> parameter."""
        return self._shown().params

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """Parameter -> its state, in the very memory that updates write to."""
        shown = self._shown()
        return {shown.params[name]: shown.states(each) for name, each in shown.updates.items()}

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]:  # type: ignore[override]
        """Parameter groups, one a table; writing to a group takes effect at the next update."""
        return self._shown().groups

    def _live_state(self, param: Tensor) -> dict[str, Any]:
        return dict(self.state[param])

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Collect the gradients of the backward passes inside, to be applied as one update.

        The next backward pass outside applies them with its own, or `step` by themselves;
        `zero_grad` drops them.

        Example:
            >>> import torch
            >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
            >>> table = EmbeddingBagConfig(
            ...     2, 1, "t", feature_names=["f"], optimizer="sgd", lr=1.0, init_fn=torch.nn.init.zeros_
            ... )
            >>> ebc = EmbeddingBagCollection(tables=[table])
            >>> batch = KeyedJaggedTensor.from_lists({"f": [[0]]})
            >>> with ebc.fused_optimizer.accumulate():
            ...     ebc(batch).values().sum().backward()
            >>> ebc.embedding_bags["t"].weight[0].item()
            0.0
            >>> ebc(batch).values().sum().backward()
            >>> ebc.embedding_bags["t"].weight[0].item()
            -2.0
        """
        shown = self._shown()
        collectors: list[TableUpdate | Together] = [*shown.updates.values()]
        if shown.together is not None:
            collectors.append(shown.together)
        before = [collector.collecting for collector in collectors]
        for collector in collectors:
            collector.collecting = True
        try:
            yield
        finally:
            for collector, value in zip(collectors, before, strict=True):
                collector.collecting = value

    def __call__(self) -> EmbeddingFusedOptimizer:
        """Return this optimizer: ``fused_optimizer`` of a collection is also written as a method."""
        return self

    def post_load_state_dict(self) -> None:
        """Drop the gradients that were accumulated: they were for the former state."""
        self.zero_grad()

    def set_optimizer_step(self, step: int) -> None:
        """Set the step counts, which Adam's bias correction depends on.

        Args:
            step: how many updates to assume to have been done.
        """
        require_integer(step, "`step`", least=0)
        for update in self._shown().updates.values():
            update.step.fill_(step)

    def step(self, closure: Any = None) -> Any:
        """Apply the gradients that were accumulated; others the backward pass has applied.

        Args:
            closure: computes the loss and runs the backward pass; called first.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        shown = self._shown()
        updates = [*shown.updates.values()]
        for joint in dict.fromkeys(update.joint for update in updates):
            if joint is not None:
                joint.apply_waiting(updates)
        if shown.together is not None:
            shown.together.apply_waiting(updates)
        return loss

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop the gradients that were accumulated and not applied.

        Args:
            set_to_none: without effect: fused tables have no gradient to keep.
        """
        for update in self._shown().updates.values():
            update.discard_gradients()
