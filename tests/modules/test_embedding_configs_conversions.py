"""Conversions of the small types of configurations: every member, both ways."""

from __future__ import annotations

import pytest
import torch

from torchrec.modules.embedding_configs import (
    DATA_TYPE_NUM_BITS,
    DataType,
    EmbeddingBagConfig,
    PoolingMode,
    PoolingType,
    ShardingType,
    SparseType,
    data_type_to_dtype,
    data_type_to_sparse_type,
    dtype_to_data_type,
    pooling_type_to_pooling_mode,
    pooling_type_to_str,
)

# Data type -> its dtype, and its name in kernels (None: no table has it).
TYPES = {
    "FP32": (torch.float32, "FP32"),
    "FP16": (torch.float16, "FP16"),
    "BF16": (torch.bfloat16, "BF16"),
    "INT64": (torch.int64, None),
    "INT32": (torch.int32, None),
    "INT8": (torch.int8, "INT8"),
    "UINT8": (torch.uint8, "INT8"),
    "INT4": (torch.quint4x2, "INT4"),
    "INT2": (torch.quint2x4, "INT2"),
    "NFP8": (torch.float8_e4m3fn, "NFP8"),
}
# (Pooling, sharding) -> pooling in kernels; rows on several ranks are summed there, and divided after.
BY_ROWS = ("ROW_WISE", "TABLE_ROW_WISE", "GRID_SHARD")
SHARDINGS = (*BY_ROWS, "DATA_PARALLEL", "TABLE_WISE", "COLUMN_WISE", "TABLE_COLUMN_WISE")


def test_the_members_are_those_of_the_api() -> None:
    assert set(DataType.__members__) == set(TYPES)
    assert set(PoolingType.__members__) == {"SUM", "MEAN", "NONE"}
    assert set(ShardingType.__members__) == set(SHARDINGS)
    assert set(SparseType.__members__) >= {"FP32", "FP16", "BF16", "INT8", "INT4", "INT2"}
    assert set(PoolingMode.__members__) == {"SUM", "MEAN", "NONE"}
    for kind in (DataType, PoolingType):
        assert all(member.value == member.name for member in kind)
    assert all(member.value == member.name.lower() for member in ShardingType)


@pytest.mark.parametrize("data_type", DataType, ids=str)
def test_data_type_and_dtype(data_type) -> None:
    dtype = TYPES[data_type.name][0]
    assert data_type_to_dtype(data_type) == dtype
    assert dtype_to_data_type(dtype) is data_type
    assert DataType(data_type.value) is data_type
    assert str(data_type) == data_type.name


@pytest.mark.parametrize("data_type", DataType, ids=str)
def test_data_type_to_sparse_type(data_type) -> None:
    name = TYPES[data_type.name][1]
    if name is None:
        if data_type is not DataType.NFP8:  # which a kernel may come to have
            with pytest.raises(ValueError, match=rf"`data_type` should be .*Received {data_type}"):
                data_type_to_sparse_type(data_type)
        return
    assert data_type_to_sparse_type(data_type) is SparseType[name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.complex64], ids=str)
def test_dtypes_that_no_data_type_stands_for(dtype) -> None:
    with pytest.raises(ValueError, match=rf"`dtype` should be one of .*Received {dtype}"):
        dtype_to_data_type(dtype)


@pytest.mark.parametrize("pooling", PoolingType, ids=lambda p: p.name)
@pytest.mark.parametrize("sharding", [None, *ShardingType], ids=lambda s: s.name if s else "none")
def test_pooling_type_to_pooling_mode(pooling, sharding) -> None:
    summed = pooling.name == "MEAN" and sharding is not None and sharding.name in BY_ROWS
    expected = "SUM" if summed else pooling.name
    assert pooling_type_to_pooling_mode(pooling, sharding) is PoolingMode[expected]


@pytest.mark.parametrize("pooling", PoolingType, ids=lambda p: p.name)
def test_pooling_type_to_str(pooling) -> None:
    if pooling is PoolingType.NONE:
        with pytest.raises(ValueError, match=r"`pooling_type` should be SUM or MEAN"):
            pooling_type_to_str(pooling)
        return
    name = pooling_type_to_str(pooling)
    assert name == pooling.name.lower()
    assert PoolingType(name.upper()) is pooling
    torch.nn.EmbeddingBag(2, 2, mode=name)


def test_what_is_no_member() -> None:
    with pytest.raises(ValueError, match=r"should be a DataType. Received 'FP32'"):
        data_type_to_dtype("FP32")
    with pytest.raises(ValueError, match=r"should be a PoolingType. Received 'SUM'"):
        pooling_type_to_pooling_mode("SUM")


def test_pooling_of_a_table_by_its_value() -> None:
    assert EmbeddingBagConfig(10, 4, "t", pooling="MEAN").pooling is PoolingType.MEAN
    with pytest.raises(
        ValueError,
        match=r"`pooling` of table 't' should be one of 'SUM', 'MEAN', 'NONE'. Received 'max'.",
    ):
        EmbeddingBagConfig(10, 4, "t", pooling="max")


def test_bits_of_an_element():
    bits = {data_type.name: number for data_type, number in DATA_TYPE_NUM_BITS.items()}
    assert bits == {
        "FP32": 32, "FP16": 16, "BF16": 16, "INT8": 8, "UINT8": 8, "NFP8": 8, "INT4": 4, "INT2": 2
    }  # fmt: skip
    for data_type, number in DATA_TYPE_NUM_BITS.items():
        if number >= 8:
            assert data_type_to_dtype(data_type).itemsize * 8 == number


@pytest.mark.parametrize(
    ("sparse_type", "bits", "is_float", "dtype"),
    [
        (SparseType.FP32, 32, True, torch.float32),
        (SparseType.FP16, 16, True, torch.float16),
        (SparseType.BF16, 16, True, torch.bfloat16),
        (SparseType.FP8, 8, True, torch.uint8),
        (SparseType.NFP8, 8, True, torch.float8_e4m3fn),
        (SparseType.INT8, 8, False, torch.uint8),
        (SparseType.INT4, 4, False, torch.quint4x2),
        (SparseType.INT2, 2, False, torch.quint2x4),
        (SparseType.MX4, 4, False, torch.uint8),
    ],
    ids=str,
)
def test_what_an_element_type_is(sparse_type, bits, is_float, dtype):
    assert (sparse_type.bit_rate(), sparse_type.is_float()) == (bits, is_float)
    assert sparse_type.as_dtype() == dtype
    assert str(sparse_type) == sparse_type.value
    if dtype != torch.uint8:
        assert SparseType.from_dtype(dtype) is sparse_type


def test_bytes_are_int8():
    assert (
        SparseType.from_dtype(torch.int8) is SparseType.from_dtype(torch.uint8) is SparseType.INT8
    )
    with pytest.raises(
        ValueError, match=r"`dtype` should be one of torch.float32, .* Received torch.int64"
    ):
        SparseType.from_dtype(torch.int64)


def test_pooling_by_name():
    assert [PoolingMode.from_str(name) for name in ("sum", "mean", "none")] == list(PoolingMode)
    assert [mode.do_pooling() for mode in PoolingMode] == [True, True, False]
    assert PoolingMode.MEAN == 1
    with pytest.raises(
        ValueError, match=r"`key` should be one of sum, mean, none\. Received 'SUM'"
    ):
        PoolingMode.from_str("SUM")
