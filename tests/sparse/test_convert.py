"""Lists and tables to the parts of a KeyedJaggedTensor, and back."""

import array
import gc
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec.sparse.convert import (
    KjtParts,
    kjt_parts_from_arrow,
    kjt_parts_from_lists,
    kjt_parts_from_pandas,
    kjt_parts_from_polars,
    kjt_to_lists,
    kjt_weights_to_lists,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

DATA = {"product": [[1, 2, 1], [5], [], [7]], "user": [[2, 3], [], [4, 1, 6], [0]]}
WEIGHTS = {"product": [[0.1, 0.2, 0.3], [1.0], [], [2]], "user": [[1, 2], [], [3, 4, 5], [6]]}


def bags_of(parts: KjtParts, entries: str = "values") -> dict[str, list[list]]:
    """The bags of parts, by counting one after the other."""
    flat = iter(getattr(parts, entries).tolist())
    lengths = iter(parts.lengths.tolist())
    batch = parts.lengths.numel() // max(len(parts.keys), 1)
    bags = {
        key: [[next(flat) for _ in range(next(lengths))] for _ in range(batch)]
        for key in parts.keys
    }
    assert next(flat, None) is None
    return bags


def f32(bags: dict) -> dict:
    return {k: [torch.tensor(bag).float().tolist() for bag in v] for k, v in bags.items()}


# ---- lists


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_lists(dtype):
    parts = kjt_parts_from_lists(DATA, dtype=dtype)
    assert parts.keys == ["product", "user"]
    assert bags_of(parts) == DATA
    assert parts.values.dtype == dtype
    assert parts.lengths.dtype == torch.int64
    assert parts.weights is None


def test_lists_with_weights():
    parts = kjt_parts_from_lists(DATA, WEIGHTS)
    assert bags_of(parts) == DATA
    assert bags_of(parts, "weights") == f32(WEIGHTS)
    assert parts.weights.dtype == torch.float32
    reordered = kjt_parts_from_lists(DATA, dict(reversed(WEIGHTS.items())))
    assert torch.equal(reordered.weights, parts.weights)


@pytest.mark.parametrize(
    ("bags", "expected"),
    [
        ([1, [2, 3], None, 4], [[1], [2, 3], [], [4]]),
        ([(), (1, 2)], [[], [1, 2]]),
        ([np.int32(3), [np.int64(4), 5]], [[3], [4, 5]]),
        ([np.array([1, 2], dtype=np.uint8), np.array([])], [[1, 2], []]),
        ([torch.tensor([1, 2]), torch.tensor(3)], [[1, 2], [3]]),
        ([[torch.tensor(1), np.int8(2)]], [[1, 2]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([5, 6]), [[5], [6]]),
        ([array.array("q", [1, 2])], [[1, 2]]),
        ([], []),
        ([2**63 - 1, -(2**63)], [[2**63 - 1], [-(2**63)]]),
    ],
    ids=repr,
)
def test_what_a_bag_may_be(bags, expected):
    assert bags_of(kjt_parts_from_lists({"k": bags})) == {"k": expected}


def test_no_keys():
    parts = kjt_parts_from_lists({})
    assert parts.keys == []
    assert parts.values.numel() == parts.lengths.numel() == 0


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([[1]], TypeError, "`data` should be a mapping of keys to bags. Received list"),
        ({1: [[1]]}, TypeError, "Keys should be str. Received 1"),
        ({"a": [[1]], "b": [[1], [2]]}, ValueError, r"as key 'a' \(1\). Received 2 for key 'b'"),
        ({"a": "abc"}, TypeError, "bags of key 'a' should be a list.* Received str"),
        ({"a": 5}, TypeError, "bags of key 'a' should be a list.* Received int"),
        ({"a": np.int64(5)}, TypeError, "bags of key 'a' should be a list.* Received int"),
        ({"a": [[1], [2, "x"]]}, TypeError, "key 'a' should be integers. Received 'x' in sample 1"),
        ({"a": [[], "xyz"]}, TypeError, "Received 'xyz' in sample 1"),
        ({"a": [[], [True]]}, TypeError, "Received True in sample 1"),
        ({"a": [False]}, TypeError, "Received False in sample 0"),
        ({"a": [[1, 2.0]]}, TypeError, "Received 2.0 in sample 0"),
        ({"a": [[1, float("nan")]]}, TypeError, "Received nan in sample 0"),
        ({"a": [np.array([1.5])]}, TypeError, "Received 1.5 in sample 0"),
        ({"a": [[np.bool_(True)]]}, TypeError, "Received np.True_ in sample 0"),
        ({"a": [torch.tensor([True])]}, TypeError, "Received True in sample 0"),
        ({"a": [[torch.tensor(1.5)]]}, TypeError, r"Received tensor\(1.5000\) in sample 0"),
        ({"a": [[1, None]]}, TypeError, "Received None in sample 0"),
        ({"a": [[[1]]]}, TypeError, r"Received \[1\] in sample 0"),
        ({"a": [{1, 2}]}, TypeError, r"Received \{1, 2\} in sample 0"),
        (
            {"a": [[1], [2**63]]},
            ValueError,
            "torch.int64. Received 9223372036854775808 in sample 1",
        ),
        ({"a": [[-(2**63) - 1]]}, ValueError, "Received -9223372036854775809 in sample 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_lists_may_not_hold(data, error, message):
    with pytest.raises(error, match=message):
        kjt_parts_from_lists(data)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"a": [[1.0, 2.0]]}, ValueError, r"keys of the ids, \['a', 'b'\]. Received \['a'\]"),
        ({"a": [[1, 2], []], "b": [3]}, ValueError, "key 'a' should have 1 samples.* Received 2"),
        (
            {"a": [[1, 2]], "b": [[]]},
            ValueError,
            "'b' should have 1 entries in sample 0.* Received 0",
        ),
        (
            {"a": [[1, "2"]], "b": [1]},
            TypeError,
            "weights of key 'a' should be numbers. Received '2'",
        ),
        ({"a": [[1, True]], "b": [1]}, TypeError, "Received True in sample 0"),
        ({"a": [[1, None]], "b": [1]}, TypeError, "Received None in sample 0"),
        ({"a": [[1, 10**400]], "b": [1]}, TypeError, "Received 1000"),
        ([[1.0, 2.0]], TypeError, "`weights` should be a mapping"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_weights_may_not_be(weights, error, message):
    with pytest.raises(error, match=message):
        kjt_parts_from_lists({"a": [[1, 2]], "b": [[3]]}, weights)


def test_dtype_of_lists_is_checked():
    with pytest.raises(ValueError, match=r"int64 or torch.int32. Received torch.float32"):
        kjt_parts_from_lists(DATA, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"torch.int32. Received 2147483648 in sample 1"):
        kjt_parts_from_lists({"a": [[1], [2**31]]}, dtype=torch.int32)


def test_there_and_back():
    table = pa.table(DATA)
    for kjt in [
        KeyedJaggedTensor.from_lists(DATA),
        KeyedJaggedTensor.from_arrow(table),
        KeyedJaggedTensor.from_polars(pl.DataFrame(DATA)),
        KeyedJaggedTensor.from_pandas(pd.DataFrame(DATA)),
        KeyedJaggedTensor.from_arrow({"product": table["product"], "user": table["user"]}),
    ]:
        assert kjt.to_lists() == kjt_to_lists(kjt) == DATA
    weighted = KeyedJaggedTensor.from_lists(DATA, WEIGHTS)
    assert kjt_weights_to_lists(weighted) == f32(WEIGHTS)
    with pytest.raises(ValueError, match="weights"):
        kjt_weights_to_lists(KeyedJaggedTensor.from_lists(DATA))


# ---- Arrow


@pytest.mark.parametrize("value", [pa.int64(), pa.int32()], ids=str)
@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list], ids=lambda f: f.__name__)
def test_one_arrow_column_is_not_copied(value, list_of):
    column = pa.array(DATA["user"], list_of(value))
    for table in [pa.table({"user": column}), pa.record_batch({"user": column}), {"user": column}]:
        parts = kjt_parts_from_arrow(table)
        assert parts.values.data_ptr() == column.values.buffers()[1].address
        assert bags_of(parts) == {"user": DATA["user"]}
        assert str(parts.values.dtype) == f"torch.{value}"


def test_a_column_of_scalars_is_not_copied():
    column = pa.array([1, 2, 3])
    parts = kjt_parts_from_arrow(pa.table({"user": column}).slice(1))
    assert parts.values.data_ptr() == column.buffers()[1].address + 8
    assert bags_of(parts) == {"user": [[2], [3]]}


@pytest.mark.parametrize(
    "wrap", [lambda c: pa.table({"k": c}), lambda c: {"k": c}], ids=["stream", "array"]
)
def test_values_keep_the_memory_of_a_table_alive_and_no_longer(wrap):
    gc.collect()  # what earlier tests left would be counted before, and gone after
    before = pa.total_allocated_bytes()
    parts = kjt_parts_from_arrow(wrap(pa.array([list(range(1000))] * 100)))
    values = parts.values[5:]
    del parts
    gc.collect()
    scribble = [pa.array(np.full(100_000, 7)) for _ in range(3)]
    assert values.tolist() == (list(range(1000)) * 100)[5:]
    assert pa.total_allocated_bytes() >= before + 800_000
    del values, scribble
    gc.collect()
    assert pa.total_allocated_bytes() == before


BAGS = [[1, 2, 1], None, [5], [], [7, 8], None, [9]]
FLAT = [bag or [] for bag in BAGS]


@pytest.mark.parametrize(
    "value",
    [
        pa.int8(),
        pa.uint8(),
        pa.int16(),
        pa.uint16(),
        pa.int32(),
        pa.uint32(),
        pa.int64(),
        pa.uint64(),
    ],
    ids=str,
)
@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list], ids=lambda f: f.__name__)
def test_arrow_lists_of_all_integers_sliced_and_chunked(value, list_of):
    column = pa.array(BAGS, list_of(value))
    chunked = pa.chunked_array([column.slice(1, 3), column.slice(0, 0), column.slice(4)])
    parts = kjt_parts_from_arrow({"a": chunked, "b": pa.chunked_array([column.slice(1)])})
    assert bags_of(parts) == {"a": FLAT[1:], "b": FLAT[1:]}
    assert parts.values.dtype == (torch.int32 if value == pa.int32() else torch.int64)
    assert bags_of(kjt_parts_from_arrow(pa.table({"a": column}).slice(2, 4))) == {"a": FLAT[2:6]}


@pytest.mark.parametrize(
    "value", [pa.int8(), pa.uint16(), pa.uint32(), pa.int32(), pa.int64(), pa.uint64()], ids=str
)
def test_arrow_scalars_with_nulls(value):
    column = pa.array([3, None, 4, None, None, 5, 6, 7, 8, None, 1], value)
    expected = [[] if id is None else [id] for id in column.to_pylist()]
    for start in range(11):
        assert bags_of(kjt_parts_from_arrow({"a": column.slice(start)})) == {"a": expected[start:]}


def test_arrow_lists_of_fixed_size():
    column = pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int64(), 2))
    assert bags_of(kjt_parts_from_arrow({"a": column})) == {"a": [[1, 2], [], [3, 4], [5, 6]]}
    assert bags_of(kjt_parts_from_arrow({"a": column.slice(1)})) == {"a": [[], [3, 4], [5, 6]]}
    tail = kjt_parts_from_arrow({"a": column.slice(2)})
    assert bags_of(tail) == {"a": [[3, 4], [5, 6]]}
    empty = pa.array([[], []], pa.list_(pa.int64(), 0))
    assert bags_of(kjt_parts_from_arrow({"a": empty})) == {"a": [[], []]}


def test_a_null_bag_may_hide_values():
    hidden = pa.ListArray.from_arrays(
        [0, 2, 4, 5], pa.array([1, 2, 3, None, 5]), mask=pa.array([False, True, False])
    )
    assert bags_of(kjt_parts_from_arrow({"a": hidden})) == {"a": [[1, 2], [], [5]]}


@pytest.mark.parametrize(
    "type", [pa.int64(), pa.list_(pa.int32()), pa.null(), pa.list_(pa.null())], ids=str
)
def test_arrow_columns_without_values(type):
    assert bags_of(kjt_parts_from_arrow({"a": pa.array([None, None], type)})) == {"a": [[], []]}
    assert bags_of(kjt_parts_from_arrow({"a": pa.array([], type)})) == {"a": []}
    no_batches = pa.table({"a": pa.chunked_array([], type)})
    assert bags_of(kjt_parts_from_arrow(no_batches)) == {"a": []}


INTEGER_TYPES = [pa.int8(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


@st.composite
def arrow_columns(draw) -> pa.ChunkedArray:
    """A column of any type that is read, cut and chunked in any way."""
    value = draw(st.sampled_from(INTEGER_TYPES))
    size = draw(st.integers(0, 3))
    type = draw(
        st.sampled_from([value, pa.list_(value), pa.large_list(value), pa.list_(value, size)])
    )
    id = st.integers(0, 99)
    fixed = type == pa.list_(value, size)
    bag = st.lists(id, min_size=size if fixed else 0, max_size=size if fixed else 4)
    column = draw(st.lists(st.none() | (id if type == value else bag), max_size=20))
    chunks = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(column)))
        chunks.append(pa.array(column, type).slice(start, draw(st.integers(0, 20))))
    return pa.chunked_array(chunks, type)


@given(arrow_columns(), st.booleans())
def test_arrow_columns_hold_what_arrow_says(column, as_table):
    parts = kjt_parts_from_arrow(pa.table({"a": column}) if as_table else {"a": column})
    cells = column.to_pylist()
    assert bags_of(parts) == {
        "a": [[] if x is None else x if isinstance(x, list) else [x] for x in cells]
    }


def test_ids_that_are_cut_off_or_hidden_need_not_fit():
    big = pa.array([2**63, 1, 2**63], pa.uint64(), mask=np.array([False, False, True]))
    assert bags_of(kjt_parts_from_arrow({"a": big.slice(1)})) == {"a": [[1], []]}
    lists = pa.ListArray.from_arrays([0, 1, 2], pa.array([2**63, 1], pa.uint64()))
    assert bags_of(kjt_parts_from_arrow({"a": lists.slice(1)})) == {"a": [[1]]}


def test_arrow_columns_and_weights_are_chosen():
    table = pa.table({**DATA, "label": [1.0, 0.0, 1.0, 0.0], "w": WEIGHTS["user"]})
    assert bags_of(kjt_parts_from_arrow(table, ["user", "product"])) == {
        "user": DATA["user"],
        "product": DATA["product"],
    }
    parts = kjt_parts_from_arrow(table, ["user"], weights={"user": "w"})
    assert bags_of(parts, "weights") == f32({"user": WEIGHTS["user"]})
    rest = kjt_parts_from_arrow(table.drop(["label", "product"]), weights={"user": "w"})
    assert rest.keys == ["user"]
    assert rest.weights.dtype == torch.float32
    half = pa.table({"a": [1, None], "w": pa.array([0.5, None], pa.float16())})
    assert kjt_parts_from_arrow(half, weights={"a": "w"}).weights.tolist() == [0.5]
    assert bags_of(kjt_parts_from_arrow(table.select(["user"]).to_reader())) == {
        "user": DATA["user"]
    }


def test_values_are_narrow_only_if_all_columns_are():
    wide, narrow = pa.array([1, 2**40]), pa.array([1, 2], pa.int32())
    assert kjt_parts_from_arrow({"a": narrow, "b": narrow}).values.dtype == torch.int32
    assert kjt_parts_from_arrow({"a": narrow, "b": wide}).values.tolist() == [1, 2, 1, 2**40]


# Each case: what is read, how, and what should be said about it.
BAD_ARROW = [
    ({"a": [1.5]}, {}, TypeError, "'a' should hold integers.* 'g'"),
    ({"a": ["x"]}, {}, TypeError, "Arrow type 'u'"),
    ({"a": [True]}, {}, TypeError, "Arrow type 'b'"),
    ({"a": [["x"]]}, {}, TypeError, r"Arrow type '\+l' of 'u'"),
    ({"a": [[[1]]]}, {}, TypeError, r"'\+l' of '\+l' of 'l'"),
    ({"a": [{"x": 1}]}, {}, TypeError, r"Arrow type '\+s'"),
    ({"a": pa.array([1, 2]).dictionary_encode()}, {}, TypeError, "Arrow type 'dictionary'"),
    ({"a": [[1], [2, None]]}, {}, ValueError, "'a' should hold no null. Received one in sample 1"),
    ({"a": pa.chunked_array([[[1]], [[None]]])}, {}, ValueError, "Received one in sample 1"),
    ({"a": pa.array([2**63], pa.uint64())}, {}, ValueError, r"int64. Received 9223372036854775808"),
    ({"a": [1]}, {"columns": ["b"]}, ValueError, r"table, \['a'\]. Received 'b'"),
    ({"a": [1]}, {"columns": "a"}, TypeError, "list of names. Received 'a'"),
    ({"a": [1]}, {"columns": ["a", "a"]}, ValueError, "differ from one another"),
    ({"a": [1], "b": [1]}, {"weights": {"a": "b", "c": "b"}}, ValueError, r"for each of \['a'\]"),
    ({"a": [[1, 2]], "w": [[1.0]]}, {"weights": {"a": "w"}}, ValueError, "2 entries in sample 0"),
    ({"a": [1], "w": ["x"]}, {"weights": {"a": "w"}}, TypeError, "'w' should hold numbers"),
    ({"a": [1], "w": [1.0]}, {"weights": {"a": "v"}}, ValueError, "Received 'v'"),
]
BAD_POLARS = [
    ({"a": ["x"]}, {}, TypeError, "'a' should hold integers"),
    ({"a": [[1, None]]}, {}, ValueError, "no null. Received one in sample 0"),
    ({"a": [1]}, {"columns": ["b"]}, ValueError, "Received 'b'"),
]
BAD_PANDAS = [
    ({"a": [1, None]}, {}, TypeError, "'a' should hold integers.* Received float64"),
    ({"a": [True]}, {}, TypeError, "Received bool"),
    ({"a": ["x"]}, {}, TypeError, "Received 'x' in sample 0"),
    ({"a": [[1], [2.5]]}, {}, TypeError, "Received 2.5 in sample 1"),
    ({0: [1]}, {}, TypeError, "Keys should be str. Received 0"),
    ({"a": np.array([2**63], np.uint64)}, {}, ValueError, "Received 9223372036854775808"),
    ({"a": [1]}, {"columns": ["b"]}, ValueError, "Received 'b'"),
]


@pytest.mark.parametrize(
    ("make", "read", "data", "options", "error", "message"),
    [
        *((pa.table, kjt_parts_from_arrow, *case) for case in BAD_ARROW),
        *((pl.DataFrame, kjt_parts_from_polars, *case) for case in BAD_POLARS),
        *((pd.DataFrame, kjt_parts_from_pandas, *case) for case in BAD_PANDAS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_tables_may_not_hold(make, read, data, options, error, message):
    with pytest.raises(error, match=message):
        read(make(data), **options)


@pytest.mark.parametrize(
    ("read", "table", "error", "message"),
    [
        (
            kjt_parts_from_arrow,
            pa.array([1]),
            TypeError,
            r"one array as \{key: array\}.*Int64Array",
        ),
        (kjt_parts_from_arrow, [1], TypeError, "__arrow_c_stream__ .*Received list"),
        (
            kjt_parts_from_arrow,
            {"a": pa.array([1]), "b": pa.array([1, 2])},
            ValueError,
            "2 for key",
        ),
        (kjt_parts_from_polars, pl.LazyFrame({"a": [1]}), TypeError, "Received LazyFrame"),
        (kjt_parts_from_polars, pd.DataFrame({"a": [1]}), TypeError, "a polars DataFrame"),
        (kjt_parts_from_pandas, [1], TypeError, "pandas DataFrame. Received list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_table(read, table, error, message):
    with pytest.raises(error, match=message):
        read(table)


def test_two_columns_of_one_name():
    with pytest.raises(ValueError, match=r"names of their own. Received \['a', 'a'\]"):
        kjt_parts_from_arrow(pa.Table.from_arrays([pa.array([1])] * 2, ["a", "a"]))
    with pytest.raises(ValueError, match=r"named once .* Received 'a'"):
        kjt_parts_from_pandas(pd.DataFrame([[1, 2]], columns=["a", "a"]))


# ---- polars, pandas


def test_polars_columns_are_read_in_place():
    df = pl.DataFrame({"user": BAGS, "text": ["x"] * 7, "item": [1, None, 2, 3, 4, 5, None]})
    assert bags_of(kjt_parts_from_polars(df, ["user"])) == {"user": FLAT}
    items = [[1], [], [2], [3], [4], [5], []]
    both = kjt_parts_from_polars(df, ["item", "user"])
    assert bags_of(both) == {"item": items, "user": FLAT}
    scalars = pl.DataFrame({"a": np.arange(10)})
    shared = kjt_parts_from_polars(scalars).values
    assert shared.data_ptr() == scalars["a"].to_numpy().ctypes.data
    pieces = pl.concat([df, df], rechunk=False)
    assert bags_of(kjt_parts_from_polars(pieces, ["user"])) == {"user": FLAT * 2}
    assert bags_of(kjt_parts_from_polars(df.slice(2, 3), ["user"])) == {"user": FLAT[2:5]}
    arrays = pl.DataFrame({"a": [[1, 2], None]}, schema={"a": pl.Array(pl.Int64, 2)})
    assert bags_of(kjt_parts_from_polars(arrays)) == {"a": [[1, 2], []]}
    weighted = pl.DataFrame({"a": [1, 2], "w": [0.5, 2.0]})
    assert kjt_parts_from_polars(weighted, weights={"a": "w"}).weights.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(BAGS),
        pd.Series(BAGS, index=[0, 0, 1, 1, 5, 4, 3]),
        pd.Series([None if bag is None else np.array(bag, dtype=np.int32) for bag in BAGS]),
        pd.Series(pa.array(BAGS), dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
        pd.Series([float("nan") if bag is None else tuple(bag) for bag in BAGS]),
        pd.Series([pd.NA if bag is None else bag for bag in BAGS], dtype=object),
    ],
    ids=["lists", "index", "arrays", "arrow", "nan", "NA"],
)
def test_pandas_columns_of_lists(column):
    parts = kjt_parts_from_pandas(pd.DataFrame({"a": column, "b": 1}), ["b", "a"])
    assert bags_of(parts) == {"b": [[1]] * 7, "a": FLAT}


INTEGERS = "int8 uint16 int32 uint32 int64 uint64 Int64 UInt8 int64[pyarrow] object"


@pytest.mark.parametrize("dtype", INTEGERS.split())
def test_pandas_columns_of_integers(dtype):
    df = pd.DataFrame({"a": pd.Series([3, 1, 2], dtype=dtype)})
    parts = kjt_parts_from_pandas(df)
    df.loc[:, "a"] = 0
    assert bags_of(parts) == {"a": [[3], [1], [2]]}
    assert parts.values.dtype == (torch.int32 if dtype == "int32" else torch.int64)


@pytest.mark.parametrize("dtype", ["Int64", "Int32", "UInt16", "int64[pyarrow]", "object"])
def test_pandas_columns_with_missing_integers(dtype):
    df = pd.DataFrame({"a": pd.Series([3, None, 2], dtype=dtype)})
    assert bags_of(kjt_parts_from_pandas(df)) == {"a": [[3], [], [2]]}


def test_pandas_weights():
    df = pd.DataFrame({"a": [1, 2], "b": [[1, 2], []], "x": [0.5, 2.0], "y": [[1.5, 3], None]})
    parts = kjt_parts_from_pandas(df, weights={"a": "x", "b": "y"})
    assert parts.keys == ["a", "b"]
    assert parts.weights.tolist() == [0.5, 2.0, 1.5, 3.0]
    ints = pd.DataFrame({"a": [1, 2], "x": [3, 4]})
    assert kjt_parts_from_pandas(ints, weights={"a": "x"}).weights.tolist() == [3.0, 4.0]


@pytest.mark.slow
def test_no_table_library_is_imported_for_lists():
    code = (
        "import sys; from torchrec.sparse.convert import kjt_parts_from_lists as f;"
        "f({'a': [[1], 2]}); print({'pandas', 'polars', 'pyarrow'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
