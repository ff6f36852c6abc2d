"""Tables whose every row is updated in every step, against the optimizers of PyTorch on a dense gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
)

ROWS = {"a": 90, "b": 7, "c": 300}
DIMS = {"a": 4, "b": 17, "c": 16}
# Both compute each number in float32 in the same way; only sums over a batch have another order.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def tables(kind: type = EmbeddingBagConfig, **options: Any) -> list[Any]:
    """Three tables of uneven sizes, whose features are `a`, `b`, `c`."""
    return [
        kind(ROWS[name], DIMS[name], name, feature_names=[name], **options)
        for name in ("a", "b", "c")
    ]


def batch(step: int, samples: int = 6) -> KeyedJaggedTensor:
    """A batch of few ids, each in two to three bags now and then."""
    generator = torch.Generator().manual_seed(step)
    bags = {
        name: [
            torch.randint(
                rows, (int(torch.randint(3, (), generator=generator)),), generator=generator
            ).tolist()
            for _ in range(samples)
        ]
        for name, rows in ROWS.items()
    }
    return KeyedJaggedTensor.from_lists(bags)


def loss_of(collection: EmbeddingBagCollection, features: KeyedJaggedTensor) -> Tensor:
    """A loss whose gradient depends on the weights and differs from column to column."""
    pooled = collection(features).values()
    return (pooled * torch.linspace(-1, 1, pooled.shape[1])).sum() + (pooled**2).mean()


def weights(collection: Any) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in collection.state_dict().items()}


def assert_same(ours: Any, theirs: Any) -> None:
    for (name, mine), wanted in zip(weights(ours).items(), weights(theirs).values(), strict=True):
        torch.testing.assert_close(mine, wanted, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def twins(optimizer: str, **options: Any) -> tuple[EmbeddingBagCollection, EmbeddingBagCollection]:
    """The same tables with fused dense updates, and with a gradient."""
    decay = options.pop("weight_decay", None)
    options.setdefault("lazy", False)
    fused = EmbeddingBagCollection(
        tables=tables(optimizer=optimizer, lr=0.05, weight_decay=decay, optimizer_options=options)
    )
    plain = EmbeddingBagCollection(tables=tables())
    plain.load_state_dict(fused.state_dict())
    return fused, plain


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "adam": ("adam", {}, lambda p: torch.optim.Adam(p, lr=0.05)),
    "adam_l2": (
        "adam",
        {"weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    ),
    "adamw": (
        "adamw",
        {"weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    ),
    "adam_betas": (
        "adam",
        {"betas": (0.5, 0.7), "eps": 1e-3},
        lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.5, 0.7), eps=1e-3),
    ),
    "sgd_momentum": (
        "sgd",
        {"momentum": 0.9, "nesterov": True},
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    ),
    "sgd_l2": (
        "sgd",
        {"weight_decay": 0.1},
        lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    ),
    "sgd": ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.05)),
    "adagrad_l2": (
        "adagrad",
        {"weight_decay": 0.1},
        lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_torch_on_a_dense_gradient(case: str) -> None:
    name, options, make = CASES[case]
    fused, plain = twins(name, **options)
    optimizer = make(plain.parameters())
    for step in range(12):
        for group in [*fused.fused_optimizer.param_groups, *optimizer.param_groups]:
            group["lr"] = 0.05 / (1 + step % 4)
        loss_of(fused, batch(step)).backward()
        optimizer.zero_grad()
        loss_of(plain, batch(step)).backward()
        optimizer.step()
        assert_same(fused, plain)
