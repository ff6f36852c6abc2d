"""Measures the layers of a model, without its tables: what they take in memory and time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed._private import LiveBytes
from torchrec.distributed.planner._dense import DensePart
from torchrec.distributed.planner._modules import sharded_modules
from torchrec.distributed.planner._products import kept_by_products
from torchrec.distributed.planner.calibrate import step_ms
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ModuleSharder
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.tables import embedding_names_by_table
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = ["DensePart", "measure_dense"]


def measure_dense(
    model: nn.Module,
    training: Callable[[nn.Module], Callable[[], object]],
    sharders: Iterable[ModuleSharder[Any]] | None = None,
    seconds: float = 0.3,
    processor_time: bool = False,
) -> DensePart:
    """Train the layers of a model for a moment, on vectors in place of its tables.

    A `HeuristicalStorageReservation` takes what is found as ``dense_tensor_estimate``: the plan then has room for the
    layers as they are, and says what a step takes with them.

    Args:
        model: its tables may be on ``meta``: they are not used, and nothing of the model is changed.
        training: is given a copy of the model, and returns what trains it on one batch, of as many samples as a rank
            will have.
        sharders: whose modules are tables. Default: those of `get_default_sharders`.
        seconds: how long to train. Default 0.3.
        processor_time: see `calibrate`. Default False.

    Raises:
        TypeError: if the tables are in a module that is neither an `EmbeddingBagCollection` nor an
            `EmbeddingCollection`.

    Example:
        >>> layers = nn.Linear(4, 8, bias=False)
        >>> def training(layers):
        ...     optimizer = torch.optim.Adagrad(layers.parameters())
        ...     def step():
        ...         optimizer.zero_grad()
        ...         layers(torch.ones(2, 4)).sum().backward()
        ...         optimizer.step()
        ...     return step
        >>> dense = measure_dense(layers, training, seconds=0.01)
        >>> dense.parameter_bytes, dense.gradient_bytes  # 32 weights
        (128, 128)
    """
    given = get_default_sharders() if sharders is None else list(sharders)
    stand_ins = {
        id(module): _stand_in(path, module) for path, module, _ in sharded_modules(model, given)
    }
    # A deep copy with other modules where the tables are.
    layers = copy.deepcopy(model, dict(stand_ins))
    parameter_bytes = sum(map(_num_bytes, (*layers.parameters(), *layers.buffers())))
    live = LiveBytes()
    with live:
        step = training(layers)
        step()
        step()  # states of optimizers came with the first one
        lasting = live.num_bytes
        live.peak = 0
        step()
    gradients = [param.grad for param in layers.parameters() if param.grad is not None]
    return DensePart(
        parameter_bytes=parameter_bytes,
        training_bytes=lasting - sum(each.num_bytes for each in stand_ins.values()),
        step_bytes=live.peak - lasting,
        gradient_bytes=sum(map(_num_bytes, gradients)),
        step_ms=step_ms(
            step, seconds, clock=time.process_time if processor_time else time.perf_counter
        ),
        product_bytes=kept_by_products(step),
    )


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _stand_in(path: str, module: nn.Module) -> _Vectors:
    if not isinstance(module, EmbeddingBagCollection | EmbeddingCollection):
        raise TypeError(
            f"Module '{path}' should be an EmbeddingBagCollection or an EmbeddingCollection for the layers to be "
            f"measured. Received {type(module).__name__}."
        )
    return _Vectors(module)


class _Anchored(torch.autograd.Function):
    """Gives a tensor that asks for a gradient, and drops it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, anchor: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, Tensor]:
        return None, torch.zeros(0)


class _Vectors(nn.Module):
    """Gives what a collection does, of some numbers.

    Args:
        module: the collection.
    """

    def __init__(self, module: EmbeddingBagCollection | EmbeddingCollection) -> None:
        super().__init__()
        self._is_pooled = isinstance(module, EmbeddingBagCollection)
        self._configs = (
            module.embedding_bag_configs()
            if isinstance(module, EmbeddingBagCollection)
            else module.embedding_configs()
        )
        self._names = [name for of in embedding_names_by_table(self._configs) for name in of]
        self._anchor = torch.zeros(0, requires_grad=True)
        self._made: dict[tuple[int, int, int], Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Of what it gives."""
        return sum(map(_num_bytes, self._made.values()))

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor | dict[str, JaggedTensor]:
        """Return vectors for a batch."""
        slots = [(c.embedding_dim, f) for c in self._configs for f in c.feature_names]
        if self._is_pooled:
            dims = [dim for dim, _ in slots]
            return KeyedTensor(self._names, dims, self._vectors(0, features.stride(), sum(dims)))
        inputs = features.to_dict()
        return {
            name: JaggedTensor(
                self._vectors(number, len(inputs[feature].values()), dim),
                lengths=inputs[feature].lengths(),
            )
            for number, (name, (dim, feature)) in enumerate(zip(self._names, slots, strict=True))
        }

    def _vectors(self, number: int, rows: int, columns: int) -> Tensor:
        key = number, rows, columns
        if key not in self._made:
            self._made[key] = torch.rand(rows, columns)
        vectors: Tensor = _Anchored.apply(self._made[key], self._anchor)  # type: ignore[no-untyped-call]
        return vectors
