"""Input of sharded modules that is sent before they are called, and how that is known ahead.

No model is traced. A forward pass says, by what it calls sharded modules with, which parts of its batch those are: the
very objects. The same parts of the next batch are sent while this one is trained on; and the next forward pass gets
them where it calls a module with these very objects, otherwise the module sends its input itself.

Objects that are the same may hold something else by then, if the model changes its batch in place. A call that is seen
to be made with such parts is not sent ahead from then on. If its input was, that is an error: other ranks, which may
have changed nothing, would wait for vectors of what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from time import perf_counter
from typing import Any

from torch import Tensor

from torchrec.distributed._input_source import InputSource
from torchrec.distributed._private import version_of
from torchrec.distributed.train_pipeline.report import Exchanges
from torchrec.distributed.types import Awaitable, ShardedModule
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.streamable import Multistreamable

__all__ = ["InputCall", "StartedInputs", "calls_shown", "part_at", "parts_of"]

Path = tuple[tuple[str, Any], ...]  # ("attribute", its name) or ("item", its key), step by step
_LEAVES = (Tensor, JaggedTensor, KeyedJaggedTensor)
_CONSTANTS = (type(None), bool, int, float, str)
_CHANGED = "is called with a part of its batch that the model changes in place"


def parts_of(batch: object, kinds: tuple[type, ...] = _LEAVES) -> list[tuple[Path, object]]:
    """Return the tensors and features of a batch, and how to come to each.

    Args:
        batch: a tensor, features, or a dataclass, tuple, list, dictionary or other object of such. An object inside
            that refers to one around it has nothing more to say.
        kinds: types of what is a part, and not looked into. Default: tensors, `JaggedTensor`, `KeyedJaggedTensor`.

    Example:
        >>> import torch
        >>> [path for path, _ in parts_of({"ids": torch.ones(1), "more": (torch.ones(2),)})]
        [(('item', 'ids'),), (('item', 'more'), ('item', 0))]
    """
    return _parts_of(batch, kinds, frozenset())


def _parts_of(
    batch: object, kinds: tuple[type, ...], around: frozenset[int]
) -> list[tuple[Path, object]]:
    if isinstance(batch, kinds):
        return [((), batch)]
    if id(batch) in around:
        return []
    steps: list[tuple[str, Any, object]] = []
    if isinstance(batch, Mapping):
        steps = [("item", key, value) for key, value in batch.items()]
    elif isinstance(batch, (list, tuple)):
        steps = [("item", number, value) for number, value in enumerate(batch)]
    elif is_dataclass(batch) and not isinstance(batch, type):
        steps = [("attribute", f.name, getattr(batch, f.name)) for f in fields(batch)]
    elif not isinstance(batch, type) and hasattr(batch, "__dict__"):
        steps = [("attribute", name, value) for name, value in vars(batch).items()]
    around |= {id(batch)}
    return [
        (((kind, key), *path), part)
        for kind, key, value in steps
        for path, part in _parts_of(value, kinds, around)
    ]


def part_at(batch: Any, path: Path) -> Any:
    """Return a part of a batch.

    Args:
        batch: of the form of the one that the path is of.
        path: see `parts_of`.

    Raises:
        AttributeError: or another error of this kind, if the batch has another form.
    """
    for kind, key in path:
        batch = getattr(batch, key) if kind == "attribute" else batch[key]
    return batch


def _versions(part: object) -> list[tuple[Tensor, int]]:
    """Return the tensors of a part of a batch, and how often each was changed in place."""
    if isinstance(part, (JaggedTensor, KeyedJaggedTensor)):
        given = (part.values(), part.lengths(), part.weights_or_none(), part.offsets_or_none())
        return [(tensor, version_of(tensor)) for tensor in given if tensor is not None]
    return [(part, version_of(part))] if isinstance(part, Tensor) else []


@dataclass(frozen=True)
class _Argument:
    """What a module is called with: a part of the batch, or a constant where there is no path."""

    path: Path | None
    constant: object = None

    def of(self, batch: object) -> Any:
        """Return it, of a batch. What is wrong with a batch, `input_dist` finds out, and tells all ranks."""
        if self.path is None:
            return self.constant
        try:
            return part_at(batch, self.path)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            return error


@dataclass(frozen=True)
class InputCall:
    """A call of a sharded module in a forward pass.

    Attributes:
        name: of the call: path of the module, and which call of it this is, if it is not the first.
        module: that is called.
        args: with what.
        kwargs: with what, by name.
        reason: why its input cannot be sent ahead; empty: it can.
    """

    name: str
    module: ShardedModule[Any, Any, Any, Any]
    args: tuple[_Argument, ...]
    kwargs: dict[str, _Argument]
    reason: str = ""


def calls_shown(calls: Sequence[InputCall], before: Sequence[InputCall]) -> list[InputCall]:
    """Return the calls to send input ahead for, once a forward pass has made them.

    Args:
        calls: that it has made.
        before: what was returned for the forward pass before. Parts that were changed in place then may be so again, as
            where a model does it in training alone.
    """
    changed = {call.name for call in before if call.reason == _CHANGED}
    return [
        replace(call, reason=_CHANGED) if call.name in changed and not call.reason else call
        for call in calls
    ]


@dataclass
class _Started:
    """Input of one call that is on its way."""

    call: InputCall
    args: list[Any]
    kwargs: dict[str, Any]
    context: Multistreamable
    sizes: Awaitable[Awaitable[Any]]
    content: Awaitable[Any] | None = None
    sent: float = 0.0
    output: Any = None  # of a look-up that was made ahead, too
    is_looked_up: bool = False

    def fits(self, module: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call is the one that the input was sent for: with the very same objects."""
        if module is not self.call.module or len(args) != len(self.args):
            return False
        if set(kwargs) != set(self.kwargs):
            return False
        pairs = [*zip(args, self.args, strict=True), *((kwargs[n], self.kwargs[n]) for n in kwargs)]
        return all(a is b or (isinstance(a, _CONSTANTS) and a == b) for a, b in pairs)


class StartedInputs(InputSource):
    """The input of the sharded modules in the forward pass of one batch.

    Attributes:
        calls: those that the forward pass has made so far.
        started: whether input was sent ahead, of however many calls.

    Args:
        batch: whose forward pass it is.
        names: of sharded modules, by their `id`.
        exchanges: that are measured.
    """

    def __init__(self, batch: object, names: Mapping[int, str], exchanges: Exchanges) -> None:
        self._batch, self._names, self._exchanges = batch, names, exchanges
        self._parts = parts_of(batch)
        self._paths = {id(part): path for path, part in self._parts}
        self._versions = self._versions_of_parts()
        self._under_way: list[_Started] = []
        self._left_out: dict[str, str] = {}  # name of a call -> why its input was not sent
        self.calls: list[InputCall] = []
        self.started = False

    @property
    def contexts(self) -> dict[str, Multistreamable]:
        """Name -> context, of each call whose input is on its way."""
        return {each.call.name: each.context for each in self._under_way}

    @property
    def sizes(self) -> dict[str, Awaitable[Any]]:
        """Name -> sizes on their way."""
        return {each.call.name: each.sizes for each in self._under_way if each.content is None}

    @property
    def contents(self) -> dict[str, Awaitable[Any]]:
        """Name -> ids on their way."""
        return {
            each.call.name: each.content for each in self._under_way if each.content is not None
        }

    def start(self, calls: Sequence[InputCall]) -> None:
        """Send, for calls that the forward pass will make, how much input there is.

        Args:
            calls: of the forward pass before, the same on all ranks.
        """
        self.started, self._versions = True, self._versions_of_parts()
        for call in calls:
            if call.reason:
                self._left_out[call.name] = call.reason
                continue
            args = [each.of(self._batch) for each in call.args]
            kwargs = {name: each.of(self._batch) for name, each in call.kwargs.items()}
            context = call.module.create_context()
            sizes = call.module.input_dist_ahead(context, *args, **kwargs)
            self._under_way.append(_Started(call, args, kwargs, context, sizes))

    def send(self) -> None:
        """Send the input, once all ranks have said how much.

        Raises:
            Exception: on all ranks, what is wrong with the batch of any of them.
        """
        for each in self._under_way:
            self._send(each)

    def _send(self, each: _Started) -> Awaitable[Any]:
        """Send the input of one call, unless it has been."""
        if each.content is None:
            before = perf_counter()
            each.content = each.sizes.wait()
            each.sent = perf_counter()
            self._exchanges.sizes(each.call.name, each.sent - before)
        return each.content

    def look_up(self) -> None:
        """Run the look-ups of what was sent, by the tables as they are now, but for those that wait for their step."""
        self.send()
        for each in self._under_way:
            if not each.is_looked_up and not each.call.module.compute_trains:
                each.output, each.is_looked_up = self._look_up(each), True

    def forward(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what a sharded module returns; see `InputSource`.

        Raises:
            ValueError: if what was sent for this call was changed in place since.
        """
        call = self._call(module, args, kwargs)
        self.calls.append(call)
        for number, each in enumerate(self._under_way):
            if each.fits(module, args, kwargs):
                if call.reason == _CHANGED:
                    raise ValueError(
                        f"The input of `{call.name}` should be as it was when its ids were sent, ahead of the forward "
                        "pass: change a copy, or what the data set gives. Received a part of the batch whose ids, "
                        "lengths or weights were changed in place since."
                    )
                del self._under_way[number]
                return each.output if each.is_looked_up else self._look_up(each)
        reason = call.reason or self._left_out.get(call.name, "")
        if not reason:
            reason = "is called in another way than in the step before" if self.started else ""
        begun = perf_counter()
        context = module.create_context()
        content = module.input_dist(context, *args, **kwargs).wait().wait()
        self._exchanges.not_ahead(
            call.name, perf_counter() - begun, reason or "was not known ahead in the first steps"
        )
        return module.compute_and_output_dist(context, content)

    def _look_up(self, each: _Started) -> Any:
        on_its_way = self._send(each)
        before = perf_counter()
        content = on_its_way.wait()
        self._exchanges.ids(each.call.name, before - each.sent, perf_counter() - before)
        return each.call.module.compute_and_output_dist(each.context, content)

    def _call(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> InputCall:
        name = self._names.get(id(module), type(module).__name__)
        count = sum(call.module is module for call in self.calls)
        name = f"{name}, call {count + 1}" if count else name
        reason = ""
        if module.input_dist_trains:
            reason = "sends what follows from parameters, which the step before trains"
        elif any(not self._is_known(value) for value in (*args, *kwargs.values())):
            reason = "is called with what the model makes of its batch, not with a part of it"
        elif any(self._is_changed(value) for value in (*args, *kwargs.values())):
            reason = _CHANGED
        return InputCall(
            name,
            module,
            tuple(self._argument(value) for value in args),
            {key: self._argument(value) for key, value in kwargs.items()},
            reason,
        )

    def _is_known(self, value: object) -> bool:
        return id(value) in self._paths or isinstance(value, _CONSTANTS)

    def _versions_of_parts(self) -> dict[int, list[tuple[Tensor, int]]]:
        return {id(part): _versions(part) for _, part in self._parts}

    def _is_changed(self, value: object) -> bool:
        """Whether a part of the batch was changed in place since it was looked at, or sent."""
        known = self._versions.get(id(value), [])
        return any(version_of(tensor) != version for tensor, version in known)

    def _argument(self, value: object) -> _Argument:
        path = self._paths.get(id(value))
        constant = value if path is None and isinstance(value, _CONSTANTS) else None
        return _Argument(path, constant)
