"""YAML as people mean it: the scalars of YAML 1.2, and no key twice.

PyYAML reads YAML 1.1, where `1e-3` is text, `no` is false, `12:30` is 750 and `010` is 8. Here, as
in the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), a number is what looks
like one, only `true` and `false` are truth values, and everything else is text. Keys are text as
written. Nothing but plain data is ever constructed.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Hashable

import yaml

# Of a file, with its aliases written out. PyYAML reads about 100,000 values a second.
_MOST_VALUES = 1_000_000
_TEXT = 32  # so many characters of a text count as a value
_DEEPEST = 100
_TOO_DEEP = f"values should be nested at most {_DEEPEST} deep"
_LONGEST_LINE = 500_000
_MOST_DIGITS = 400  # of an integer; the largest number that is none has 309

_PREFIX = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT = (f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float"))
_STR, _SEQ, _MAP, _MERGE = (f"{_PREFIX}{name}" for name in ("str", "seq", "map", "merge"))
_RESOLVERS = (
    (_NULL, re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(r"(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        _FLOAT,
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    (_MERGE, re.compile(r"<<$"), ["<"]),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMS = {tag: pattern for tag, pattern, _ in _RESOLVERS} | {_STR: re.compile("")}


class _Loader(yaml.SafeLoader):
    """Reads the scalars above; its own table of resolvers, so PyYAML's stay as they are."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def get_single_data(self) -> object:
        """Return what the document says, after a look at what it comes to."""
        node = self.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return self.construct_document(node)

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Take a bracket in. The scanner runs ahead, and each takes it longer than the one before."""
        if self.flow_level >= _DEEPEST:
            raise _error(_TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next value, checked before anything inside of it is read."""
        self._depth += 1
        if self._depth > _DEEPEST:  # before Python's stack ends
            raise _error(_TOO_DEEP, self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            _check_tag(node)
        if isinstance(node, yaml.ScalarNode) and _SURROGATE.search(node.value):
            node.value = _joined(node)
        return node


def _error(what: str, mark: yaml.error.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, what, mark)


def _check_tag(node: yaml.Node) -> None:
    """Refuse a value whose tag asks for other than what stands there, or for no plain data.

    Sets, bytes, dates and objects are what tags can ask for as well.
    """
    if isinstance(node, yaml.ScalarNode):
        form = _FORMS.get(node.tag)
        if form is not None and not form.match(node.value):
            name = node.tag.removeprefix(_PREFIX)
            raise _error(
                f"`!!{name}` should stand before one. Received {node.value!r}", node.start_mark
            )
        plain = form is not None
    else:
        plain = node.tag == (_MAP if isinstance(node, yaml.MappingNode) else _SEQ)
    if not plain:
        raise _error(
            "plain data is all that is read. Received a tag that begins with `!`", node.start_mark
        )


def _joined(node: yaml.ScalarNode) -> str:
    """Return text with characters for pairs of surrogates, as which JSON writes what is beyond 16 bits."""
    try:
        joined: str = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise _error(
            "an escape of half a character should stand before the other half", node.start_mark
        ) from None
    return joined


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: quotes what that would take for something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write text; escaped where it has ends of lines that are folded to spaces in any other way."""
        style = '"' if any(end in data for end in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _RESOLVERS:
        _class.add_implicit_resolver(_tag, _pattern, _first)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, object]:
    """Construct a mapping by its keys as written; a key that stands there twice is an error."""
    own: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error("a key should be a word", key.start_mark)
        if key.value in own and key.tag != _MERGE:
            raise _error(f"`{key.value}` stands there twice", key.start_mark)
        own[key.value] = key
    loader.flatten_mapping(node)
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    if len(text) > _MOST_DIGITS:
        what = f"an integer should have at most {_MOST_DIGITS} digits. Received {len(text):,}"
        raise _error(what, node.start_mark)
    return int(text, 16) if text.startswith("0x") else int(text)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float | int:
    """Construct a number; `1e6` is the whole number it looks like."""
    text = node.value.replace("_", "").lower()
    value = float(re.sub(r"\.(?=inf|nan)", "", text))
    if math.isinf(value) and "inf" not in text:
        raise _error("a number should be at most 1.8e308, or .inf", node.start_mark)
    return int(value) if "." not in text and value.is_integer() else value


_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[_STR if tag == _MERGE else tag]  # `<<` as a value
    for tag in (_NULL, _BOOL, _STR, _SEQ, _MERGE)
}
_Loader.add_constructor(_MAP, _mapping)
_Loader.add_constructor(_INT, _int)
_Loader.add_constructor(_FLOAT, _float)


def parse_yaml(text: str) -> object:
    """Return what ``text`` says, as dicts, lists and scalars.

    Args:
        text: a document.

    Raises:
        ValueError: it is not YAML; the message begins with the line, as in "line 3: ...".

    Example:
        >>> parse_yaml("{learning_rate: 1e-3, label: no, rows: 1e6}")
        {'learning_rate': 0.001, 'label': 'no', 'rows': 1000000}
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) > _LONGEST_LINE:
            raise ValueError(
                f"line {number}: a line should have at most {_LONGEST_LINE:,} characters. "
                f"Received {len(line):,}"
            )
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        before = text.count("\n", 0, error.position)
        raise ValueError(f"line {before + 1}: {_reason(error.reason)}") from None
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{_reason(error.problem or '', error.context or '')}") from None
    except (ValueError, OverflowError):  # of `chr`, in the scanner
        raise ValueError(
            f"line {loader.line + 1}: an escape should be one of a character"
        ) from None


def _measure(node: yaml.Node, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values a node comes to where its aliases are written out, and how deep.

    Aliases of aliases multiply: a few hundred bytes can stand for more values than memory holds.

    Args:
        node: as composed, where what has several aliases is one node.
        sizes: of nodes that have been seen; (0, 0) for one that is being looked at.

    Raises:
        ConstructorError: they are too many or too deep, or the node holds itself.
    """
    found = sizes.get(id(node))
    if found is None:
        sizes[id(node)] = 0, 0
        if isinstance(node, yaml.ScalarNode):
            inner, values = [], 1 + len(node.value) // _TEXT
        else:
            pairs = isinstance(node, yaml.MappingNode)
            children = [child for pair in node.value for child in pair] if pairs else node.value
            inner, values = [_measure(child, sizes) for child in children], 1
        found = sizes[id(node)] = (
            values + sum(size for size, _ in inner),
            1 + max((depth for _, depth in inner), default=0),
        )
    if found[0] == 0:
        raise _error("`&` and `*` should not make a value that holds itself", node.start_mark)
    if found[0] > _MOST_VALUES:
        raise _error(
            f"`&` and `*` should not make more than {_MOST_VALUES:,} values", node.start_mark
        )
    if found[1] > _DEEPEST:
        raise _error(_TOO_DEEP, node.start_mark)
    return found


# What PyYAML says, where it speaks of its own parts, and what mends the file.
_REASONS = (
    (r"'\\t'", "indent with spaces. Received a tab"),
    (r"\balias\b", "text that begins with `*` should stand in quotes"),
    (r"found character '(.)' that cannot", r"text that begins with `\1` should stand in quotes"),
    (r"duplicate anchor '(.*?)'.* second occurrence", r"`&\1` stands there twice"),
    ("another document", "one document is all that is read. Received a second one behind `---`"),
    (
        "mapping values are not",
        "a line should have one key and `: `; text with `: ` stands in quotes",
    ),
    ("sequence entries are not", "`- ` should begin a line"),
    ("could not find expected ':'", "a key should be followed by `: `"),
    ("expected <block end>", "lines of one section should begin in the same column"),
    ("expected the node content, but found '(.+)'", r"a value should stand before `\1`"),
    ("quoted scalar found unexpected", "a quote should be closed"),
    ("expected '<document start>'", "what stands here does not belong to what stands before it"),
    ("(expected .+), but got '<stream end>'", r"\1, but nothing follows"),
    ("for merging", "`<<` should be followed by sections"),
    ("special characters", r'control characters should be escapes in double quotes, as "\\x1b"'),
)


def _reason(problem: str, context: str = "") -> str:
    problem, context = (" ".join(text.split()) for text in (problem, context))
    for pattern, reason in _REASONS:
        match = re.search(pattern, f"{context} {problem}")
        if match:
            return match.expand(reason)
    return problem or context or "not YAML"


def _unshared(value: object) -> object:
    """Return a copy in which nothing stands at two places: YAML would name it once and refer to it."""
    return json.loads(json.dumps(value))


def write_yaml(value: object) -> str:
    """Return the document that `parse_yaml` reads as ``value``, short lists on one line.

    Example:
        >>> print(write_yaml({"label": "1e-3", "layers": [64, 32]}), end="")
        label: '1e-3'
        layers: [64, 32]
    """
    return yaml.dump(
        _unshared(value),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )


def write_key(name: str) -> str:
    r"""Return a key of a section, to be followed by a colon, whatever is in it.

    Example:
        >>> write_key("price"), write_key("a\nb")
        ('price', '"a\\nb"')
    """
    text = write_inline(name)
    if "\n" in text:
        text = json.dumps(name)
    # What stands before a colon may have 1,024 characters, unless it is announced.
    return text if len(text) <= 1000 else f"? {text}\n  "


def write_inline(value: object) -> str:
    """Return ``value`` as a part of a line.

    Example:
        >>> write_inline({"type": "sparse", "layers": [64, 32]}), write_inline("1e-3")
        ('{type: sparse, layers: [64, 32]}', "'1e-3'")
    """
    text = yaml.dump(
        [_unshared(value)],
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=True,
        width=sys.maxsize,
    )
    return text[1:-2]
