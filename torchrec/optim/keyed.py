"""Optimizers with named parameters and state, so that checkpoints mean something elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from torchrec.optim._keyed_optimizer import KeyedOptimizer
from torchrec.optim._state_dict import describe

__all__ = ["CombinedOptimizer", "KeyedOptimizer", "KeyedOptimizerWrapper", "OptimizerWrapper"]

Factory = Callable[[Any], torch.optim.Optimizer]


class KeyedOptimizerWrapper(KeyedOptimizer):
    """Gives the parameters of any `torch.optim.Optimizer` names.

    Args:
        params: name -> parameter.
        optim_factory: makes the optimizer from the list of the parameters, or from ``params``
            itself.
        pass_params_dict: whether ``optim_factory`` takes ``params`` instead of the list.

    Raises:
        ValueError: if the optimizer has parameters that ``params`` does not name.
        TypeError: if ``optim_factory`` makes something else than an optimizer.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = KeyedOptimizerWrapper(
        ...     dict(model.named_parameters()), lambda params: torch.optim.SGD(params, lr=0.1)
        ... )
        >>> optimizer.state_dict()["param_groups"][0]["params"]
        ['weight', 'bias']
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        optim_factory: Factory,
        pass_params_dict: bool = False,
    ) -> None:
        self._params = dict(params)
        self._optimizer = optim_factory(params if pass_params_dict else list(params.values()))
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise TypeError(
                "`optim_factory` should make a torch.optim.Optimizer. "
                f"Received {type(self._optimizer).__name__}."
            )
        self._start()

    @property
    def wrapped(self) -> torch.optim.Optimizer:
        """The optimizer inside."""
        return self._optimizer

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """Parameter -> its state."""
        return self._optimizer.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Parameter groups of the optimizer."""
        return self._optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Hyper-parameters that the optimizer was made with."""
        return self._optimizer.defaults

    def _live_state(self, param: Tensor) -> dict[str, Any]:
        live: dict[str, Any] = self._optimizer.state.setdefault(param, {})
        return live

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add named parameters with hyper-parameters of their own.

        Args:
            param_group: ``"params"``, a mapping or pairs of name and parameter, and
                hyper-parameters.

        Raises:
            ValueError: if parameters come without names, or under a name that is taken.
        """
        named = param_group["params"]
        pairs = list(named.items() if isinstance(named, Mapping) else named)
        if not all(isinstance(pair, tuple) for pair in pairs):
            raise ValueError(
                "`params` of a group should be a mapping, or pairs, of name and parameter. "
                f"Received {[type(pair).__name__ for pair in pairs]}."
            )
        added: dict[str, Tensor] = {}
        for name, param in pairs:
            if name in self._params or name in added:
                raise ValueError(f"Names of parameters should differ. Received '{name}' again.")
            added[name] = param
        self._optimizer.add_param_group({**param_group, "params": list(added.values())})
        self._params = {**self._params, **added}

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop all gradients, so that a step passes over parameters that have got none since.

        To Adam a gradient of zero is news, and no gradient is not: it would move a parameter that
        a step did not use.

        Args:
            set_to_none: without effect: gradients are dropped.
        """
        self._optimizer.zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> Any:
        """Update the parameters.

        Args:
            closure: computes the loss and the gradients anew; for optimizers that need it.

        Returns:
            What ``closure`` returned.
        """
        return self._optimizer.step(closure=closure)


class CombinedOptimizer(KeyedOptimizer):
    """Several optimizers as one: one step, one state, one scheduler.

    Args:
        optims: optimizers, or pairs of a key and an optimizer; the names of its parameters then
            start with ``"key."``.

    Raises:
        ValueError: if two parameters end up under one name.

    Example:
        >>> def sgd(module, lr):
        ...     params = dict(module.named_parameters())
        ...     return KeyedOptimizerWrapper(params, lambda ps: torch.optim.SGD(ps, lr=lr))
        >>> tables, dense = torch.nn.Embedding(4, 2), torch.nn.Linear(2, 1)
        >>> pairs = [("tables", sgd(tables, 1.0)), ("dense", sgd(dense, 0.1))]
        >>> optimizer = CombinedOptimizer(pairs)
        >>> list(optimizer.params)
        ['tables.weight', 'dense.weight', 'dense.bias']
    """

    def __init__(self, optims: Sequence[KeyedOptimizer | tuple[str, KeyedOptimizer]]) -> None:
        self._optims = [entry if isinstance(entry, tuple) else ("", entry) for entry in optims]
        seen: set[str] = set()
        for key, optimizer in self._optims:
            if not isinstance(optimizer, KeyedOptimizer):
                raise TypeError(
                    f"`optims` should hold KeyedOptimizers. Received {type(optimizer).__name__}."
                )
            for name in optimizer.params:
                full = self.prepend_opt_key(name, key)
                if full in seen:
                    raise ValueError(
                        f"Names of parameters should differ. Received '{full}' from two optimizers."
                    )
                seen.add(full)
        self._start()

    @staticmethod
    def prepend_opt_key(name: str, opt_key: str) -> str:
        """Return ``"opt_key.name"``, or ``name`` if the key is empty."""
        return f"{opt_key}.{name}" if opt_key else name

    @property
    def optimizers(self) -> list[tuple[str, KeyedOptimizer]]:
        """Key and optimizer, in order; the key is ``""`` where none was given."""
        return self._optims

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Name, with the key of its optimizer, -> parameter."""
        return {
            self.prepend_opt_key(name, key): param
            for key, optimizer in self._optims
            for name, param in optimizer.params.items()
        }

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """Parameter -> its state, of all optimizers."""
        return {
            param: state
            for _, optimizer in self._optims
            for param, state in optimizer.state.items()
        }

    @property
    def param_groups(self) -> list[Mapping[str, Any]]:  # type: ignore[override]
        """Parameter groups of all optimizers, one after the other."""
        return [group for _, optimizer in self._optims for group in optimizer.param_groups]

    def _live_state(self, param: Tensor) -> dict[str, Any]:
        for _, optimizer in self._optims:
            if any(param is own for own in optimizer.params.values()):
                return optimizer._live_state(param)
        raise ValueError(f"No optimizer has {describe(param)}.")

    def init_state(self, sparse_grad_parameter_names: set[str] | None = None) -> None:
        """Make the state of all optimizers, without changing any weight.

        Args:
            sparse_grad_parameter_names: parameters to be given sparse gradients, by their full
                names.

        Raises:
            ValueError: if a name is unknown.
        """
        sparse = set(sparse_grad_parameter_names or ())
        unknown = sorted(sparse - set(self.params))
        if unknown:
            raise ValueError(
                f"`sparse_grad_parameter_names` should be among {sorted(self.params)}. "
                f"Received {unknown}."
            )
        for key, optimizer in self._optims:
            names = {n for n in optimizer.params if self.prepend_opt_key(n, key) in sparse}
            optimizer.init_state(names)

    def post_load_state_dict(self) -> None:
        """Tell every optimizer that a state has been loaded."""
        for _, optimizer in self._optims:
            optimizer.post_load_state_dict()

    def save_param_groups(self, save: bool) -> None:
        """Say whether `state_dict` holds the parameter groups, here and in every optimizer.

        Args:
            save: whether it does.
        """
        super().save_param_groups(save)
        for _, optimizer in self._optims:
            optimizer.save_param_groups(save)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Have the gradients of the backward passes inside wait for one update, in every optimizer.

        Example:
            >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
            >>> table = EmbeddingBagConfig(
            ...     2, 1, "t", feature_names=["f"], optimizer="sgd", lr=1.0, init_fn=torch.nn.init.zeros_
            ... )
            >>> tables = [EmbeddingBagCollection([table]) for _ in range(2)]
            >>> optimizer = CombinedOptimizer([(f"{i}", t.fused_optimizer) for i, t in enumerate(tables)])
            >>> batch = KeyedJaggedTensor.from_lists({"f": [[0]]})
            >>> with optimizer.accumulate():
            ...     for each in tables:
            ...         each(batch).values().sum().backward()
            >>> tables[1].embedding_bags["t"].weight[0].item()
            0.0
            >>> optimizer.step()
            >>> tables[1].embedding_bags["t"].weight[0].item()
            -1.0
        """
        with ExitStack() as stack:
            for _, optimizer in self._optims:
                stack.enter_context(optimizer.accumulate())
            yield

    def set_optimizer_step(self, step: int) -> None:
        """Set the step counters of every optimizer.

        Args:
            step: how many updates to assume to have been done.
        """
        for _, optimizer in self._optims:
            optimizer.set_optimizer_step(step)

    def update_hyper_parameters(self, params_dict: dict[str, Any]) -> None:
        """Change hyper-parameters in every optimizer that has them.

        Args:
            params_dict: name -> value.

        Raises:
            ValueError: if none has a hyper-parameter of the name. Then none has been changed.
        """
        self._check_known(params_dict)
        for _, optimizer in self._optims:
            own = {name for group in optimizer.param_groups for name in group}
            optimizer.update_hyper_parameters({n: v for n, v in params_dict.items() if n in own})

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop the gradients of all optimizers.

        Args:
            set_to_none: without effect, as in `KeyedOptimizerWrapper`.
        """
        for _, optimizer in self._optims:
            optimizer.zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> Any:
        """Step with every optimizer, in order.

        Args:
            closure: computes the loss and the gradients anew; called once, first.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for _, optimizer in self._optims:
            optimizer.step()
        return loss


class OptimizerWrapper(KeyedOptimizer):
    """An optimizer around another that adds something to it; as it stands, nothing.

    Parameters, state and groups are those of the optimizer inside.

    Args:
        optimizer: the optimizer inside.

    Raises:
        TypeError: if it is not a `KeyedOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> inner = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=0.1))
        >>> list(OptimizerWrapper(inner).params)
        ['w']
    """

    def __init__(self, optimizer: KeyedOptimizer) -> None:
        if not isinstance(optimizer, KeyedOptimizer):
            raise TypeError(
                f"`optimizer` should be a KeyedOptimizer. Received {type(optimizer).__name__}."
            )
        self._optimizer = optimizer
        self._start()

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Name -> parameter, of the optimizer inside."""
        return self._optimizer.params

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """Parameter -> its state, of the optimizer inside."""
        return self._optimizer.state

    @property
    def param_groups(self) -> Collection[Mapping[str, Any]]:  # type: ignore[override]
        """Parameter groups of the optimizer inside."""
        return self._optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Hyper-parameters of the optimizer inside."""
        return self._optimizer.defaults

    def _live_state(self, param: Tensor) -> dict[str, Any]:
        return self._optimizer._live_state(param)

    def add_param_group(self, param_group: Any) -> None:
        """Add a parameter group to the optimizer inside.

        Args:
            param_group: as that optimizer takes it.
        """
        self._optimizer.add_param_group(param_group)

    def init_state(self, sparse_grad_parameter_names: set[str] | None = None) -> None:
        """Make the state of the optimizer inside, without changing any weight.

        Args:
            sparse_grad_parameter_names: parameters to be given sparse gradients.
        """
        self._optimizer.init_state(sparse_grad_parameter_names)

    def post_load_state_dict(self) -> None:
        """Tell the optimizer inside that a state has been loaded."""
        self._optimizer.post_load_state_dict()

    def save_param_groups(self, save: bool) -> None:
        """Say whether `state_dict` holds the parameter groups.

        Args:
            save: whether it does.
        """
        super().save_param_groups(save)
        self._optimizer.save_param_groups(save)

    def set_optimizer_step(self, step: int) -> None:
        """Set the step counters of the optimizer inside.

        Args:
            step: how many updates to assume to have been done.
        """
        self._optimizer.set_optimizer_step(step)

    def update_hyper_parameters(self, params_dict: dict[str, Any]) -> None:
        """Change hyper-parameters of the optimizer inside.

        Args:
            params_dict: name -> value.
        """
        self._optimizer.update_hyper_parameters(params_dict)

    def accumulate(self) -> AbstractContextManager[None]:
        """Have the gradients of the backward passes inside wait for one update, in the optimizer inside."""
        return self._optimizer.accumulate()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop all gradients.

        Args:
            set_to_none: without effect, as in `KeyedOptimizerWrapper`.
        """
        self._optimizer.zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> Any:
        """Step with the optimizer inside.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            What ``closure`` returned.
        """
        return self._optimizer.step(closure=closure)
