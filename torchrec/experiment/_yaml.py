"""YAML as people mean it: the scalars of YAML 1.2, and no key twice.

PyYAML reads YAML 1.1, where `1e-3` is text, `no` is false, `12:30` is 750 and `010` is 8. Here, as
in the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), a number is what looks
like one, only `true` and `false` are truth values, and everything else is text. Keys are text as
written. Nothing but plain data is ever constructed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Hashable

import yaml

_MOST_VALUES = 1_000_000  # of a file, with its aliases written out
_NULL, _BOOL, _INT, _FLOAT = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")
)
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
    ("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    """Reads the scalars above; its own table of resolvers, so PyYAML's stay as they are."""

    def get_single_data(self) -> object:
        """Return what the document says, after a look at what it comes to."""
        node = self.get_single_node()
        if node is None:
            return None
        _check_extent(node, {})
        return self.construct_document(node)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: quotes what that would take for something else."""

    def ignore_aliases(self, data: object) -> bool:
        """Write equal values out, each where it stands."""
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _RESOLVERS:
        _class.add_implicit_resolver(_tag, _pattern, _first)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, object]:
    """Construct a mapping by its keys as written; a key that stands there twice is an error."""
    own: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key should be a word", key.start_mark
            )
        if key.value in own and key.tag != "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(
                None, None, f"`{key.value}` stands there twice", key.start_mark
            )
        own[key.value] = key
    loader.flatten_mapping(node)
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 16) if text.startswith("0x") else int(text)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float | int:
    """Construct a number; `1e6` is the whole number it looks like."""
    text = node.value.replace("_", "").lower()
    value = float(re.sub(r"\.(?=inf|nan)", "", text))
    return int(value) if "." not in text and value.is_integer() else value


# Sets, bytes and dates, which tags can ask for, are no plain data: only these are made.
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag]
    for tag in (_NULL, _BOOL, "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", None)
}
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
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
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("it is nested more deeply than can be read") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{_reason(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: {error.reason}") from None


def _check_extent(node: yaml.Node, extents: dict[int, int]) -> int:
    """Return how many values a node comes to where its aliases are written out.

    Aliases of aliases multiply: a few hundred bytes can stand for more values than memory holds.

    Args:
        node: as composed, where what has several aliases is one node.
        extents: of nodes that have been seen; 0 for one that is being looked at.

    Raises:
        ConstructorError: they are too many, or the node holds itself.
    """
    found = extents.get(id(node))
    if found is None:
        extents[id(node)] = 0
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in children for child in pair]
        found = extents[id(node)] = 1 + sum(_check_extent(child, extents) for child in children)
    if not 0 < found <= _MOST_VALUES:
        what = f"more than {_MOST_VALUES:,} values" if found else "a value that holds itself"
        raise yaml.constructor.ConstructorError(
            None, None, f"`&` and `*` should not make {what}", node.start_mark
        )
    return found


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join((error.problem or error.context or "not YAML").split())
    if r"'\t'" in problem:
        return "indent with spaces. Received a tab"
    if "alias" in problem or "alias" in (error.context or ""):
        return "text that begins with `*` should stand in quotes"
    if isinstance(error, yaml.constructor.ConstructorError) and "tag" in problem:
        return "plain data is all that is read. Received a tag that begins with `!`"
    return problem


def write_yaml(value: object) -> str:
    """Return the document that `parse_yaml` reads as ``value``, short lists on one line.

    Example:
        >>> print(write_yaml({"label": "1e-3", "layers": [64, 32]}), end="")
        label: '1e-3'
        layers: [64, 32]
    """
    return yaml.dump(
        value,
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
        [value],
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=True,
        width=sys.maxsize,
    )
    return text[1:-2]
