"""Workers that meet now and then: many local steps, then one on what all of them learnt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchrec.optim.keyed import KeyedOptimizer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

GlobalParams = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

# What names of states start with, of the local and of the global optimizer.
_LOCAL = "semi_sync_local_"
_GLOBAL = "semi_sync_global_"
_WEIGHT = _GLOBAL + "weight"
# Before 0.1.0 was released: global states started so, and local ones had their own names.
_FORMER_GLOBAL = "__semisync_global__."
_LOCAL_COUNTER = "__semisync_local_step_counter__"
_GLOBAL_COUNTER = "__semisync_global_step_counter__"


class SemisyncOptimizer(KeyedOptimizer):
    r"""Local steps on each worker, and now and then a global step on their mean progress.

    Each worker keeps the weights :math:`\theta` of the last global step. When it is time, the mean
    distance that the :math:`W` workers have come since then is the gradient of one step of the
    global optimizer, taken from :math:`\theta`:

    .. math::
        \Delta = \frac{1}{W} \sum_i (\theta - \theta_i), \quad
        \theta \leftarrow \text{GlobalOptimizer}(\theta, \Delta), \quad \theta_i \leftarrow \theta

    (Douillard et al., DiLoCo, https://arxiv.org/abs/2311.08105, Algorithm 1; SGD with Nesterov
    momentum is the usual global optimizer.) Without a process group the world is this one worker,
    and the global optimizer smoothes the course of the local one.

    Its parameter groups are those of the local optimizer followed by those of the global one, so a
    learning-rate scheduler on it moves both; give the scheduler one of the two to move only that.
    Its state is theirs, under names that start with ``"semi_sync_local_"`` and
    ``"semi_sync_global_"``; the kept weights are ``"semi_sync_global_weight"``.

    Args:
        global_params: the parameters that are brought together, in any form that torch's optimizers
            take; exactly the parameters of ``global_optimizer``.
        optimizer: takes the local steps.
        global_optimizer: takes the global steps, on the same tensors.
        num_local_steps: local steps from one global step to the next.
        semi_sync_worker_shard_group: process group of the workers; ``None``: all processes.
        offload_global_model: keep :math:`\theta` in host memory.
        non_blocking: let copies from host memory run beside the computation.

    Raises:
        ValueError: if ``num_local_steps`` is below 1, or ``global_params`` are not the parameters
            of ``global_optimizer``.

    Example:
        >>> from torchrec.optim.keyed import KeyedOptimizerWrapper
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> def sgd(lr):
        ...     return KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=lr))
        >>> optimizer = SemisyncOptimizer([weight], sgd(1.0), sgd(0.5), num_local_steps=2)
        >>> course = []
        >>> for _ in range(4):
        ...     weight.grad = torch.ones(1)
        ...     optimizer.step()
        ...     course.append(weight.item())
        >>> course
        [-1.0, -1.0, -2.0, -2.0]
    """

    def __init__(
        self,
        global_params: GlobalParams,
        optimizer: KeyedOptimizer,
        global_optimizer: KeyedOptimizer,
        num_local_steps: int = 16,
        semi_sync_worker_shard_group: ProcessGroup | None = None,
        offload_global_model: bool = False,
        non_blocking: bool = False,
    ) -> None:
        if num_local_steps < 1:
            raise ValueError(f"`num_local_steps` should be at least 1. Received {num_local_steps}.")
        given = set(_tensors(global_params))
        owned = set(global_optimizer.params.values())
        if given != owned:
            raise ValueError(
                "`global_params` should be the parameters of `global_optimizer`. "
                f"Received {len(given - owned)} others, and {len(owned - given)} are missing."
            )
        self._local, self._outer = optimizer, global_optimizer
        self._num_local_steps = num_local_steps
        self._group = semi_sync_worker_shard_group
        self._non_blocking = non_blocking
        self._counters = {name: nn.Parameter(torch.empty(0)) for name in _COUNTERS}
        self._counts: dict[str, dict[str, Any]] = {
            name: {"step": torch.tensor(0)} for name in _COUNTERS
        }
        self._weights = {
            param: self._copy_of(param, offload_global_model)
            for param in global_optimizer.params.values()
        }
        self._start()

    @staticmethod
    def _copy_of(param: Tensor, offload: bool) -> Tensor:
        """Return a copy of the weights to keep, in host memory if it is to be offloaded."""
        if not offload or param.device.type == "cpu":
            return param.detach().clone()
        copy = torch.empty_like(param, device="cpu", pin_memory=True)
        return copy.copy_(param.detach())

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Name -> parameter of both optimizers, and an empty one for each step counter."""
        names = {param: name for name, param in self._outer.params.items()}
        names.update({param: name for name, param in self._local.params.items()})
        return {**{name: param for param, name in names.items()}, **self._counters}

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """Parameter -> its state in both optimizers, its weights at the last global step."""
        state: dict[Any, dict[str, Any]] = {
            param: {_LOCAL + name: value for name, value in values.items()}
            for param, values in self._local.state.items()
        }
        for param, weight in self._weights.items():
            outer = {_GLOBAL + k: v for k, v in self._outer.state.get(param, {}).items()}
            state[param] = {**state.get(param, {}), **outer, _WEIGHT: weight}
        for name, param in self._counters.items():
            state[param] = self._counts[name]
        return state

    @property
    def param_groups(self) -> list[Mapping[str, Any]]:  # type: ignore[override]
        """Parameter groups of the local optimizer, then of the global one."""
        return [*self._local.param_groups, *self._outer.param_groups]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, in both optimizers and between them.

        Args:
            state_dict: ``"state"``, and ``"param_groups"`` or not.

        Raises:
            ValueError: naming the parameter, the state and the shapes, if they do not fit.
        """
        names = {param: name for name, param in self.params.items()}
        saved = {name: _renamed(values) for name, values in state_dict["state"].items()}
        weights = {name: values.pop(_WEIGHT, None) for name, values in saved.items()}
        for param, weight in self._weights.items():
            given = weights.get(names[param])
            if given is None or given.shape != weight.shape:
                raise ValueError(
                    f"State '{_WEIGHT}' of '{names[param]}' should be a tensor of shape "
                    f"{tuple(weight.shape)}. "
                    f"Received {None if given is None else tuple(given.shape)}."
                )
        counts = {name: state_dict["state"].get(name, {}).get("step") for name in _COUNTERS}
        missing = [name for name, count in counts.items() if count is None]
        if missing:
            raise ValueError(f"`state_dict` should hold 'step' of {missing}. Received none.")
        groups = list(state_dict.get("param_groups", []))
        split = len(self._local.param_groups)
        for optimizer, own, outer in (
            (self._local, groups[:split], False),
            (self._outer, groups[split:], True),
        ):
            part: dict[str, Any] = {"state": _part(saved, names, optimizer, outer)}
            if groups:
                part["param_groups"] = _rename(own, names, optimizer)
            optimizer.load_state_dict(part)
        for param, weight in self._weights.items():
            weight.copy_(weights[names[param]])
        for name, count in counts.items():
            self._counts[name]["step"].fill_(count)

    def init_state(self, sparse_grad_parameter_names: set[str] | None = None) -> None:
        """Make the state of both optimizers, without changing any weight.

        Args:
            sparse_grad_parameter_names: parameters whose local gradients are sparse.
        """
        self._local.init_state(sparse_grad_parameter_names)
        self._outer.init_state()

    def post_load_state_dict(self) -> None:
        """Tell both optimizers that a state has been loaded."""
        self._local.post_load_state_dict()
        self._outer.post_load_state_dict()

    def save_param_groups(self, save: bool) -> None:
        """Say whether `state_dict` holds the parameter groups.

        Args:
            save: whether it does.
        """
        super().save_param_groups(save)
        self._local.save_param_groups(save)
        self._outer.save_param_groups(save)

    def set_optimizer_step(self, step: int) -> None:
        """Set the step counters: local ones to ``step``, global ones to the global steps in it.

        Args:
            step: how many local updates to assume to have been done.
        """
        self._local.set_optimizer_step(step)
        self._outer.set_optimizer_step(step // self._num_local_steps)
        self._counts[_LOCAL_COUNTER]["step"].fill_(step)
        self._counts[_GLOBAL_COUNTER]["step"].fill_(step // self._num_local_steps)

    def update_hyper_parameters(self, params_dict: dict[str, Any]) -> None:
        """Change hyper-parameters in both optimizers, where they have them.

        Args:
            params_dict: name -> value.

        Raises:
            ValueError: if neither has a hyper-parameter of the name. Then none has been changed.
        """
        self._check_known(params_dict)
        for optimizer in (self._local, self._outer):
            own = {name for group in optimizer.param_groups for name in group}
            optimizer.update_hyper_parameters({n: v for n, v in params_dict.items() if n in own})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients.

        Args:
            set_to_none: without effect, as in `KeyedOptimizerWrapper`.
        """
        self._local.zero_grad(set_to_none=True)
        self._outer.zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> Any:
        """Take a local step, and a global one if it is time.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            What ``closure`` returned.
        """
        loss = self._local.step(closure)
        count = self._counts[_LOCAL_COUNTER]["step"]
        count += 1
        if int(count) % self._num_local_steps == 0:
            self._global_step()
            self._counts[_GLOBAL_COUNTER]["step"] += 1
        return loss

    @torch.no_grad()
    def _global_step(self) -> None:
        """Step from the kept weights along the mean progress of all workers."""
        gradients = {param: param.grad for param in self._weights}
        for param, weight in self._weights.items():
            start = weight.to(param.device, non_blocking=self._non_blocking)
            delta = start - param
            self._average(delta)
            param.copy_(start)
            param.grad = delta
        self._outer.step()
        for param, weight in self._weights.items():
            weight.copy_(param)
            param.grad = gradients[param]

    def _average(self, delta: Tensor) -> None:
        """Replace ``delta`` by its mean over the workers."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return
        from torchrec.process_groups import all_reduce

        all_reduce(delta, "a global step", self._group)
        delta /= torch.distributed.get_world_size(self._group)


_COUNTERS = (_GLOBAL_COUNTER, _LOCAL_COUNTER)


def _tensors(params: GlobalParams) -> list[Tensor]:
    """Return the tensors in anything that torch's optimizers take as parameters."""
    result: list[Tensor] = []
    for entry in params:
        if isinstance(entry, Tensor):
            result.append(entry)
        elif isinstance(entry, Mapping):
            inner = entry["params"]
            result += [inner] if isinstance(inner, Tensor) else _tensors(inner)
        else:
            result.append(entry[1])
    return result


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a parameter, with the names of now in place of former ones."""
    others = [name for name in values if not name.startswith((_LOCAL, _GLOBAL))]
    if others and len(others) < len(values):
        raise ValueError(
            f"Names of states should start with '{_LOCAL}' or '{_GLOBAL}'. Received '{others[0]}'."
        )
    if not others:
        return dict(values)
    return {
        _GLOBAL + name.removeprefix(_FORMER_GLOBAL)
        if name.startswith(_FORMER_GLOBAL)
        else _LOCAL + name: value
        for name, value in values.items()
    }


def _part(
    saved: Mapping[str, Mapping[str, Any]],
    names: Mapping[Tensor, str],
    optimizer: KeyedOptimizer,
    outer: bool,
) -> dict[str, dict[str, Any]]:
    """Return the state that belongs to one of the two optimizers, under its own names."""
    result = {}
    prefix = _GLOBAL if outer else _LOCAL
    for own, param in optimizer.params.items():
        values = {
            key.removeprefix(prefix): value
            for key, value in saved.get(names[param], {}).items()
            if key.startswith(prefix)
        }
        if values:
            result[own] = values
    return result


def _rename(
    groups: list[Mapping[str, Any]], names: Mapping[Tensor, str], optimizer: KeyedOptimizer
) -> list[dict[str, Any]]:
    """Return parameter groups with the optimizer's own names of the parameters."""
    own = {names[param]: name for name, param in optimizer.params.items()}
    return [{**group, "params": [own.get(n, n) for n in group["params"]]} for group in groups]
