"""How a table is trained: its rule, hyper-parameters, state, waiting gradients and step count, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet, ref

import torch
from torch import Tensor

from torchrec.ops.embedding.updates import RULES, Hyper
from torchrec.optim._private import pass_on_torchs_optimizer_in_backward, row_gradients
from torchrec.optim.fusable import fused_rule
from torchrec.optim.owners import Owner, UpdateTime, owner_of, set_owner
from torchrec.types import OptimizerType

# States of optimizers that do not start at 0, and the hyper-parameter that says where.
_STARTS = {"sum": "initial_accumulator_value", "step_size": "lr"}

# Values that stay what they are until another one is written in their place.
_FIXED = (float, int, str, tuple, type(None))


class FusedRule(NamedTuple):
    """What updates a table in place of an ordinary optimizer.

    Attributes:
        optimizer: the update rule.
        hyper: its hyper-parameters, as they were asked for.
        inherits_lr: whether the table waits for the optimizer that its parameter is given to, and
            takes that one's learning rate, instead of being updated in the backward pass.
    """

    optimizer: OptimizerType
    hyper: Hyper
    inherits_lr: bool = False

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state that is kept, in the order of the kernels."""
        return RULES[self.optimizer].state_names(self.hyper)


class RowGradients(NamedTuple):
    """Gradients of some rows of a table; a row may come several times.

    Attributes:
        rows: int64 ``(n,)``.
        values: ``(n, D)``.
        times: how often each row was looked up, ``(n,)``; None where nobody asks.
    """

    rows: Tensor
    values: Tensor
    times: Tensor | None = None


class _Collection(Protocol):
    def bind(self) -> None: ...

    def unbind(self) -> None: ...


class _Applier(Protocol):
    """What a table needs of those that it is updated together with; see `JointUpdate`."""

    updated: UpdateTime | None

    def hyper_changed(self, only_rate: bool) -> None: ...

    def rows_arrived(self, update: TableUpdate, rows: RowGradients) -> None: ...

    def apply_waiting(self, updates: list[TableUpdate]) -> None: ...


class HyperGroup(dict[str, Any]):
    """A parameter group of one table: what is written to it counts from the next update on."""

    def __init__(self, values: Mapping[str, Any], update: TableUpdate) -> None:
        super().__init__(values)
        self._update = update

    def belong_to(self, update: TableUpdate) -> None:
        """Have what is written from now on count for another update of the table."""
        self._update = update

    def __setitem__(self, key: str, value: Any) -> None:
        self._update.hyper_written(key, value, self)
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Write several hyper-parameters, each as if by itself."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> HyperGroup:  # type: ignore[misc, override]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _group_of, (self._update, self["params"])


def _group_of(update: TableUpdate, params: list[Tensor]) -> Mapping[str, Any] | None:
    """Return the group of a copied update: one copied beside it, in an optimizer, is the same."""
    if update.group is not None and not update.group["params"]:
        dict.__setitem__(update.group, "params", params)
    return update.group


class TableUpdate(Owner):
    """Trains one table: all that its training keeps between steps is here.

    It goes with the weight: the collections that look it up share it, and the first of them shows it
    in its ``fused_optimizer``. A table without a rule of its own is left to ordinary optimizers; of
    its training this then only knows which rows they have to forget.

    Args:
        table: name of the table.
        rule: what updates it; None: an ordinary optimizer.
    """

    def __init__(self, table: str, rule: FusedRule | None = None) -> None:
        self.table = table
        self.rule: FusedRule | None = None
        self.states: dict[str, Tensor] = {}
        self.step = torch.zeros((), dtype=torch.float64, device="cpu")
        self.waiting: list[RowGradients] = []
        self.samples_waiting = 0  # that the waiting gradients are of
        self.collecting = False  # within `accumulate()`: what arrives waits for a later update
        self.joint: _Applier | None = None
        self.group: HyperGroup | None = None
        self._hyper: Hyper | None = None  # what the group says, until somebody writes to it
        self._hyper_may_change = False  # without being written there, as a tensor may
        self._weight: Tensor | None = None
        self._hook: Any = None
        self._applied: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None
        # Optimizers that have stepped with the table, and rows for one that has not, but may have state.
        self._optimizers: WeakSet[torch.optim.Optimizer] = WeakSet()
        self.evicted: list[Tensor] = []
        self._collections: list[ref[_Collection]] = []
        if rule is not None:
            self.set_rule(rule)

    # The parameter, and the collections that look it up.

    @property
    def weight(self) -> Tensor:
        """The parameter, ``(E, D)``."""
        if self._weight is None:
            raise RuntimeError(f"Table '{self.table}' should have been given its weight first.")
        return self._weight

    def trains(self, weight: Tensor) -> bool:
        """Whether this is the parameter."""
        return self._weight is weight

    def own(self, weight: Tensor) -> None:
        """Train this parameter from now on, instead of the former, which nobody looks up any more.

        What waits for the former is dropped; a copy that has no parameter yet keeps it.

        Args:
            weight: the parameter.
        """
        self._let_go()
        if self._weight is not None:  # as where memory is given to what was made on `meta`
            pass_on_torchs_optimizer_in_backward(self._weight, weight)
        self._weight = weight
        set_owner(weight, self)
        self._watch_gradient()
        if self.group is not None:
            dict.__setitem__(self.group, "params", [weight])

    def collections(self) -> list[_Collection]:
        """Return the collections that look the parameter up, the one that shows it first."""
        return [found for found in (known() for known in self._collections) if found is not None]

    def join(self, collection: _Collection, first: bool = False) -> None:
        """Tell this collection when the rule changes, or when it comes to show the parameter.

        Args:
            collection: looks the parameter up.
            first: whether it shows the parameter, and not one that came before.
        """
        others = [known for known in self.collections() if known is not collection]
        if len(others) < len(self.collections()) and not first:
            return
        mine = ref(collection, self._collection_gone)
        theirs = [ref(known, self._collection_gone) for known in others]
        self._collections = [mine, *theirs] if first else [*theirs, mine]
        if first:
            for (
                known
            ) in others:  # this ends: they have joined, and find nothing changed but who is first
                known.bind()

    def leave(self, collection: _Collection) -> None:
        """Be looked up by this collection no longer; the next one then shows the parameter."""
        others = [known for known in self.collections() if known is not collection]
        self._collections = [ref(known, self._collection_gone) for known in others]
        for known in others:
            known.bind()
        if not others:
            self._let_go()

    def _let_go(self) -> None:
        """Leave the parameter, if there is one, to whoever wants to train it."""
        if self._weight is None:
            return
        self.restart()
        if owner_of(self._weight) is self:
            set_owner(self._weight, None)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _collection_gone(self, _: object) -> None:
        for known in self.collections():  # one of them is the first now, when it next looks
            known.unbind()

    def _watch_gradient(self) -> None:
        """Take note of gradients that come otherwise than from look-ups: a penalty, tied logits."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._weight is None or not self.in_backward:
            return
        me = ref(self)

        def arrived(param: Tensor) -> None:
            # Taken at once, so that the pass has it, and a pass that fails leaves nothing behind.
            grad, update = param.grad, me()
            if grad is None or update is None or update.joint is None:
                return
            param.grad = None
            update.joint.rows_arrived(update, _rows_of(grad))

        # A hook is refused while a parameter is frozen, but stays while it is frozen later.
        required = self._weight.requires_grad
        self._weight.requires_grad_(True)
        self._hook = self._weight.register_post_accumulate_grad_hook(arrived)
        self._weight.requires_grad_(required)

    # The rule, and its hyper-parameters.

    def set_rule(self, rule: FusedRule) -> None:
        """Train by this rule, with no state, from now on."""
        self.rule, self.states = rule, {}
        self.step = torch.zeros((), dtype=torch.float64, device="cpu")
        self.waiting, self.samples_waiting, self.joint = [], 0, None
        options = RULES[rule.optimizer].table_options
        values = {name: getattr(rule.hyper, name) for name in options}
        params = [] if self._weight is None else [self._weight]
        self.group, self._hyper = HyperGroup({"params": params, **values}, self), rule.hyper
        self._hyper_may_change = self.lr_may_change or self.options_may_change
        self._watch_gradient()

    def share_rule(self, rule: FusedRule, table: str) -> None:
        """Train by this rule for another table as well, which has the same weight.

        Args:
            rule: of the other table.
            table: its name.

        Raises:
            ValueError: if this table has another rule.
        """
        if self.rule is None:
            self.set_rule(rule)
            self._tell_collections()
        elif self.rule != rule:
            raise ValueError(
                f"Tables '{self.table}' and '{table}' have one weight, and should have the same "
                f"optimizer with the same options. Received {self.rule} and {rule}."
            )

    def take_group(self, former: TableUpdate) -> None:
        """Go by the parameter group of another update of the same table, in whose place this one trains it.

        Whoever has the group, a scheduler say, writes to this one from now on.

        Args:
            former: the other.
        """
        group = former.group
        if group is not None:
            dict.__setitem__(group, "params", [self.weight])
            group.belong_to(self)
            self.group, self._hyper = group, None
            self._hyper_may_change = self.lr_may_change or self.options_may_change

    def _tell_collections(self) -> None:
        for collection in self.collections():
            collection.bind()

    @property
    def lr(self) -> float:
        """The learning rate, as it is in the parameter group now: a tensor may be written in place."""
        return 0.0 if self.group is None else _rate(self.group["lr"])

    @property
    def lr_may_change(self) -> bool:
        """Whether the learning rate may change without being written to the parameter group: a tensor may."""
        return self.group is not None and not isinstance(self.group["lr"], _FIXED)

    @property
    def options_may_change(self) -> bool:
        """Whether another hyper-parameter may do so: a list of betas, say."""
        if self.rule is None or self.group is None:
            return False
        names = RULES[self.rule.optimizer].table_options
        return not all(isinstance(self.group.get(name), _FIXED) for name in names if name != "lr")

    @property
    def penalises_batch(self) -> bool:
        """Whether an L2 penalty is added for each id that is looked up, so that it counts how often one comes."""
        return self.group is not None and bool(self.group["batch_l2"])

    @property
    def hyper(self) -> Hyper:
        """The hyper-parameters, as they are in the parameter group now."""
        if self.rule is None or self.group is None:
            raise RuntimeError(f"Table '{self.table}' should have a rule of its own.")
        if self._hyper is None or self._hyper_may_change:
            self._hyper = RULES[self.rule.optimizer].hyper(self.group)
            self._hyper_may_change = self.lr_may_change or self.options_may_change
        return self._hyper

    def hyper_written(self, key: str, value: Any, group: Mapping[str, Any]) -> None:
        """Check a hyper-parameter that is about to be written to the parameter group.

        Args:
            key: its name; others than those of the rule mean nothing here.
            value: the new value.
            group: the group as it is.

        Raises:
            ValueError: for a value that no update can mean.
        """
        if key == "lr":  # what schedulers write in every step
            _rate(value)
        elif self.rule is not None and key in RULES[self.rule.optimizer].table_options:
            hyper = RULES[self.rule.optimizer].hyper({**group, key: value})
            if RULES[self.rule.optimizer].state_names(hyper) != self.rule.state_names:
                raise ValueError(
                    f"`{key}` of table '{self.table}' should need the state that there is, "
                    f"{list(self.rule.state_names)}. Received {value}."
                )
        self._hyper = None
        if self.joint is not None:
            self.joint.hyper_changed(only_rate=key == "lr")

    @property
    def in_backward(self) -> bool:
        """Whether the backward pass updates the table."""
        return self.rule is not None and not self.rule.inherits_lr

    @property
    def applied(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
        """Class and arguments of the optimizer that `apply_optimizer_in_backward` gave it, if any."""
        return self._applied

    @property
    def optimizer(self) -> None:
        """None: the ``fused_optimizer`` of the collection shows what updates its tables."""
        return

    @property
    def description(self) -> str:
        """The table by its name."""
        return f"Table '{self.table}'"

    @property
    def updated(self) -> UpdateTime | None:
        """When a backward pass last updated the table, or those that it is updated together with."""
        if self.joint is None or not self.in_backward or not self.weight.requires_grad:
            return None
        return self.joint.updated

    def check(
        self, optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: Mapping[str, Any]
    ) -> None:
        """Raise if no kernel does what this optimizer would."""
        fused_rule(optimizer_class, optimizer_kwargs)

    def apply(
        self, optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: Mapping[str, Any]
    ) -> None:
        """Update the table in the backward pass from now on, as this optimizer would."""
        self.set_rule(FusedRule(*fused_rule(optimizer_class, optimizer_kwargs)))
        self._applied = optimizer_class, dict(optimizer_kwargs)
        self._tell_collections()

    # State.

    def place(self) -> None:
        """Make the states where they are not there yet, or bring them to where the weight is."""
        if self.rule is None:
            return
        rule, weight = RULES[self.rule.optimizer], self.weight.detach()
        dtype, hyper = torch.promote_types(weight.dtype, torch.float32), self.hyper
        for name in self.rule.state_names:
            state = self.states.get(name)
            if state is None or state.is_meta:
                self.states[name] = rule.new_state(name, weight, hyper)
            else:
                self.states[name] = state.to(device=weight.device, dtype=dtype)

    def named_state(self) -> dict[str, Tensor]:
        """Return the states and the step count by name: the very tensors that updates write to."""
        return {**self.states, "step": self.step}

    def reset_state(self, rows: Tensor | None = None) -> None:
        """Set the state to what it was before any update.

        Args:
            rows: of these rows. Default: all, and the step count.
        """
        if self.group is None:
            return
        for name, state in self.states.items():
            state[slice(None) if rows is None else rows] = _start(name, self.group)
        if rows is None:
            self.step.zero_()

    # Gradients.

    def take_waiting(self) -> list[RowGradients]:
        """Return the gradients that wait, with the L2 penalty of the rows looked up; none wait any more."""
        waiting, samples = self.waiting, self.samples_waiting
        self.waiting, self.samples_waiting = [], 0
        strength = 0.0 if self.group is None else float(self.group["batch_l2"])
        if not strength or not samples:
            return waiting
        return [_penalised(each, self.weight, strength / samples) for each in waiting]

    def discard_gradients(self) -> None:
        """Drop the gradients that wait for a later update, where no other optimizer has to do it."""
        self.take_waiting()
        if self.in_backward:
            self.weight.grad = None

    def forget_rows(self, rows: Tensor) -> None:
        """Make rows as they were before any training, but for their weights.

        State of the table's own rule is reset at once, and that of any optimizer that has stepped
        with the table; that of another one, which was just loaded say, when it steps. Gradients that
        wait for these rows are dropped, whatever form they wait in.

        Args:
            rows: int64 ``(n,)``, distinct, on the device of the weight.
        """
        weight = self.weight
        if self.waiting:
            self.waiting = [_without(waiting, rows) for waiting in self.waiting]
        grad = weight.grad
        if grad is not None and grad.is_sparse:
            kept = _without(RowGradients(*row_gradients(grad)), rows)
            weight.grad = torch.sparse_coo_tensor(
                kept.rows.unsqueeze(0),
                kept.values,
                grad.shape,
                device=grad.device,  # another default device may be in force
                check_invariants=False,
            )
        elif grad is not None:
            grad[rows] = 0
        self.reset_state(rows)
        if self.rule is not None:
            return
        for optimizer in self._optimizers:
            self._forget_in(optimizer, rows)
        self.evicted.append(rows)
        if sum(part.numel() for part in self.evicted) > 2 * weight.shape[0]:
            self.evicted = [torch.cat(self.evicted).unique()]  # at most E: not again soon

    def _forget_in(self, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
        """Set what an ordinary optimizer keeps of rows to where it started."""
        for group in optimizer.param_groups:
            if not any(param is self._weight for param in group["params"]):
                continue
            for name, state in optimizer.state.get(self.weight, {}).items():
                if isinstance(state, Tensor) and state.shape[:1] == self.weight.shape[:1]:
                    state[rows] = _start(name, group)

    def restart(self) -> None:
        """Call off what waits, as after loading other weights: gradients, and rows to be forgotten."""
        self.discard_gradients()
        self.evicted = []

    def before_step(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
        """Update a table that takes its rate from ``group``; let the optimizer forget evicted rows."""
        if self.rule is None:
            if self.evicted and optimizer not in self._optimizers:
                self._forget_in(optimizer, torch.cat(self.evicted))
            self._optimizers.add(optimizer)
            self.evicted = []
        if self.rule is None or not self.rule.inherits_lr or self.weight.grad is None:
            return
        grad, self.weight.grad = self.weight.grad, None  # the optimizer itself passes it over
        grad = (grad if grad.is_sparse else grad.to_sparse(1)).coalesce()
        values = -grad.values() if group.get("maximize", False) else grad.values()
        self.waiting.append(RowGradients(grad.indices()[0], values))
        if self.joint is not None and self.group is not None:
            self.group["lr"] = float(group["lr"])
            self.joint.apply_waiting([self])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is tied to this very parameter and to what it is updated with."""
        left_out = dict.fromkeys(("joint", "_weight", "_hook", "_applied", "_optimizers"))
        group = None if self.group is None else {**self.group, "params": []}
        kept: dict[str, Any] = {
            "step": float(self.step),
            "group": group,
            "collecting": False,
            "_collections": [],
        }
        return {**self.__dict__, **left_out, **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.step = torch.tensor(state["step"], dtype=torch.float64, device="cpu")
        self._optimizers = WeakSet()
        if self.group is not None:
            self.group = HyperGroup(self.group, self)


def _rate(value: Any) -> float:
    """Return a learning rate as a number, if it is one that an update can mean."""
    try:
        rate = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`lr` should be a number. Received {value!r}.") from None
    return rate if 0.0 <= rate < math.inf else Hyper(lr=rate).lr  # which says what is wrong


def _start(name: str, group: Mapping[str, Any]) -> float:
    """Return where a state of this name starts, by the options of a parameter group."""
    return float(group.get(_STARTS.get(name, ""), 0.0))


def _rows_of(grad: Tensor) -> RowGradients:
    """Return the rows of the gradient of a table; of a dense one, those that are not zero."""
    return RowGradients(*row_gradients(grad if grad.is_sparse else grad.to_sparse(1)))


def _penalised(waiting: RowGradients, weight: Tensor, factor: float) -> RowGradients:
    """Add to gradients ``factor`` times the weights of their rows, as often as these were looked up."""
    if waiting.times is None:
        return waiting
    penalty = weight.detach()[waiting.rows].to(waiting.values.dtype) * waiting.times.unsqueeze(1)
    return RowGradients(waiting.rows, waiting.values + factor * penalty)


def _without(waiting: RowGradients, rows: Tensor) -> RowGradients:
    stays = ~torch.isin(waiting.rows, rows)
    times = None if waiting.times is None else waiting.times[stays]
    return RowGradients(waiting.rows[stays], waiting.values[stays], times)
