"""Damage that knows JSON and YAML: other types, lost and repeated keys, odd numbers, deep nesting.

A tree is what a JSON parser makes, with objects as lists of pairs so that a key may occur twice,
and with `Raw` for what no parser would make: NaN, 1e999, half a surrogate pair, a YAML tag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz.bytes_mutator import MOST_BYTES, NUMBERS, mutate_bytes


@dataclass(frozen=True)
class Raw:
    """A text that stands in the document as it is."""

    text: str


class Pairs(list[tuple[str, Any]]):
    """An object, keys in order and perhaps repeated."""


NAMES = (
    "",
    " ",
    ".",
    "..",
    "../../outside",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "\\\\server\\share\\x",
    "C:relative",
    "CON",
    "nul.txt",
    "trailing.",
    "a\nb",
    "a\0b",
    "\u202egnp.exe",
    "e\u0301",
    "\u00e9",
    "\u6a21\u578b",
    "x" * 5000,
    "a/b/../../../c",
    "~",
    "$HOME",
    "%s",
    "-rf",
    "\U0001f600",
    "\x7f\x1b[2J",
    "(a+)+$",
    ".*" * 50,
    "\\",
)
_SCALARS: tuple[Any, ...] = (None, True, False, 0, -1, 1, 0.0, -0.0, 1.5, 1e308, 5e-324, "", "1")
_COMMON = (
    Raw("NaN"),
    Raw("Infinity"),
    Raw("-Infinity"),
    Raw("1e999"),
    Raw("-1e999"),
    Raw('"\\ud800"'),
    Raw('"\\udc00\\ud800"'),
    Raw("9" * 400),
    Raw("9" * 5000),
    Raw("-" + "9" * 19),
    Raw("[" * 40 + "]" * 40),
    Raw("[" * 70 + "]" * 70),
    Raw("[" * 3000 + "]" * 3000),
    Raw('{"a":' * 100 + "1" + "}" * 100),
    Raw("0" * 20),
    Raw("1E+2"),
)
_YAML_ONLY = (
    Raw("!!python/object/apply:os.system ['true']"),
    Raw("!!binary aGk="),
    Raw("&a [*a]"),
    Raw("*missing"),
    Raw("&b [1,1,1,1,1,1,1,1,1]"),
    Raw(".nan"),
    Raw(".inf"),
    Raw("0x" + "f" * 5000),
    Raw("0o777777777777777777777777777777777777777777"),
    Raw("2024-01-01"),
    Raw("off"),
    Raw("? a"),
    Raw('"\\Uffffffff"'),
    Raw("|\n  text"),
    Raw("{<<: {a: 1}}"),
)


def parse_tree(text: str) -> Any:
    """A JSON text as a tree."""
    return json.loads(text, object_pairs_hook=Pairs)


def tree_of(value: Any) -> Any:
    """Plain values as a tree."""
    if isinstance(value, dict):
        return Pairs((key, tree_of(item)) for key, item in value.items())
    return [tree_of(item) for item in value] if isinstance(value, list) else value


def tree_text(tree: Any) -> str:
    """A tree as JSON, but for what `Raw` and repeated keys bring in."""
    if isinstance(tree, Raw):
        return tree.text
    if isinstance(tree, Pairs):
        return "{" + ", ".join(f"{_key(k)}: {tree_text(v)}" for k, v in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(tree_text, tree)) + "]"
    return json.dumps(tree, ensure_ascii=False)


def _key(key: Any) -> str:
    return key.text if isinstance(key, Raw) else json.dumps(key, ensure_ascii=False)


def tree_mutator(
    parse: Callable[[bytes], Any], *, yaml: bool = False
) -> Callable[[bytes, Sequence[bytes], Random], bytes]:
    """A mutator of documents; the text that it writes is JSON, which YAML takes as well."""
    odd = (*_COMMON, *_YAML_ONLY) if yaml else _COMMON

    def mutate(data: bytes, donors: Sequence[bytes], random: Random) -> bytes:
        root = [parse(data)]
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            _damage(root, random, odd)
        text = tree_text(root[0]).encode("utf-8", "surrogatepass")[:MOST_BYTES]
        return mutate_bytes(text, donors, random) if random.random() < 0.1 else text

    return mutate


def _damage(root: list[Any], random: Random, odd: Sequence[Raw]) -> None:
    places = list(_places(root))
    holder, index = random.choice(places)
    tree = _value(holder, index)
    step = random.randrange(10)
    if step == 0 and holder is not root:
        del holder[index]
    elif step == 1 and holder is not root:
        holder.insert(random.randrange(len(holder) + 1), holder[index])
    elif step == 2:
        _put(holder, index, random.choice(odd))
    elif step == 3:
        _put(holder, index, random.choice((*_SCALARS, [], Pairs(), [tree], Pairs([("a", tree)]))))
    elif step == 4 and isinstance(holder, Pairs):
        key = random.choice((*NAMES, *(k for k, _ in holder)))
        holder[index] = (key, tree)
    elif step == 5:
        _put(holder, index, random.choice(NAMES))
    elif step == 6:
        _put(holder, index, random.choice((1, -1)) * random.choice(NUMBERS))
    elif step == 7:
        other = random.choice(places)
        _put(holder, index, deepcopy(_value(*other)))
    elif step == 8 and isinstance(tree, list) and tree:
        tree[:] = tree * random.choice((2, 30))
    elif isinstance(tree, str):
        at = random.randrange(len(tree) + 1)
        _put(holder, index, tree[:at] + random.choice(NAMES) + tree[at:])
    else:
        _put(holder, index, _nudged(tree, random))


def _nudged(tree: Any, random: Random) -> Any:
    if isinstance(tree, bool) or not isinstance(tree, int | float):
        return str(tree)[:200]
    return random.choice((-tree, tree + 1, tree - 1, float(tree), tree * 1e300, str(tree)))


def _value(holder: Any, index: int) -> Any:
    return holder[index][1] if isinstance(holder, Pairs) else holder[index]


def _put(holder: Any, index: int, value: Any) -> None:
    holder[index] = (holder[index][0], value) if isinstance(holder, Pairs) else value


_MOST_PLACES = 4000


def _places(root: list[Any]) -> list[tuple[Any, int]]:
    found: list[tuple[Any, int]] = [(root, 0)]
    for holder, index in found:
        tree = _value(holder, index)
        if isinstance(tree, list) and len(found) < _MOST_PLACES:
            found.extend((tree, i) for i in range(len(tree)))
    return found
