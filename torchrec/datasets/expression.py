"""Expressions over the columns of a table, as people write them: ``rating > 3``.

The text is parsed by Python's own parser and only what is listed here is accepted, so an expression
cannot do anything but compute. It is evaluated column by column, and follows SQL in what a null
does: what is compared with it, or computed from it, is null. NaN is null, too, in a column as well
as where it is computed. Integers are computed in 64 bits, and refused where these overflow.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchrec.checks import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

_COMPARE = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_ARITHMETIC = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}
_CHECKED = {"add", "subtract", "multiply", "negate"}
_BOOLEAN = {ast.And: "and_kleene", ast.Or: "or_kleene"}
_QUOTED = re.compile(r"`([^`]*)`|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")

_DEEPEST = 100
_GRAMMAR = (
    "columns, numbers, strings, comparisons, `in` lists, `is None`, and, or, not, + - * /, and names "
    "that are no words in backticks"
)


class Expression:
    """A parsed expression: which columns it reads, and its value for every row of a table.

    Attributes:
        text: as it was written.
        columns: names of the columns that it reads.
    """

    def __init__(self, text: str, root: ast.expr, names: dict[str, str]) -> None:
        self.text = text
        self._root = root
        self._names = names
        self.columns: set[str] = {
            names.get(node.id, node.id) for node in ast.walk(root) if isinstance(node, ast.Name)
        }

    def evaluate(self, table: pa.Table) -> pa.Array | pa.ChunkedArray:
        """Compute the expression for every row.

        Args:
            table: has the columns that the expression reads.

        Returns:
            One value a row; a comparison gives booleans. Null where a null keeps it from being known.

        Raises:
            ValueError: a column is not there, or values of these types cannot be combined.
        """
        import pyarrow as pa

        for name in sorted(self.columns):
            if table.column_names.count(name) != 1:
                raise ValueError(
                    f"Expression `{self.text}` should name columns of the data. Received '{name}'"
                    f"{did_you_mean(name, table.column_names) or '.'}"
                )
        value = self._value(self._root, table)
        if isinstance(value, pa.Scalar):
            return pa.repeat(value, table.num_rows)
        return value

    def __repr__(self) -> str:
        return f"parse_expression({self.text!r})"

    def _value(self, node: ast.expr, table: pa.Table) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(node, ast.Constant):
            return self._constant(node.value)
        if isinstance(node, ast.Name):
            column = table.column(self._names.get(node.id, node.id))
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            return _without_nan(column)
        if isinstance(node, ast.Compare):
            return self._comparisons(node, table)
        if isinstance(node, ast.BoolOp):
            parts = [self._truth(part, table) for part in node.values]
            value = parts[0]
            for part in parts[1:]:
                value = pc.call_function(_BOOLEAN[type(node.op)], [value, part])
            return value
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not):
                return pc.invert(self._truth(node.operand, table))
            return self._call(node, "negate", [self._value(node.operand, table)])
        assert isinstance(node, ast.BinOp)
        operands = [self._value(node.left, table), self._value(node.right, table)]
        return _without_nan(self._call(node, _ARITHMETIC[type(node.op)], operands))

    def _constant(self, value: Any) -> Any:
        import pyarrow as pa

        try:
            if isinstance(value, int) and value >= 1 << 63:
                return pa.scalar(value, pa.uint64()) if value < 1 << 64 else pa.scalar(float(value))
            return pa.scalar(value)
        except OverflowError as error:
            raise ValueError(
                f"Numbers in expression `{self.text[:40]}...` should fit in 64 bits. "
                f"Received one of {len(str(value))} digits."
            ) from error

    def _truth(self, node: ast.expr, table: pa.Table) -> Any:
        """Return the value of a part that has to be true or false."""
        import pyarrow as pa

        value = self._value(node, table)
        if not pa.types.is_boolean(value.type) and not pa.types.is_null(value.type):
            raise ValueError(
                f"In expression `{self.text}`, `{self._source(node)}` should be true or false. "
                f"Received {value.type}."
            )
        return value.cast(pa.bool_())

    def _comparisons(self, node: ast.Compare, table: pa.Table) -> Any:
        import pyarrow.compute as pc

        result = None
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            one = self._comparison(node, left, operator, right, table)
            result = one if result is None else pc.and_kleene(result, one)
            left = right
        return result

    def _comparison(
        self,
        node: ast.Compare,
        left: ast.expr,
        operator: ast.cmpop,
        right: ast.expr,
        table: pa.Table,
    ) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        value = self._value(left, table)
        if isinstance(operator, ast.Is | ast.IsNot):
            absent = pc.is_null(value)  # NaN is null already
            return absent if isinstance(operator, ast.Is) else pc.invert(absent)
        if isinstance(operator, ast.In | ast.NotIn):
            assert isinstance(right, ast.List | ast.Tuple | ast.Set)
            choices = [self._value(item, table) for item in right.elts]
            found = pa.scalar(False)
            for choice in choices:
                found = pc.or_kleene(found, self._call(node, "equal", [value, choice]))
            return found if isinstance(operator, ast.In) else pc.invert(found)
        operands = [value, self._value(right, table)]
        return self._call(node, _COMPARE[type(operator)], operands)

    def _call(self, node: ast.expr, name: str, arguments: list[Any]) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        integers = all(pa.types.is_integer(argument.type) for argument in arguments)
        try:
            alike = _alike(name, arguments)
            checked = f"{name}_checked" if integers and name in _CHECKED else name
            return pc.call_function(checked, alike)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            received = " and ".join(str(argument.type) for argument in arguments)
            if any(pa.types.is_temporal(argument.type) for argument in arguments):
                received += "; a time is written as '2024-01-31 23:59:59', or the date alone"
            wanted = "fit in 64 bits" if integers else "be of types that go together"
            raise ValueError(
                f"In expression `{self.text}`, the values of `{self._source(node)}` should "
                f"{wanted}. Received {received}."
            ) from error

    def _source(self, node: ast.expr) -> str:
        text = ast.unparse(node)
        for placeholder, name in self._names.items():
            text = text.replace(placeholder, f"`{name}`")
        return text


def _without_nan(value: Any) -> Any:
    """Return numbers with nulls instead of NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_floating(value.type):
        return value
    absent = pc.is_nan(value)
    some = absent.as_py() if isinstance(absent, pa.Scalar) else pc.any(absent).as_py()
    return pc.if_else(absent, None, value) if some else value


def _alike(name: str, values: list[Any]) -> list[Any]:
    """Return the arguments of a function in types that go together, as far as there are such."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types = [value.type for value in values]
    if name not in _CHECKED and name != "divide":
        if len(set(types)) == 1:
            return values
        values = _times_alike(values)
    if name == "divide" or (
        any(pa.types.is_floating(type) for type in types)
        and all(pa.types.is_floating(type) or pa.types.is_integer(type) for type in types)
    ):
        # The nearest floating-point number will do, as everywhere else.
        return [pc.cast(value, pa.float64(), safe=False) for value in values]
    if all(pa.types.is_integer(type) for type in types):
        # In 64 bits: of two small integers, the result may be no small one.
        try:
            return [pc.cast(value, pa.int64()) for value in values]
        except pa.ArrowInvalid:  # above 2^63
            return [pc.cast(value, pa.decimal128(20)) for value in values]
    return values


def _times_alike(values: list[Any]) -> list[Any]:
    """Read a string that is compared with a date or a time as one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    left, right = values
    if pa.types.is_temporal(left.type) and pa.types.is_string(right.type):
        right = pc.cast(right, left.type)
    elif pa.types.is_temporal(right.type) and pa.types.is_string(left.type):
        left = pc.cast(left, right.type)
    return [left, right]


def parse_expression(text: str) -> Expression:
    """Parse an expression over columns.

    Accepted are names of columns (in backticks if they are no Python names), numbers, strings,
    ``True``, ``False``, comparisons, ``in`` and ``not in`` a list, ``is None``, ``is not None``,
    ``and``, ``or``, ``not``, ``+ - * /`` and parentheses.

    Args:
        text: the expression.

    Returns:
        Its ``columns``, and ``evaluate(table)``.

    Raises:
        ValueError: it is no expression, or one that does more.

    Example:
        >>> import pyarrow as pa
        >>> liked = parse_expression("rating > 3 and country in ['de', 'fr']")
        >>> sorted(liked.columns)
        ['country', 'rating']
        >>> liked.evaluate(pa.table({"rating": [5, 5, 1], "country": ["de", "us", "fr"]})).to_pylist()
        [True, False, False]
    """
    names: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]  # a string
        placeholder = f"__column_{len(names)}__"
        names[placeholder] = match[1]
        return placeholder

    try:
        root = ast.parse(_QUOTED.sub(replace, text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"An expression should be made of {_GRAMMAR}, as in `rating > 3`. Received `{text}`."
        ) from error
    _check(root, text)
    return Expression(text, root, names)


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str)


def _compares(node: ast.Compare) -> bool:
    for operator, right in zip(node.ops, node.comparators, strict=True):
        if isinstance(operator, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None and len(node.ops) == 1):
                return False
        elif isinstance(operator, ast.In | ast.NotIn):
            lists = isinstance(right, ast.List | ast.Tuple | ast.Set) and len(node.ops) == 1
            if not lists or not all(_is_constant(item) for item in right.elts):  # type: ignore[attr-defined]
                return False
        elif type(operator) not in _COMPARE:
            return False
    return True


# What may stand in an expression, and what of it is looked at further.
_ACCEPTED: dict[type[ast.expr], Callable[[Any], bool]] = {
    ast.Name: lambda node: True,
    ast.Constant: lambda node: isinstance(node.value, bool | int | float | str),
    ast.Compare: _compares,
    ast.BoolOp: lambda node: True,
    ast.UnaryOp: lambda node: isinstance(node.op, ast.Not | ast.USub),
    ast.BinOp: lambda node: type(node.op) in _ARITHMETIC,
}


def _check(node: ast.expr, text: str, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise ValueError(
            f"An expression should be nested at most {_DEEPEST} deep. Received `{text[:40]}...`."
        )
    if isinstance(node, ast.Constant) and node.value is None:
        raise ValueError(
            f"Expression `{text}` should ask with `is None` or `is not None` whether a value is "
            "missing. Received `None` elsewhere: nothing is equal to it."
        )
    if type(node) not in _ACCEPTED or not _ACCEPTED[type(node)](node):
        raise ValueError(
            f"Expression `{text}` should be made of {_GRAMMAR}. Received `{ast.unparse(node)}`."
        )
    asks = isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot)
    for child in [node.left] if asks else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        if isinstance(child, ast.expr) and not isinstance(child, ast.List | ast.Tuple | ast.Set):
            _check(child, text, depth + 1)
