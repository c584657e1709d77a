"""What is known of graphs, kept for the next file that names the same one; onnx loads with one.

A graph that cannot be used is kept as its error: thousands of files may name it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from lora_quant.config.real_path import real_path
from lora_quant.errors import LoraQuantError

if TYPE_CHECKING:
    from lora_quant.graph.attach.catalog import NodeCatalog
    from lora_quant.graph.base.base_graph import BaseGraph
    from lora_quant.graph.files.graph_facts import GraphFacts

_Key = tuple[Path, int, int]
_Value = TypeVar("_Value")

_MOST = 4  # facts of a graph of 10,000 nodes take some 10 MB


@dataclass(frozen=True)
class LinearNodes:
    """Nodes as attach point mappings name them: by their name, or by their output without one.

    names: every name of the graph. modules: linear node -> the module paths that the graph tells,
    best first; embeddings: likewise for the nodes that look up rows.
    """

    names: frozenset[str]
    modules: Mapping[str, tuple[str, ...]]
    embeddings: Mapping[str, tuple[str, ...]]


def linear_nodes(base: BaseGraph) -> LinearNodes:
    """What attach point mappings can name in a graph that is open."""
    return LinearNodes(
        names=base.index.names,
        modules=dict(_modules(base.catalog)),
        embeddings=dict(_modules(base.catalog.embeddings)),
    )


def _modules(catalog: NodeCatalog) -> Iterator[tuple[str, tuple[str, ...]]]:
    for product, paths in catalog.paths.items():
        yield catalog.key_of(product), paths


class _Kept(Generic[_Value]):
    """Results by path, size and time; the oldest go."""

    def __init__(self, read: Callable[[Path], _Value]) -> None:
        self._read = read
        self._kept: OrderedDict[_Key, _Value | LoraQuantError] = OrderedDict()

    def get(self, path: Path) -> _Value:
        key = _key(path)
        if key is None:
            return self._read(path)
        if key not in self._kept:
            self._kept[key] = self._result(path)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        found = self._kept[key]
        if isinstance(found, LoraQuantError):
            raise _copy(found)
        return found

    def _result(self, path: Path) -> _Value | LoraQuantError:
        try:
            return self._read(path)
        except LoraQuantError as error:
            return _copy(error)


def _copy(error: LoraQuantError) -> LoraQuantError:
    """Without the frames that it went through, which hold what they had read."""
    return type(error)(error.message, where=error.where, hint=error.hint)


def _key(path: Path) -> _Key | None:
    """What tells one state of a file from another; None for one that is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return real_path(path), status.st_size, status.st_mtime_ns


def _read_facts(path: Path) -> GraphFacts:
    from lora_quant.graph.files.graph_facts import read_graph_facts

    return read_graph_facts(path)


def _read_linears(path: Path) -> LinearNodes:
    from lora_quant.graph.base.base_graph import open_base

    return linear_nodes(open_base(path))


_facts = _Kept(_read_facts)
_linears = _Kept(_read_linears)


def facts_of(path: Path) -> GraphFacts:
    """The facts of the graph at `path`; read once as long as its size and time stay the same.

    Raises GraphError or InputMissingError as `read_graph_facts` does.
    """
    return _facts.get(path)


def facts_if_readable(path: Path) -> GraphFacts | None:
    """The facts, or None for a graph that cannot be used, which its own check tells."""
    try:
        return facts_of(path)
    except LoraQuantError:
        return None


def linear_nodes_of(path: Path) -> LinearNodes:
    """What attach point mappings can name in the graph at `path`; kept and raised like facts."""
    return _linears.get(path)
