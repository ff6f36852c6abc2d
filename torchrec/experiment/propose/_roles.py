"""What names and values of a column say about its role: id, number, list, sequence."""

from __future__ import annotations

import re
from functools import lru_cache

from torch import nn


def word_set(words: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(words.split())


_ID = word_set(
    "id ids uid gid guid uuid key code codes zip zipcode postcode postal plz fips sku asin isbn hash "
    "category cat class type brand user item movie product ad campaign creative banner publisher "
    "advertiser shop store site domain channel country city region state language lang locale "
    "device os browser version status group segment cluster gender sex occupation"
)
_NUMBER = word_set(
    "int num number count cnt n price amount cost fee rate ratio ctr avg mean median sum total "
    "duration seconds minutes size width height weight length distance score quantity qty balance "
    "income revenue salary discount percent percentage pct"
)
_ORDERED = word_set(
    "history hist seq sequence last recent recently clicked viewed watched past previous prev "
    "session bought seen"
)
# Words that say how ids are listed, not of what they are; as in a singular.
LIST_WORDS = frozenset(word.removesuffix("s") for word in _ORDERED) | {"id", "list", "code", "num"}
_MODULES = nn.ModuleDict()


@lru_cache(1024)
def words_of(name: str) -> frozenset[str]:
    """Return the words of a column's name, lower case.

    Example:
        >>> sorted(words_of("lastClicked_itemIDs2"))
        ['clicked', 'ids', 'item', 'last']
    """
    return frozenset(map(str.lower, re.findall(r"[A-Z]?[a-z]+|[A-Z]+s?(?![a-z])", name)))


def table_name(feature: str) -> str:
    """Return a name for the table of a feature: its own, unless an `nn.ModuleDict` does not take that.

    Example:
        >>> table_name("train"), table_name("user")
        ('t_train', 'user')
    """
    return f"t_{feature}" if hasattr(_MODULES, feature) else feature


def looks_ordered(name: str) -> bool:
    """Say whether the name of a list column speaks of an order in time."""
    return bool(words_of(name) & _ORDERED)


def looks_like_id(name: str) -> bool:
    """Say whether the name of a column of integers speaks of ids or categories."""
    words = words_of(name)
    return bool(words & _ID) and not words & _NUMBER


def looks_like_number(name: str) -> bool:
    """Say whether the name of a column of integers speaks of a quantity."""
    return bool(words_of(name) & _NUMBER)
