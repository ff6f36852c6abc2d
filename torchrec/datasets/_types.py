"""Types of columns: which go together between files, and how a column becomes what was expected."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from torchrec.checks import did_you_mean


def plain(type: pa.DataType) -> pa.DataType:
    """Return a type without what is only a way to store it: dictionaries, large offsets, views."""
    if pa.types.is_dictionary(type):
        return plain(type.value_type)
    if pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return pa.string()
    if pa.types.is_large_binary(type) or pa.types.is_binary_view(type):
        return pa.binary()
    if (
        pa.types.is_list(type)
        or pa.types.is_large_list(type)
        or pa.types.is_fixed_size_list(type)
        or pa.types.is_list_view(type)
    ):
        return pa.list_(plain(type.value_type))
    return type


def _is_number(type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type))


def go_together(one: pa.DataType, other: pa.DataType) -> bool:
    """Say whether two files may hold a column with these types: all numbers do, and all timestamps."""
    one, other = plain(one), plain(other)
    if one == other or pa.types.is_null(one) or pa.types.is_null(other):
        return True
    if pa.types.is_list(one) and pa.types.is_list(other):
        return go_together(one.value_type, other.value_type)
    return any(kind(one) and kind(other) for kind in (_is_number, pa.types.is_timestamp))


def joined(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return a type that takes the values of another as well.

    Parts that are null, as nothing is known of them, are as in the other; integers beside floating-point
    numbers are such numbers, in 64 bits.
    """
    other = plain(other)
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(joined(one.value_type, other.value_type))
    mixed = _is_number(one) and _is_number(other)
    if mixed and pa.types.is_floating(one) != pa.types.is_floating(other):
        return pa.float64()
    return one


def require_same_types(
    expected: pa.Schema, origins: dict[str, str], found: pa.Schema, path: str
) -> None:
    """Refuse a file in which a column has a type of another kind.

    Args:
        expected: the types.
        origins: where the type of each column comes from.
        found: the types in the file.
        path: the file.
    """
    for field in found:
        index = expected.get_field_index(field.name)
        if index >= 0 and not go_together(expected.field(index).type, field.type):
            raise ValueError(
                f"Column '{field.name}' should have one type; it is {expected.field(index).type} "
                f"in {origins[field.name]}. Received {field.type} in '{path}'."
            )


def require_columns(names: list[str], columns: list[str], path: str) -> None:
    """Refuse a file that lacks one of ``columns``, or has it twice."""
    for column in columns:
        if column not in names:
            raise ValueError(
                f"Data file '{path}' should have a column '{column}'. Received one without"
                f"{did_you_mean(column, names) or '.'}"
            )
        if names.count(column) > 1:
            raise ValueError(
                f"Data file '{path}' should have one column '{column}'. "
                f"Received {names.count(column)}."
            )


def conform(table: pa.Table, types: dict[str, pa.DataType], path: str) -> pa.Table:
    """Return the columns of ``types`` in that order, with those types, all text checked.

    Args:
        table: as it was read; it has the columns.
        types: what each column should be. Dictionaries stay dictionaries where they are expected.
        path: the file, for messages.

    Raises:
        ValueError: a value does not fit its type, or text is not UTF-8.
    """
    columns = []
    for name, type in types.items():
        column = table.column(name)
        if column.type != type:
            try:
                column = _cast(column, type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(
                    f"Values of column '{name}' in '{path}' should fit {type}. Received: {error}"
                ) from error
        try:
            _check_text(column)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise ValueError(
                f"Text of column '{name}' in '{path}' should be UTF-8. Received other bytes."
            ) from error
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=pa.schema(list(types.items())))


def _cast(column: pa.ChunkedArray, type: pa.DataType) -> pa.ChunkedArray:
    if not (pa.types.is_dictionary(column.type) and pa.types.is_dictionary(type)):
        return pc.cast(column, type)
    chunks = [
        pa.DictionaryArray.from_arrays(
            pc.cast(chunk.indices, type.index_type), pc.cast(chunk.dictionary, type.value_type)
        )
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, type)


def _check_text(column: pa.ChunkedArray) -> None:
    """Raise where the values of a column, or those in its lists, should be text and are no UTF-8."""
    type, checked = column.type, None
    while pa.types.is_dictionary(type) or pa.types.is_list(type):
        type = type.value_type
    if not pa.types.is_string(type):
        return
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            if chunk.dictionary is not checked:
                chunk.dictionary.validate(full=True)
        else:
            chunk.validate(full=True)
