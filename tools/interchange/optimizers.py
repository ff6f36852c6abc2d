"""The optimizers whose states are exchanged: of fused tables, and around others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import CASES, Case, State, bag_tables, case, dense, features, saved, tensors
from torch import Tensor, nn


def _fused_steps(module: Any) -> None:
    for _ in range(3):
        found = module(features()).values()
        (found * torch.arange(1, found.numel() + 1).view_as(found)).sum().backward()


def _fused(
    collection: str, configs: Callable[[], list[Any]], optimizer: str, **kwargs: float
) -> Case:
    from torchrec.modules import fused_embedding_modules
    from torchrec.optim import optimizers, rowwise_adagrad

    kind: Any = getattr(rowwise_adagrad, optimizer, None) or getattr(torch.optim, optimizer, None)
    kind = kind or getattr(optimizers, optimizer)

    def call(module: Any) -> list[Tensor]:
        first = tensors(module(features()))
        _fused_steps(module)
        return first + tensors(module(features()))

    class Trained:
        def __init__(self) -> None:
            make = getattr(fused_embedding_modules, collection)
            self.module = make(configs(), kind, {"lr": 0.1, **kwargs}, device=torch.device("cpu"))

        def __call__(self, inputs: Any) -> Any:
            return self.module(inputs)

        def state_dict(self) -> State:
            return {"module": saved(self.module), "optimizer": saved(self.module.fused_optimizer())}

        def load_state_dict(self, state: State) -> None:
            self.module.load_state_dict(state["module"])
            optimizer = self.module.fused_optimizer()
            given = state["optimizer"]["state"]
            if "embedding_bags.t.weight" not in optimizer.params:
                # This class there leaves out what stands before the table.
                given = {
                    f"{t}.weight": {
                        f"{t}.weight.momentum_{key[-1]}": value
                        for key, value in given[f"embedding_bags.{t}.weight"].items()
                    }
                    for t in "tu"
                }
                given = {name: values for name, values in given.items() if values}
            optimizer.load_state_dict({"state": given})

    return Case(Trained, _fused_steps, call)


for _optimizer, _kwargs in {
    "SGD": {},
    "Adagrad": {"eps": 1e-6},
    "RowWiseAdagrad": {"eps": 1e-6},
}.items():
    CASES[f"fused_bags_{_optimizer}"] = lambda o=_optimizer, k=_kwargs: _fused(
        "FusedEmbeddingBagCollection", bag_tables, o, **k
    )


def _stepper(wrap: Callable[[dict[str, nn.Parameter]], Any]) -> Case:
    """Return the case of an optimizer over two parameters: its state after two steps, and what a third does."""

    class Trained:
        def __init__(self) -> None:
            self.params = {
                "a": nn.Parameter(dense(3, 2).clone()),
                "b": nn.Parameter(dense(1, 3).clone()),
            }
            self.optimizer = wrap(self.params)

        def step(self, scale: float) -> None:
            self.optimizer.zero_grad()
            sum((p * p * scale).sum() for p in self.params.values()).backward()
            self.optimizer.step()

        def state_dict(self) -> State:
            return {
                "params": {name: p.detach().clone() for name, p in self.params.items()},
                "optimizer": saved(self.optimizer),
            }

        def load_state_dict(self, state: State) -> None:
            self.step(1.0)  # so that there is state to load into
            with torch.no_grad():
                for name, p in self.params.items():
                    p.copy_(state["params"][name])
            self.optimizer.load_state_dict(state["optimizer"])

    def prepare(trained: Any) -> None:
        for scale in (0.5, 2.0):
            trained.step(scale)

    def call(trained: Any) -> list[Tensor]:
        trained.step(1.0)
        return [p.detach().clone() for p in trained.params.values()]

    return Case(Trained, prepare, call)


def _keyed(params: dict[str, nn.Parameter], kind: Any, **kwargs: Any) -> Any:
    from torchrec.optim.keyed import KeyedOptimizerWrapper

    return KeyedOptimizerWrapper(dict(params), lambda p: kind(p, **kwargs))


@case
def keyed_sgd() -> Case:
    return _stepper(lambda p: _keyed(p, torch.optim.SGD, lr=0.1, momentum=0.9))


@case
def keyed_adam() -> Case:
    return _stepper(lambda p: _keyed(p, torch.optim.Adam, lr=0.1))


@case
def keyed_adagrad() -> Case:
    return _stepper(lambda p: _keyed(p, torch.optim.Adagrad, lr=0.1))


@case
def keyed_row_wise_adagrad() -> Case:
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    return _stepper(lambda p: _keyed(p, RowWiseAdagrad, lr=0.1))


@case
def combined() -> Case:
    from torchrec.optim.keyed import CombinedOptimizer

    return _stepper(
        lambda p: CombinedOptimizer(
            [
                ("first", _keyed({"a": p["a"]}, torch.optim.Adam, lr=0.1)),
                ("second", _keyed({"b": p["b"]}, torch.optim.Adagrad, lr=0.2)),
            ]
        )
    )


@case
def clipped() -> Case:
    from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer

    return _stepper(
        lambda p: GradientClippingOptimizer(
            _keyed(p, torch.optim.Adam, lr=0.1), GradientClipping.NORM, max_gradient=0.3
        )
    )


@case
def warm_up() -> Case:
    from torchrec.optim.warmup import WarmupOptimizer, WarmupPolicy, WarmupStage

    stages = [
        WarmupStage(WarmupPolicy.LINEAR, max_iters=2, value=0.1),
        WarmupStage(
            WarmupPolicy.COSINE_ANNEALING_WARM_RESTARTS, max_iters=6, value=0.2, sgdr_period=3
        ),
    ]
    return _stepper(lambda p: WarmupOptimizer(_keyed(p, torch.optim.Adam, lr=0.1), stages, lr=0.1))
