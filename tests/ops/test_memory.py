"""No kernel reads or writes beside its tensors, whatever an operator is called with; it names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchrec.ops.collision
import torchrec.ops.hashing
import torchrec.ops.interaction  # noqa: F401  (the imports define the operators)
from torchrec.ops import backends
from torchrec.ops._library import definitions
from torchrec.ops._memory import Known, addresses_of, is_wide
from torchrec.ops.embedding import LookupSpec, PoolingCode, SlotSpec, TableSpec, new_hyper
from torchrec.ops.jagged import (
    jagged_index_select,
    keyed_index_select,
    lengths_fit,
    lengths_to_offsets,
    sum_equal_groups,
    sum_groups,
)
from torchrec.ops.permute import permute_jagged
from torchrec.types import OptimizerType

T = torch.tensor
Call = Callable[[], object]
QUARTER = 2**62
ops: Any = torch.ops.rowwise

native_only = pytest.mark.skipif(
    backends()["embedding_bag"]["cpu"].name != "native", reason="plain PyTorch has no addresses"
)


def freed() -> Tensor:
    tensor = torch.ones(3, dtype=torch.int64)
    tensor.untyped_storage().resize_(0)
    return tensor


# ---- sums that wrap


@pytest.mark.parametrize("total", [0, 4, -QUARTER])
def test_lengths_that_only_fit_modulo_2_to_the_64_do_not_fit(total: int) -> None:
    assert not lengths_fit(T([QUARTER] * 4 + [total]), total)


@native_only
def test_large_lengths_that_do_not_wrap_fit() -> None:
    assert lengths_fit(T([QUARTER, 0, QUARTER - 1]), 2**63 - 1)
    assert lengths_fit(T([2**31 - 1] * 3, dtype=torch.int32), 3 * (2**31 - 1))


@native_only
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: sum_groups(T([QUARTER] * 4), [1, 3]), "`lengths` should not be negative"),
        (lambda: sum_groups(T([1, -1]), [2]), "`lengths` should not be negative"),
        (lambda: sum_equal_groups(T([QUARTER] * 4), 2), "`lengths` should not be negative"),
        (lambda: lengths_to_offsets(T([QUARTER] * 4)), r"sum to less than 2\*\*63"),
        (
            lambda: jagged_index_select(
                torch.empty(QUARTER, 0), T([QUARTER]), T([0, 0, 0, 0]), total=0
            ),
            "what is taken less than 2",
        ),
        (
            lambda: keyed_index_select(
                torch.empty(QUARTER, 0), None, T([[QUARTER]]), T([0, 0, 0, 0])
            ),
            "`lengths` should not be negative",
        ),
    ],
    ids=["groups", "negative", "equal groups", "offsets", "select", "keyed select"],
)
def test_sums_that_wrap_are_refused(broken: Call, message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        broken()


# ---- sizes, strides and positions


@native_only
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: sum_groups(T([1, 2]), [-5, 7]), "`sizes` should not be negative"),
        (lambda: sum_groups(T([1, 2]), [-(10**12), 10**12 + 2]), "`sizes` should not be negative"),
        (lambda: sum_groups(T([1.0, 2.0]), [2]), "`lengths` should be int32 or int64"),
        (lambda: sum_equal_groups(T([1.0, 2.0]), 2), "`lengths` should be int32 or int64"),
        (lambda: sum_equal_groups(T([1, 2, 3, 4]), 3), r"`groups` should divide .* \(4\)"),
        (lambda: sum_equal_groups(T([1, 2]), 0), "`groups` should divide"),
        (lambda: sum_equal_groups(T([1, 2]), -1), "`groups` should divide"),
        (
            lambda: permute_jagged(T([1, 1]), T([5, 6]), None, [-(10**9), 10**9 + 2], [0, 1]),
            "`strides` should sum to the number of lengths .* not be negative",
        ),
        (
            lambda: permute_jagged(T([1, 1]), T([5, 6]), None, 1, [0, 1], [10**9, 10**9]),
            "`sizes` should not be negative, and sum to the number of values",
        ),
        (
            lambda: permute_jagged(T([1, 1]), T([5, 6]), None, 1, [0, 0], [10**9, 10**9]),
            "`sizes` should be 0 or more and sum to values",
        ),
        (
            lambda: permute_jagged(T([1, 1]), T([5, 6]), None, 1, [0, 1], [-1, 3]),
            "`sizes` should not be negative",
        ),
        (
            lambda: permute_jagged(T([1, 1]), T([5, 6]), None, 2, [0, 1], [1, 1]),
            "`strides` should not be negative, be one for each of 2 keys, and sum",
        ),
        (
            lambda: permute_jagged(T([1, 1]), T([5, 6]), torch.ones(1), 1, [0, 1], [1, 1]),
            r"`weights` should be as many as the values \(2\)",
        ),
        (
            lambda: permute_jagged(T([2, 0]), T([5, 6]), None, 1, [0, 1], [1, 1]),
            "`lengths` of key number 0 should not be negative, and sum to its 1 values",
        ),
        (
            lambda: permute_jagged(T([1, 1, -1, 1]), T([5, 6]), None, 2, [0, 1], [2, 0]),
            "`lengths` of key number 1",
        ),
    ],
)
def test_wrong_sizes_are_refused(broken: Call, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        broken()


@native_only
def test_a_tensor_without_memory_is_refused() -> None:
    for broken in (
        lambda: lengths_to_offsets(freed()),
        lambda: sum_groups(freed(), [3]),
        lambda: permute_jagged(T([1, 1, 1]), freed(), None, 1, [0, 1, 2], [1, 1, 1]),
        lambda: ops.hash_strings(torch.zeros(3, dtype=torch.uint8), freed(), 0),
        lambda: ops.jagged_index_select(freed(), T([3]), T([0]), 3),
        lambda: ops.jagged_to_padded(freed(), T([0, 3]), 3, 0.0),
        lambda: ops.padded_to_jagged(freed().view(1, 3), T([0, 3]), 3),
    ):
        with pytest.raises(ValueError, match="should have memory"):
            broken()


# ---- the registered operators of look-ups


def bag_arguments(**changes: Any) -> dict[str, Any]:
    """Arguments of a pooled look-up of one table of four rows, updated by Adagrad; two samples."""
    table = TableSpec("t", 3, 4, 4, optimizer=OptimizerType.ADAGRAD, states=1)
    spec = LookupSpec([table], [SlotSpec("f", 0, 0)], 1, 3)
    arguments: dict[str, Any] = {
        "grad": torch.ones(2, 3),
        "weights": [torch.ones(4, 3)],
        "states": [torch.zeros(4, 3)],
        "hyper": new_hyper(1),
        "spec": spec.tensor,
        "values": T([0, 1, 3]),
        "offsets": T([0, 2, 3]),
        "sample_weights": torch.ones(3),
        "divisors": None,
        "num_keys": 1,
        "width": 3,
        "dtype": torch.float32,
        "names": spec.names,
    }
    return {**arguments, **changes}


def changed_spec(field: int, value: int) -> Tensor:
    """Return the spec with another number; fields of the table begin at 3, of the slot at 11."""
    spec: Tensor = bag_arguments()["spec"].clone()
    spec[field] = value
    return spec


def call(name: str, arguments: dict[str, Any]) -> object:
    operator = getattr(ops, name).default
    wanted = [argument.name for argument in operator._schema.arguments]
    return operator(*[arguments[argument] for argument in wanted])


BAG_OPERATORS = (
    "embedding_bag",
    "embedding_bag_dense_grad",
    "embedding_bag_sparse_grad",
    "embedding_bag_weights_grad",
    "embedding_bag_update_",
)


@pytest.mark.parametrize("name", BAG_OPERATORS)
def test_the_arguments_are_right_before_they_are_changed(name: str) -> None:
    call(name, bag_arguments())


@pytest.mark.parametrize("name", BAG_OPERATORS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_keys": 0}, "`num_keys` should be 1 or more"),
        ({"num_keys": -1}, "`num_keys` should be 1 or more"),
        ({"num_keys": 3}, "`offsets` should be 3 keys|row for each sample"),
        ({"offsets": T([0, 2, 4])}, r"`offsets` should .* within the values \(3\)"),
        ({"offsets": T([0, 3, 2])}, "`offsets` should .* never fall"),
        ({"offsets": T([-1, 2, 3])}, "`offsets` should start at 0"),
        ({"sample_weights": torch.ones(2)}, r"`sample_weights` should be as many .* \(3\)"),
        ({"divisors": T([1])}, r"`divisors` should be one a bag \(2\)"),
        ({"spec": changed_spec(11, 10**6)}, "table below 1"),
        ({"spec": changed_spec(11, -1)}, "table below 1"),
        ({"spec": changed_spec(12, 5)}, "[Kk]eys"),
        ({"spec": changed_spec(13, 9)}, "pooling that there is"),
        ({"spec": changed_spec(3, 2**62)}, r"shape|should have"),
        ({"spec": changed_spec(9, 2)}, "rows of|shard"),
        ({"spec": bag_arguments()["spec"][:5]}, "numbers of its tables"),
    ],
)
@native_only
def test_pooled_look_ups_stay_within_their_tensors(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        call(name, bag_arguments(**changes))


@native_only
@pytest.mark.parametrize("name", BAG_OPERATORS[1:])
@pytest.mark.parametrize("grad", [torch.ones(1, 3), torch.ones(3, 3), torch.ones(6)])
def test_short_gradients_are_refused(name: str, grad: Tensor) -> None:
    with pytest.raises(ValueError, match="`grad` should have"):
        call(name, bag_arguments(grad=grad))


@native_only
@pytest.mark.parametrize("name", BAG_OPERATORS[1:])
def test_narrow_gradients_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="should lie within the 1 keys and the 2 columns"):
        call(name, bag_arguments(grad=torch.ones(2, 2)))


@native_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyper": torch.zeros(0, dtype=torch.float64)}, "`hyper` should be float64"),
        ({"hyper": new_hyper(2)[::2].t().contiguous().t()}, ""),
        ({"states": []}, "State 0 of table number 0 should have 12 elements. Received no state"),
        ({"states": [torch.zeros(3, 3)]}, "should have 12 elements. Received 9"),
        ({"states": [torch.zeros(3, 4).t()]}, "States of fused optimizers should be contiguous"),
        ({"spec": changed_spec(8, 0)}, "should have 1 states, as its update rule needs"),
        ({"spec": changed_spec(8, 3)}, "update rule that there is"),
        ({"spec": changed_spec(7, 3)}, "should have 2 states"),
        ({"spec": changed_spec(7, 99)}, "update rule that there is"),
    ],
)
def test_updates_stay_within_states(changes: dict[str, Any], message: str) -> None:
    arguments = bag_arguments(**changes)
    if not message:
        call("embedding_bag_update_", arguments)
        return
    steps = new_hyper(1) if arguments["hyper"].dim() == 1 else arguments["hyper"]
    with pytest.raises((ValueError, TypeError), match=message):
        call("embedding_bag_update_", arguments)
    assert int(steps.sum()) == 0  # and no step was counted


@native_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": [torch._neg_view(torch.zeros(3, 4))]}, "`states` should stand for themselves"),
        ({"hyper": torch._neg_view(new_hyper(1))}, "should stand for themselves"),
        ({"spec": torch._neg_view(changed_spec(8, 1))}, "`spec` should stand for itself"),
    ],
    ids=["states", "hyper", "spec"],
)
def test_lazy_negatives_are_not_read(changes: dict[str, Any], message: str) -> None:
    update, arguments = definitions["embedding_bag_update_"], bag_arguments(**changes)
    with pytest.raises((ValueError, TypeError), match=message):
        update.call(*[arguments[argument.name] for argument in update.schema.arguments])


@native_only
def test_momentum_needs_a_state() -> None:
    spec = LookupSpec(
        [TableSpec("t", 3, 4, 4, optimizer=OptimizerType.SGD)], [SlotSpec("f", 0, 0)], 1, 3
    )
    hyper = new_hyper(1)
    hyper[0, 5] = 0.9
    with pytest.raises(ValueError, match="should have 1 states"):
        call("embedding_bag_update_", bag_arguments(spec=spec.tensor, hyper=hyper, states=[]))


def test_columns_that_no_slot_writes_are_zero() -> None:
    tables = [TableSpec("t", 2, 3, 3)]
    spec = LookupSpec(tables, [SlotSpec("f", 0, 0, PoolingCode.SUM, 1)], 1, 5)
    arguments = bag_arguments(spec=spec.tensor, weights=[torch.ones(3, 2)], values=T([0, 1, 2]))
    output, _ = call("embedding_bag", {**arguments, "width": 5})  # type: ignore[misc]
    assert output.tolist() == [[0, 2, 2, 0, 0], [0, 1, 1, 0, 0]]


def sequence_arguments(**changes: Any) -> dict[str, Any]:
    arguments = bag_arguments()
    added = {"grads": [torch.ones(3, 3)], "starts": [0], "counts": [3], "dims": [3]}
    return {**arguments, **added, **changes}


SEQUENCE_OPERATORS = (
    "embedding_sequence",
    "embedding_sequence_dense_grad",
    "embedding_sequence_sparse_grad",
    "embedding_sequence_update_",
)


@pytest.mark.parametrize("name", SEQUENCE_OPERATORS)
def test_the_arguments_of_sequences_are_right_too(name: str) -> None:
    call(name, sequence_arguments())


@native_only
@pytest.mark.parametrize("name", [*SEQUENCE_OPERATORS, "choose_rows"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": [4]}, r"within the values \(3\)|row for each id"),
        ({"counts": [-1]}, r"within the values \(3\)|row for each id"),
        ({"starts": [1]}, r"within the values \(3\)"),
        ({"starts": [-(2**62)]}, r"within the values \(3\)"),
        ({"starts": [2**62], "counts": [3]}, r"within the values \(3\)"),
        ({"starts": [0, 0]}, "one a slot"),
        ({"spec": changed_spec(11, 10**6)}, "table below 1"),
    ],
)
def test_sequences_stay_within_their_tensors(
    name: str, changes: dict[str, Any], message: str
) -> None:
    more = {"num_tables": 1}
    with pytest.raises(ValueError, match=message):
        call(name, {**sequence_arguments(), **more, **changes})


@native_only
def test_outputs_of_sequences_have_the_columns_of_their_table() -> None:
    for dims in ([2], [4]):
        with pytest.raises(ValueError, match="should have the 3 columns of its table"):
            call("embedding_sequence", sequence_arguments(dims=dims))
    with pytest.raises(ValueError, match=r"`dims` should be one a slot \(1\)"):
        call("embedding_sequence", sequence_arguments(dims=[]))


@native_only
@pytest.mark.parametrize("name", SEQUENCE_OPERATORS[1:])
def test_gradients_of_sequences_are_of_one_shape_and_dtype(name: str) -> None:
    spec = LookupSpec(
        [TableSpec("t", 3, 4, 4, optimizer=OptimizerType.ADAGRAD, states=1)],
        [SlotSpec("f", 0, 0), SlotSpec("g", 0, 1)],
        2,
        6,
    ).tensor
    two = {"spec": spec, "starts": [0, 0], "counts": [3, 3]}
    for grads, error, message in (
        ([torch.ones(3, 3), torch.ones(3, 3).half()], TypeError, "`grads` should be of one dtype"),
        ([torch.ones(3, 3), torch.ones(3, 2)], ValueError, "the 3 columns of its table"),
        ([torch.ones(3, 3), torch.ones(3)], ValueError, "the 3 columns of its table"),
        ([torch.ones(3, 3), torch.ones(())], ValueError, "`grads` should have a row for each id"),
        ([torch.ones(3, 3)], ValueError, r"`grads` should be one a slot \(2\)"),
    ):
        with pytest.raises(error, match=message):
            call(name, sequence_arguments(grads=grads, **two))


# ---- other families


@native_only
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dot_interaction", (torch.ones(2, 3), torch.ones(2, 2, 4)), r"`sparse` \[B, F, D\]"),
        ("dot_interaction", (torch.ones(1, 3), torch.ones(9, 2, 3)), r"`sparse` \[B, F, D\]"),
        ("dot_interaction", (torch.ones(2, 3), torch.ones(2, 2, 3).half()), "of one dtype"),
        (
            "dot_interaction_grad",
            (torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 2, 3)),
            r"`grad` should be \[2, 6\]",
        ),
        ("hash_strings", (torch.ones(4), T([0, 4]), 0), "`data` should be one-dimensional uint8"),
        ("hash_strings", (torch.ones(4, dtype=torch.uint8), T([0.0, 4.0]), 0), "`offsets`"),
        ("hash_strings", (torch.ones(4, dtype=torch.uint8), T([]).long(), 0), "`offsets`"),
        ("hash_strings", (torch.ones(4, dtype=torch.uint8), T([0, 5]), 0), "`offsets`"),
        ("hash_strings", (torch.ones(4, dtype=torch.uint8), T([-(2**62), 4]), 0), "`offsets`"),
        ("regroup", ([], [], []), "`inputs` should hold one tensor or more"),
        ("regroup", ([torch.ones(2, 3)], [0, 2**62, 2], [1]), "`pieces`"),
        ("regroup", ([torch.ones(2, 3)], [0, 2, 2**62], [1]), "`pieces`|size|allocate|memory"),
        ("regroup", ([torch.ones(2, 3)], [0, 0, 4, 0, 0, -1], [2]), "`pieces`"),
        ("regroup", ([torch.ones(2, 3)], [0, 0, 1], [-1, 2]), "`counts`"),
        ("jagged_to_padded", (torch.ones(3), T([0, 4]), 2, 0.0), "`offsets`"),
        ("jagged_to_padded", (torch.ones(3), T([0, 3]), -2, 0.0), "`width`"),
        ("jagged_to_padded", (torch.ones(3), T([]).long(), 2, 0.0), "`offsets`"),
        ("padded_to_jagged", (torch.ones(1, 3), T([0, 2, 3]), 3), r"`padded` should be \[B, L"),
        ("padded_to_jagged", (torch.ones(2), T([0, 2, 3]), 3), r"`padded` should be \[B, L"),
    ],
)
def test_other_operators_stay_within_their_tensors(
    name: str, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError), match=message):
        getattr(ops, name)(*arguments)


@native_only
def test_what_holds_a_row_may_be_any_byte_but_0() -> None:
    occupied = T([2, 0, 255, 0], dtype=torch.uint8).view(torch.bool)
    ids, index = T([5, 0, 6, 0]), torch.zeros(16, dtype=torch.int32)
    ops.id_map_rebuild_(ids, T([0, 2]), index)
    rows, chosen, evicted = ops.id_map_replace_(
        ids, occupied, index, T([9, 0, 1, 0]), T([7, 8, 9]), T([3, 2, 4])
    )
    assert (rows.tolist(), chosen.tolist(), evicted.tolist()) == ([1, 3, 2], [0, 1, 2], [6])


# ---- plain memory


def test_addresses_are_those_of_plain_memory() -> None:
    tensor = torch.ones(3)
    wanted = ("x", tensor, 3, torch.float32), ("y", None, 1, torch.int64)
    assert addresses_of(*wanted) == [tensor.data_ptr(), 0]
    for broken in (
        ("x", tensor, 4, torch.float32),
        ("x", tensor, 3, torch.int32),
        ("x", tensor.expand(2, 3), 6, torch.float32),
        ("x", freed(), 3, torch.int64),
        ("x", torch.ones(6)[::2], 3, torch.float32),
        ("x", torch.ones(3, dtype=torch.complex64).conj().imag.contiguous(), 4, torch.float32),
        ("x", torch._neg_view(torch.ones(3)), 3, torch.float32),
        ("x", torch.ones(3).to_sparse(), 3, torch.float32),
        ("x", torch.ones(3, device="meta"), 3, torch.float32),
    ):
        with pytest.raises(ValueError, match="`x` should"):
            addresses_of(broken)


def test_only_integers_of_two_widths_are_read() -> None:
    assert [is_wide("x", T([1])), is_wide("x", T([1]).int())] == [True, False]
    with pytest.raises(TypeError, match="`x` should be int32 or int64"):
        is_wide("x", T([1]).short())


def test_what_is_known_of_a_list_holds_while_it_stays_as_it_was() -> None:
    known: Known[str] = Known()
    name, first, second = object(), torch.zeros(2), torch.zeros(3)
    assert known.get(name, [first, second]) is None
    assert known.put(name, [first, second], "found") == "found"
    assert known.get(name, [first, second]) == "found"
    assert known.get(name, [torch.ones(2), second]) == "found"
    assert known.get(name, [first]) is None
    assert known.get(name, []) is None
    assert known.get(object(), [first, second]) is None
    with torch.no_grad():
        assert known.get(name, [first, second]) is None
    second.resize_(4)
    assert known.get(name, [first, second]) is None
    known.put(name, [first, second], "other")
    assert known.get(name, [first, second]) == "other"
    known.put(name, [first, first], "twice")  # is found again each time
    assert known.get(name, [first, first]) is None


def test_no_more_lists_are_known_than_a_few_hundred() -> None:
    known: Known[int] = Known()
    names = [object() for _ in range(1000)]
    tensors = [torch.zeros(1)]
    for i, name in enumerate(names):
        known.put(name, tensors, i)
    assert known.get(names[-1], tensors) == 999
    assert sum(known.get(name, tensors) is not None for name in names) <= 256


Change = Callable[[list[Tensor], list[Tensor]], None]
CHANGES: dict[str, Change] = {
    "weights of another dtype": lambda weights, _: setattr(weights[3], "data", weights[3].half()),
    "weights of float64": lambda weights, _: setattr(weights[3], "data", weights[3].double()),
    "weights elsewhere": lambda weights, _: setattr(weights[3], "data", weights[3].clone() + 1),
    "weights the other way round": lambda weights, _: setattr(
        weights[3], "data", weights[3].data.t().contiguous().t()
    ),
    "fewer rows": lambda weights, _: setattr(weights[3], "data", weights[3].data[:2]),
    "a sparse weight": lambda weights, _: weights.__setitem__(3, torch.zeros(4, 4).to_sparse()),
    "weights to negate": lambda weights, _: setattr(
        weights[3], "data", torch._neg_view(weights[3])
    ),
    "weights that are freed": lambda weights, _: weights[3].untyped_storage().resize_(0),
    "weights that are gone": lambda weights, _: weights.pop(),
    "another weight": lambda weights, _: weights.__setitem__(3, torch.ones(4, 4)),
    "a weight twice": lambda weights, _: weights.__setitem__(3, weights[2]),
    "states of another dtype": lambda _, states: setattr(states[3], "data", states[3].double()),
    "states elsewhere": lambda _, states: setattr(states[3], "data", states[3].clone() + 1),
    "fewer states": lambda _, states: setattr(states[3], "data", states[3].data[:2]),
    "states that are freed": lambda _, states: states[3].untyped_storage().resize_(0),
    "states that are gone": lambda _, states: states.pop(),
}


@native_only
@pytest.mark.parametrize("num_tables", [4, 6])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tables_that_change_between_calls_are_looked_at_again(change, num_tables) -> None:
    def results(family: Any, calls: int) -> list[object]:
        spec = LookupSpec(
            [
                TableSpec(f"t{t}", 4, 4, 4, optimizer=OptimizerType.ROWWISE_ADAGRAD, states=1)
                for t in range(num_tables)
            ],
            [SlotSpec(f"f{t}", t, t, PoolingCode.SUM, 4 * t) for t in range(num_tables)],
            num_tables,
            4 * num_tables,
        )
        generator = torch.Generator().manual_seed(0)
        weights = [
            torch.nn.Parameter(torch.rand(4, 4, generator=generator)) for _ in range(num_tables)
        ]
        states = [torch.zeros(4) for _ in range(num_tables)]
        hyper = new_hyper(num_tables)
        hyper[:, 0] = 0.5
        bags = torch.arange(num_tables) % 4, torch.arange(num_tables + 1), None, None, num_tables
        grad = torch.ones(1, 4 * num_tables)
        found: list[object] = []
        with torch.no_grad():
            for call in range(calls + 1):
                if call == calls:
                    change(weights, states)
                try:
                    width, names = 4 * num_tables, spec.names
                    pooled = family["embedding_bag"](
                        weights, spec.tensor, *bags, width, torch.float32, names
                    )[0]
                    family["embedding_bag_update_"](
                        grad, weights, states, hyper, spec.tensor, *bags
                    )
                    found = [pooled, *[w.detach().float() for w in weights]]
                except (ValueError, TypeError, RuntimeError) as error:
                    found = [str(error)]
        return found

    quick = {name: definition.call for name, definition in definitions.items()}
    once, again = results(quick, 0), results(quick, 2)
    if isinstance(once[0], str) or isinstance(again[0], str):
        assert once == again
        return
    expected = results({name: d.reference for name, d in definitions.items()}, 2)
    assert len(again) == len(expected)
    for found, right in zip(again, expected, strict=True):
        torch.testing.assert_close(found, right)
