"""The optimizer with names: state by parameter name, loaded strictly and in place."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from torchrec.checks import require_integer
from torchrec.optim._state_dict import check_owned, load, name_groups, name_states
from torchrec.optim.wholes import WritableState, is_part, shown_state, shown_states

# Under these an update by zero gradients changes neither weights nor, beyond creating it, state.
_STANDING_STILL = {"lr": 0.0, "weight_decay": 0.0, "eps": 1.0}


class KeyedOptimizer(torch.optim.Optimizer):
    """An optimizer that knows its parameters by name and keeps its state under these names.

    Position means nothing: ``state_dict()`` is keyed by the names of the parameters, so that it
    can be read, merged, split and loaded into an optimizer with another order of parameters.
    Subclasses say how to step. It is a `torch.optim.Optimizer` in every respect that learning-rate
    schedulers, hooks and trainers rely on.

    Args:
        params: name -> parameter.
        state: parameter -> its state, itself a mapping of names to tensors or numbers.
        param_groups: parameter groups as in `torch.optim.Optimizer`: ``"params"`` and
            hyper-parameters.

    Raises:
        ValueError: if a parameter has two names, or ``state`` or ``param_groups`` hold a parameter
            without a name.

    Example:
        >>> table = torch.nn.Parameter(torch.zeros(2))
        >>> state = {table: {"momentum": torch.ones(2)}}
        >>> optimizer = KeyedOptimizer({"table": table}, state, [{"params": [table], "lr": 0.1}])
        >>> optimizer.state_dict()["state"]
        {'table': {'momentum': tensor([1., 1.])}}
        >>> optimizer.state_dict()["param_groups"]
        [{'params': ['table'], 'lr': 0.1}]
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        state: Mapping[Any, Any],
        param_groups: Collection[Mapping[str, Any]],
    ) -> None:
        self._params = params
        self._state = state
        self._param_groups = param_groups
        self._start()

    def _start(self) -> None:
        """Check names, and set up what `torch.optim.Optimizer` keeps beside its state."""
        self._saves_param_groups = True
        check_owned(self.params, self.state, self.param_groups)
        # torch's own way to complete an optimizer that did not go through its constructor.
        super().__setstate__({})

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Name -> parameter."""
        return self._params

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """Parameter -> its state."""
        return self._state

    @property
    def param_groups(self) -> Collection[Mapping[str, Any]]:  # type: ignore[override]
        """Parameter groups; writing to a group takes effect at the next step."""
        return self._param_groups

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Hyper-parameters that all groups have, with their values in the first group."""
        groups = list(self.param_groups)
        if not groups:
            return {}
        return {
            name: value
            for name, value in groups[0].items()
            if name != "params" and all(name in group for group in groups)
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but hooks, and the marks that schedulers leave on ``step``."""
        hooks = ("step", "_opt_called")
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in hooks and not name.startswith("_optimizer_")
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state under the names of the parameters, tensors by reference.

        Where a parameter is a part of a table on many ranks, its states are those of the table, of which this rank
        has parts, as weights are in ``state_dict()`` of the model: they save and load under any plan.

        Returns:
            ``{"state": {name: {...}}, "param_groups": [{"params": [names], "lr": ...}]}``; the
            groups only if `save_param_groups` is on, as it is by default.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        result: dict[str, Any] = {"state": name_states(self.params, shown_states(self.state))}
        if self._saves_param_groups:
            result["param_groups"] = name_groups(self.params, self.param_groups)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, result)
            result = result if changed is None else changed
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, here or in another optimizer over these names.

        Values are written into the tensors that are there, so that kernels and wrappers which hold
        them see the change. Either all of it is loaded, or none.

        Args:
            state_dict: ``"state"``, and ``"param_groups"`` or not. Groups are matched by the names
                of their parameters, in whatever order.

        Raises:
            ValueError: naming the parameter, the state and the shapes, if they do not fit; or if there is no state
                yet of a part of a table, see `init_state`.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        state = shown_states(self.state)
        load(state_dict, self.params, state, self.param_groups, self._writable_state)
        self.post_load_state_dict()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _writable_state(self, param: Tensor) -> dict[str, Any]:
        """Return the state of a parameter to write to, of a table as a whole."""
        inside = self._live_state(param)
        return WritableState(shown_state(param, inside), inside) if is_part(param) else inside

    def _live_state(self, param: Tensor) -> dict[str, Any]:
        """Return the state of a parameter to write to; it is made if it is not there."""
        if param not in self._state:
            self._state[param] = {}  # type: ignore[index]
        live: dict[str, Any] = self._state[param]
        return live

    def post_load_state_dict(self) -> None:
        """Called after a state has been loaded; for what is derived from it."""

    def save_param_groups(self, save: bool) -> None:
        """Say whether `state_dict` holds the parameter groups, that is, the hyper-parameters.

        Args:
            save: whether it does.
        """
        self._saves_param_groups = save

    def add_param_group(self, param_group: Any) -> None:
        """Refuse: what this optimizer runs over is fixed when it is made.

        Raises:
            NotImplementedError: always; subclasses that can, do.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` should be given all parameters when it is made."
        )

    def init_state(self, sparse_grad_parameter_names: set[str] | None = None) -> None:
        """Make the state that optimizers make at their first step, without changing any weight.

        Then a state of the same parameters can be compared, sharded or loaded in place. It runs one
        step on zero gradients with learning rate and weight decay 0, and sets the step counters
        back; gradients are as before afterwards.

        Args:
            sparse_grad_parameter_names: parameters that the optimizer should see a sparse gradient
                of (`torch.optim.SparseAdam` demands it).

        Raises:
            ValueError: if a name is unknown.
        """
        sparse = sparse_grad_parameter_names or set()
        unknown = sorted(sparse - set(self.params))
        if unknown:
            raise ValueError(
                f"`sparse_grad_parameter_names` should be among {sorted(self.params)}. "
                f"Received {unknown}."
            )
        fresh = {name: p for name, p in self.params.items() if not self.state.get(p)}
        if not fresh:
            return
        with _zero_gradients(self.params, fresh, sparse), _standing_still(self.param_groups):
            self.step(closure=None)
        for param in fresh.values():
            _set_step(self.state.get(param, {}), 0)

    def accumulate(self) -> AbstractContextManager[None]:
        """Have the gradients of the backward passes inside wait for one update.

        Ordinary gradients do so by themselves until `zero_grad`; tables that the backward pass updates, see
        ``EmbeddingFusedOptimizer.accumulate``, are told to.
        """
        return nullcontext()

    def set_optimizer_step(self, step: int) -> None:
        """Set the step counters that the state holds, which Adam's bias correction depends on.

        Args:
            step: how many updates to assume to have been done.
        """
        require_integer(step, "`step`", least=0)
        for state in self.state.values():
            _set_step(state, step)

    def update_hyper_parameters(self, params_dict: dict[str, Any]) -> None:
        """Change hyper-parameters in all groups that have them.

        Args:
            params_dict: name -> value, ``{"lr": 0.1}`` say.

        Raises:
            ValueError: if no group has a hyper-parameter of the name. Then none has been changed.
        """
        self._check_known(params_dict)
        for group in self.param_groups:
            for name in params_dict.keys() & group.keys():
                group[name] = params_dict[name]  # type: ignore[index]

    def _check_known(self, params_dict: Mapping[str, Any]) -> None:
        """Check that some group has each of these hyper-parameters."""
        known = {name for group in self.param_groups for name in group} - {"params"}
        for name in params_dict:
            if name not in known:
                raise ValueError(
                    f"`params_dict` should name some of {sorted(known)}. Received '{name}'."
                )


def _set_step(state: dict[str, Any], step: int) -> None:
    """Set the step counter in the state of one parameter, if it has one."""
    if isinstance(state.get("step"), Tensor):
        state["step"].fill_(step)
    elif "step" in state:
        state["step"] = step


@contextmanager
def _zero_gradients(
    params: Mapping[str, Tensor], fresh: Mapping[str, Tensor], sparse: set[str]
) -> Iterator[None]:
    """Give ``fresh`` gradients of zero and the other parameters none, for a while."""
    before = [param.grad for param in params.values()]
    for name, param in params.items():
        if name not in fresh:
            param.grad = None
        elif name in sparse:
            indices = torch.zeros(1, 0, dtype=torch.int64, device=param.device)
            values = param.new_zeros(0, *param.shape[1:])
            param.grad = torch.sparse_coo_tensor(
                indices, values, param.shape, check_invariants=True
            )
        else:
            param.grad = torch.zeros_like(param)
    try:
        yield
    finally:
        for param, grad in zip(params.values(), before, strict=True):
            param.grad = grad


@contextmanager
def _standing_still(groups: Collection[Mapping[str, Any]]) -> Iterator[None]:
    """Set the hyper-parameters so that no weight moves, for a while."""
    changed: list[tuple[Any, dict[str, Any]]] = []
    for group in groups:
        values = {name: value for name, value in _STANDING_STILL.items() if name in group}
        changed.append((group, {name: group[name] for name in values}))
        group.update(values)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for group, values in changed:
            group.update(values)
