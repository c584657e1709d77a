"""Finding a module path among many that may carry more or fewer leading levels.

PEFT, transformers versions and exporters disagree on the leading levels of a path (`model.` or
not, `language_model.` here or there). A path matches another if they agree on the longest common
dotted suffix and no layer number lies in the part where they differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

# ONNX Runtime GenAI's builder shortens this level.
_LEVEL_SPELLINGS = (("self_attn", "attn"),)


class NameTable:
    """A set of module paths that answers which of them a requested module can mean."""

    def __init__(self, paths: Iterable[str], flat_names: Iterable[str] = ()) -> None:
        """`flat_names` are underscore-joined paths of prepared models."""
        self.paths = frozenset(paths)
        self._by_suffix: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.paths):
            parts = path.split(".")
            for start in range(len(parts)):
                if not _has_number(parts[:start]):
                    self._by_suffix[".".join(parts[start:])].append(path)
        for flat in sorted(set(flat_names)):
            parts = flat.split("_")
            for start in range(len(parts)):
                if not _has_number(parts[:start]):
                    self._by_suffix["_".join(parts[start:])].append(flat)

    def find(self, module: str) -> tuple[str, ...]:
        """The names that `module` can mean: none, one, or several if it is ambiguous."""
        for spelling in _spellings(module):
            if spelling in self.paths:
                return (spelling,)
        for spelling in _spellings(module):
            parts = spelling.split(".")
            for start in range(len(parts)):
                if _has_number(parts[:start]):
                    break
                for joint in (".", "_"):
                    found = self._by_suffix.get(joint.join(parts[start:]))
                    if found:
                        return tuple(found)
        return ()


def _spellings(module: str) -> tuple[str, ...]:
    parts = module.split(".")
    result = [module]
    for one, other in _LEVEL_SPELLINGS:
        for old, new in ((one, other), (other, one)):
            if old in parts:
                result.append(".".join(new if part == old else part for part in parts))
    return tuple(result)


def _has_number(parts: list[str]) -> bool:
    return any(part.isdigit() for part in parts)
