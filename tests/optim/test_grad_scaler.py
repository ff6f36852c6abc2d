"""Gradient scalers: what the backward pass updates cannot be unscaled, and a scaler's step for it is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.optim import (
    CombinedOptimizer,
    KeyedOptimizerWrapper,
    WarmupOptimizer,
    apply_optimizer_in_backward,
)

KJT = KeyedJaggedTensor.from_lists({"f": [[1, 2], [3]]})
FUSED = {"optimizer": "sgd", "lr": 0.1}
LENT = {"optimizer": "sgd"}
MESSAGE = (
    r"Table 't', Table 'u' should not be updated in the backward pass where a GradScaler steps"
)


class Model(nn.Module):
    """Two tables that are trained in one way, a plain one between them, and a layer on top."""

    def __init__(self, pooled: bool = True, **options) -> None:
        super().__init__()
        config = EmbeddingBagConfig if pooled else EmbeddingConfig
        collection = EmbeddingBagCollection if pooled else EmbeddingCollection
        sizes = {"t": (10, 4), "plain": (7, 4), "u": (5, 4)}
        self.tables = collection(
            tables=[
                config(
                    rows,
                    dim,
                    name,
                    feature_names=["f"],
                    init_fn=nn.init.ones_,
                    **({} if name == "plain" else options),
                )
                for name, (rows, dim) in sizes.items()
            ]
        )
        self.over = nn.Linear(4, 1, bias=False)
        nn.init.ones_(self.over.weight)

    def forward(self) -> Tensor:
        out = self.tables(KJT)
        if isinstance(self.tables, EmbeddingBagCollection):
            return self.over(out.values().view(-1, 4)).sum()
        return self.over(torch.cat([jt.values() for jt in out.values()])).sum()


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


def keyed(model: nn.Module) -> KeyedOptimizerWrapper:
    return KeyedOptimizerWrapper(
        dict(model.over.named_parameters()), lambda ps: torch.optim.SGD(ps, lr=0.1)
    )


class OwnScaler(torch.amp.GradScaler):
    pass


OPTIMIZERS: dict[str, Callable[[Model], torch.optim.Optimizer]] = {
    "of all parameters": sgd,
    "of the layer": lambda m: sgd(m.over),
    "that unscales itself": lambda m: sgd(m, fused=True),
    "keyed": keyed,
    "combined": lambda m: CombinedOptimizer(
        [("t", m.tables.fused_optimizer), ("d", WarmupOptimizer(keyed(m), [], lr=0.1))]
    ),
}


def scaler_of(kind: type[torch.amp.GradScaler] = torch.amp.GradScaler, **options):
    return kind("cpu", **{"init_scale": 64.0, **options})


@pytest.mark.parametrize("scaler", [torch.amp.GradScaler, OwnScaler], ids=["torch's", "derived"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["", "scheduled"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_a_step_for_scaled_updates_is_refused(pooled, optimizer, scheduled, scaler):
    model, scaler = Model(pooled, **FUSED), scaler_of(scaler)
    optimizer = optimizer(model)
    if scheduled:
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler.scale(model()).backward()
    with pytest.raises(RuntimeError, match=f"{MESSAGE}: the gradients were scaled by 64.0"):
        scaler.step(optimizer)
    assert (model.over.weight == 1.0).all()


def test_a_step_for_tables_whose_every_row_is_updated():
    model, scaler = Model(**FUSED, optimizer_options={"momentum": 0.9, "lazy": False}), scaler_of()
    scaler.scale(model()).backward()
    with pytest.raises(RuntimeError, match=f"{MESSAGE}: the gradients were scaled by 64.0"):
        scaler.step(sgd(model))


def test_a_step_with_much_around_it():
    model, scaler = Model(**FUSED), scaler_of()
    optimizer = sgd(model.over)
    for _ in range(20):
        step = functools.partial(lambda step, *args: step(*args), optimizer.step)
        optimizer.step = step
    scaler.scale(model()).backward()
    with pytest.raises(RuntimeError, match=MESSAGE):
        scaler.step(optimizer)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's
def test_a_compiled_model():
    model, scaler = Model(**FUSED), scaler_of()
    scaler.scale(torch.compile(model, backend="aot_eager")()).backward()
    with pytest.raises(RuntimeError, match=MESSAGE):
        scaler.step(sgd(model))
    torch._dynamo.reset()


def test_gradients_that_were_clipped_in_between():
    model, scaler = Model(**FUSED), scaler_of()
    optimizer = sgd(model)
    scaler.scale(model()).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(RuntimeError, match=MESSAGE):
        scaler.step(optimizer)


def test_a_skipped_step_is_told_of_at_the_next_one():
    model, scaler = Model(**FUSED), scaler_of(init_scale=2.0**127)
    optimizer = sgd(model)
    scaler.scale(model() * 8.0).backward()
    scaler.step(optimizer)  # PyTorch does not step, and asks nobody
    scaler.update(64.0)
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(1.0)
    optimizer.zero_grad()
    scaler.scale(model()).backward()
    with pytest.raises(RuntimeError, match=MESSAGE):
        scaler.step(optimizer)


def test_tables_that_the_last_pass_before_the_step_does_not_use():
    """They could be those of a model that needs no scaler: once."""
    model, scaler = Model(**FUSED), scaler_of()
    optimizer = sgd(model)

    def train():
        optimizer.zero_grad()
        scaler.scale(model()).backward()
        scaler.scale(model.over(torch.ones(1, 4)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    train()
    with pytest.raises(RuntimeError, match=MESSAGE):
        train()


@pytest.mark.parametrize(
    "around", [lambda o: o, lambda o: WarmupOptimizer(o, [], lr=0.1)], ids=["itself", "around it"]
)
def test_steps_of_the_fused_optimizer_hide_nothing(around):
    """Schedules want to see them; so does `accumulate`, where they apply what waits."""
    model, scaler = Model(**FUSED), scaler_of()
    tables, optimizer = around(model.tables.fused_optimizer), sgd(model)
    scaler.scale(model()).backward()
    tables.step()
    with pytest.raises(RuntimeError, match=MESSAGE):
        scaler.step(optimizer)
    scaler.update()
    with model.tables.fused_optimizer.accumulate():
        scaler.scale(model()).backward()
    scaler.step(optimizer)  # nothing has been updated yet
    scaler.update()
    tables.step()
    with pytest.raises(RuntimeError, match=MESSAGE):
        scaler.step(optimizer)


def test_a_pass_within_the_pass():
    """What it updates is told of at the second step at the latest."""
    model, scaler = Model(**FUSED), scaler_of()
    optimizer = sgd(model)

    def train(steps: int):
        if steps > 1:
            train(steps - 1)
        optimizer.zero_grad()
        hidden = torch.utils.checkpoint.checkpoint(
            lambda x: model.over(x), torch.ones(1, 4, requires_grad=True), use_reentrant=True
        )
        scaler.scale(model() + hidden.sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    with pytest.raises(RuntimeError, match=MESSAGE):
        train(2)


def test_ordinary_parameters_that_the_backward_pass_updates():
    model, scaler = nn.Linear(2, 1), scaler_of()
    apply_optimizer_in_backward(torch.optim.SGD, [model.weight], {"lr": 0.1})
    optimizer = sgd(model)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    with pytest.raises(RuntimeError, match=r"A parameter of shape \(1, 2\) should not be updated"):
        scaler.step(optimizer)


def test_a_frozen_table_is_not_named():
    model, scaler = Model(**FUSED), scaler_of()
    model.tables.embedding_bags["t"].weight.requires_grad_(False)
    scaler.scale(model()).backward()
    with pytest.raises(RuntimeError, match=r"^Table 'u' should not be updated"):
        scaler.step(sgd(model))


# ---- no false alarm


def test_tables_without_a_rate_are_right():
    model, expected, scaler = Model(**LENT), Model(**LENT), scaler_of()
    optimizer, plain = sgd(model), sgd(expected)
    for overflow in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(model() * overflow).backward()
        scaler.step(optimizer)
        scaler.update()
        if overflow == 1.0:
            plain.zero_grad()
            expected().backward()
            plain.step()
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_scaler_that_scales_nothing():
    model, scaler = Model(**FUSED), scaler_of(enabled=False)
    optimizer = sgd(model)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert (
        model.tables.fused_optimizer.state_dict()["state"]["embedding_bags.t.weight"]["step"] == 2
    )


def test_mixed_precision_without_a_scaler():
    model = Model(**FUSED)
    optimizer = sgd(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model()
    loss.backward()
    optimizer.step()
    assert (model.over.weight != 1.0).all()


def test_another_model_whose_optimizer_has_stepped_since():
    """With fused tables, which are right: nobody has scaled their gradients."""
    other, model, scaler = Model(**FUSED), Model(**LENT), scaler_of()
    its, optimizer = sgd(other), sgd(model)
    for _ in range(2):
        other().backward()
        its.step()
        scaler.scale(model()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert (model.over.weight != 1.0).all()


def test_a_scaler_after_a_training_without_one():
    model, scaler = Model(**FUSED), scaler_of()
    model().backward()
    sgd(model).step()
    for param in (model.tables.embedding_bags[n].weight for n in ("t", "u")):
        param.requires_grad_(False)
    scaler.scale(model()).backward()
    scaler.step(sgd(model))


def test_another_model_that_was_trained_before():
    """By nothing but the backward pass."""
    other, layer, scaler = Model(**FUSED), nn.Linear(1, 1), scaler_of()
    other().backward()
    for _ in range(2):
        scaler.scale(layer(torch.ones(1, 1)).sum()).backward()
        scaler.step(sgd(layer))
        scaler.update()


def test_another_model_whose_optimizer_steps_later():
    other, layer, scaler = Model(**FUSED), nn.Linear(1, 1), scaler_of()
    its, optimizer = sgd(other.over), sgd(layer)
    for _ in range(3):
        other().backward()
        scaler.scale(layer(torch.ones(1, 1)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        its.step()
