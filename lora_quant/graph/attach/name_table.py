"""Finding a module path among many that may carry more or fewer leading levels.

PEFT, transformers versions and exporters disagree on the leading levels of a path (`model.` or
not, `language_model.` here or there). Two paths name one module if, apart from the longest dotted
suffix that they share,

- no layer number is left over on either side, and
- the levels left over on one side are among those of the other: `model.language_model.layers.0`
  is `language_model.model.layers.0` and `layers.0`, but `encoder.layers.0` is not
  `decoder.layers.0`.

"Prepared" models join the levels with underscores and append the operator
(`model_layers_0_self_attn_q_proj_Conv`). Such a name has no levels to compare: it must be a suffix
of the module as a whole, or share a layer number with it.

kohya's checkpoints join the levels of the requested module (`down_blocks_0_attentions_0_to_q`).
Such a name is the path, or the last levels of the path, that gives it when its levels are joined;
else it ends in a whole path that holds a layer number.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

# ONNX Runtime GenAI's builder shortens this level.
_LEVEL_SPELLINGS = (("self_attn", "attn"),)
_OPERATOR_SUFFIX = re.compile(r"_(?:Conv|MatMul|Gemm|Gather|conv|matmul|gemm)(?:_\d+)?$")


class NameTable:
    """A set of module paths that answers which of them a requested module can mean."""

    def __init__(self, paths: Iterable[str]) -> None:
        """A path without a dot may also be the flat name of a prepared model."""
        self.paths = frozenset(paths)
        # Suffix -> paths that end in it, and what is left of them before it.
        self._dotted: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
        self._flat: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
        self._joined: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
        for path in sorted(self.paths):
            for suffix, rest in _suffixes(path.split("."), "."):
                self._dotted[suffix].append((path, rest))
                self._joined[suffix.replace(".", "_")].append((path, rest))
            if "." not in path:
                tokens = _OPERATOR_SUFFIX.sub("", path).split("_")
                for suffix, rest in _suffixes(tokens, "_"):
                    if not rest or _has_number(suffix.split("_")):
                        self._flat[suffix].append((path, rest))

    def find(self, module: str) -> tuple[str, ...]:
        """The names that `module` can mean: none, one, or several if it is ambiguous."""
        return self._find_levels(module) or self._find_joined(module)

    def _find_levels(self, module: str) -> tuple[str, ...]:
        spellings = _spellings(module)
        for spelling in spellings:
            if spelling in self.paths:
                return (spelling,)
        for start in range(module.count(".") + 1):
            for spelling in spellings:
                levels = spelling.split(".")
                rest, suffix = levels[:start], levels[start:]
                if _has_number(rest):
                    return ()
                found = self._matches(rest, suffix)
                if found:
                    return found
        return ()

    def _find_joined(self, module: str) -> tuple[str, ...]:
        """The paths whose levels the last level of a name can join."""
        *before, joined = module.split(".")
        if "_" not in joined:
            return ()
        if before:
            return self._joined_below(before, joined)
        found = self._joined.get(module, [])
        whole = tuple(path for path, rest in found if not rest)
        if found:
            return whole or tuple(path for path, _ in found)
        for suffix, _ in _suffixes(module.split("_"), "_"):
            if _has_number(suffix.split("_")):
                paths = (path for path, rest in self._joined.get(suffix, ()) if not rest)
                if longest := tuple(paths):
                    return longest
        return ()

    def _joined_below(self, before: list[str], joined: str) -> tuple[str, ...]:
        """Of a component and joined levels (`unet.down_blocks_0_to_q`), as kohya's files have it.

        Levels without a number are not joined: `x.out_proj` is not `x.out.proj`.
        """
        if _has_number(before) or not _has_number(joined.split("_")):
            return ()
        found = [(p, rest) for p, rest in self._joined.get(joined, ()) if _nested(before, rest)]
        whole = tuple(path for path, rest in found if rest == before or not rest)
        return whole or tuple(path for path, _ in found)

    def _matches(self, rest: list[str], suffix: list[str]) -> tuple[str, ...]:
        found = [
            path for path, other in self._dotted.get(".".join(suffix), ()) if _nested(rest, other)
        ]
        tokens = [token for level in rest for token in level.split("_")]
        found += [
            path for path, other in self._flat.get("_".join(suffix), ()) if _nested(tokens, other)
        ]
        return tuple(dict.fromkeys(found))


def same_module(one: str, other: str) -> bool:
    """Whether two paths can name one module."""
    return one == other or any(NameTable([a]).find(b) for a, b in ((one, other), (other, one)))


def flat_name(node_name: str) -> str | None:
    """The underscore-joined module path in the node name of a prepared model, if it is one."""
    name = _OPERATOR_SUFFIX.sub("", node_name)
    return name if name != node_name and "_" in name else None


def _suffixes(parts: Sequence[str], joint: str) -> Iterable[tuple[str, list[str]]]:
    for start in range(len(parts)):
        rest = list(parts[:start])
        if _has_number(rest):
            return
        yield joint.join(parts[start:]), rest


def _spellings(module: str) -> tuple[str, ...]:
    parts = module.split(".")
    result = [module]
    for one, other in _LEVEL_SPELLINGS:
        for old, new in ((one, other), (other, one)):
            if old in parts:
                result.append(".".join(new if part == old else part for part in parts))
    return tuple(result)


def _nested(one: list[str], other: list[str]) -> bool:
    """Whether the levels of one side are all among the other's, in any order."""
    first, second = Counter(one), Counter(other)
    return first <= second or second <= first


def _has_number(parts: Iterable[str]) -> bool:
    return any(part.isdigit() for part in parts)
