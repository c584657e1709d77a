"""Which initializer holds a parameter of the source model, under whatever name.

model.norm.weight              an initializer of that name, with more or fewer leading levels
lm_head.weight, fc.bias        what the node of that module reads, whatever it is called
b.weight                       the output of an Identity, where an exporter found b equal to a
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from lora_quant.graph.attach.bias import bias_inputs
from lora_quant.graph.attach.catalog import LinearCatalog, NodeCatalog
from lora_quant.graph.attach.constants import LAYOUT_OPERATORS, FloatConstant, constant_behind
from lora_quant.graph.attach.fused import fused_module
from lora_quant.graph.attach.module_names import folded_from, own_paths
from lora_quant.graph.attach.name_table import NameTable, same_module
from lora_quant.graph.files.graph_index import GraphIndex

# What exporters and quantizers append; `weight_g` or `bias_k` are parameters of other names.
_ADDED = re.compile(r"_(?:fp16|fp32|bf16|transposed|quantized|Q\d+)$")
_OPERATOR = re.compile(r"\.(?:MatMul|Gemm|Add)$")


@dataclass(frozen=True)
class Parameter:
    """The path of a parameter, taken apart; q, k and v of an attention module are its own."""

    module: str
    leaf: str


@dataclass(frozen=True)
class FoundTensor:
    """A tensor that holds a parameter of `module`; `initializer` is where its values are."""

    module: str
    initializer: str


def parse_parameter(path: str) -> Parameter:
    """`model.norm.weight` -> `model.norm`, `weight`, without what exporters add to the name."""
    module, _, leaf = _ADDED.sub("", path).rpartition(".")
    return Parameter(_OPERATOR.sub("", module), leaf.removeprefix("in_proj_"))


class ParameterTable:
    """Finds tensors by parameter, and the modules that a tensor serves."""

    def __init__(self, index: GraphIndex, catalog: LinearCatalog) -> None:
        self._index = index
        self._catalog = catalog
        self._held: dict[Parameter, list[str]] = defaultdict(list)
        self._stored: dict[Parameter, list[str]] = defaultdict(list)
        self._flipped: set[str] = set()
        self._roots = _roots(index)
        for nodes in (catalog, catalog.embeddings):
            self._add_nodes(nodes)
        for tensor in self._roots:
            self._stored[parse_parameter(tensor)].append(tensor)
        self._tables: dict[tuple[bool, str], NameTable] = {}

    @property
    def paths(self) -> frozenset[str]:
        """Every parameter that can be found, for hints."""
        known = (*self._held, *self._stored)
        return frozenset(
            f"{one.module}.{one.leaf}" for one in known if one.module and one.leaf.isidentifier()
        )

    def find(self, path: str) -> tuple[FoundTensor, ...]:
        """The tensors that hold a parameter: none, one, or several if it is ambiguous.

        What the node of the module reads comes before tensors that are merely called like it.
        """
        wanted = parse_parameter(path)
        for is_held, known in ((True, self._held), (False, self._stored)):
            found = [
                FoundTensor(one.module, self._roots.get(tensor, tensor))
                for one in self._spelled(wanted, is_held)
                for tensor in known[one]
            ]
            if found:
                return tuple(dict.fromkeys(found))
        if path in self._roots:
            return (FoundTensor(wanted.module, self._roots[path]),)
        return tuple(dict.fromkeys(self._read_by_module(wanted)))

    def is_flipped(self, found: FoundTensor, path: str) -> bool:
        """Whether the source model has the weight of a linear layer the other way round."""
        return parse_parameter(path).leaf == "weight" and found.initializer in self._flipped

    def other_readers(self, found: FoundTensor) -> tuple[str, ...]:
        """Who else than its module reads a tensor: module paths, or names of nodes without one.

        A node above the module counts as long as it is not the only reader: it may compute another
        module whose parameter was found equal.
        """
        readers: list[str] = []
        count = 0
        pending = [found.initializer]
        while pending:
            name = pending.pop()
            if name in self._index.captured:
                readers.append("a subgraph")
                count += 1
            for node in self._index.consumers.get(name, ()):
                if node.op_type in LAYOUT_OPERATORS:
                    pending.extend(node.output)
                    continue
                count += 1
                own = own_paths(node)
                if not any(same_module(path, found.module) for path in own):
                    readers.append(own[0] if own else node.name or node.output[0])
        return tuple(dict.fromkeys(readers)) if count > 1 else ()

    def reason(self, path: str) -> str | None:
        """Why the graph has no such parameter of its own, if it tells."""
        module = parse_parameter(path).module
        for nodes in (self._catalog, self._catalog.embeddings):
            for name in NameTable(nodes.refused).find(module):
                return nodes.refused[name].reason
        whole = fused_module(module)
        if whole is not None and NameTable(self._catalog.products).find(whole):
            return "the graph computes its module together with others, in one node"
        for name, value in self._index.values.items():
            if any(_is_parameter(source, path) for source in folded_from(value)):
                return f"the exporter folded it into {name!r}"
        return None

    def _add_nodes(self, nodes: NodeCatalog) -> None:
        for product, linear in nodes.linears.items():
            # A MatMul reads W of a linear layer transposed; the Gemm of a Conv1D as it is.
            read_flipped = {"MatMul": True, "Gather": False}.get(linear.op)
            if read_flipped is linear.weight_is_in_out:
                self._flipped.add(linear.weight)
            name = nodes.name_of(product)
            if name is None:
                continue
            self._held[Parameter(name, "weight")].append(linear.weight)
            for tensor, _ in bias_inputs(linear, self._index):
                constant = constant_behind(tensor, self._index)
                if isinstance(constant, FloatConstant):
                    self._held[Parameter(name, "bias")].append(constant.initializer)

    def _spelled(self, wanted: Parameter, is_held: bool) -> Iterator[Parameter]:
        known = self._held if is_held else self._stored
        key = (is_held, wanted.leaf)
        if key not in self._tables:
            modules = (one.module for one in known if one.leaf == wanted.leaf and one.module)
            self._tables[key] = NameTable(modules)
        for module in self._tables[key].find(wanted.module):
            yield Parameter(module, wanted.leaf)

    def _read_by_module(self, wanted: Parameter) -> Iterator[FoundTensor]:
        """What nodes of the module read under the name of another: it was found equal to it."""
        by_path: dict[str, list[NodeProto]] = defaultdict(list)
        for node in {id(node): node for node in self._index.producers.values()}.values():
            for path in own_paths(node)[:1]:
                by_path[path].append(node)
        for path in NameTable(by_path).find(wanted.module):
            for node in by_path[path]:
                for tensor in node.input:
                    if tensor in self._roots and parse_parameter(tensor).leaf == wanted.leaf:
                        yield FoundTensor(path, self._roots[tensor])


def _roots(index: GraphIndex) -> dict[str, str]:
    """Tensor -> initializer, for initializers and what only copies one: names of parameters."""
    roots = {name: name for name in index.initializers}
    for tensor, node in index.producers.items():
        if node.op_type in ("Identity", "Cast") and node.input[0] in roots:
            roots[tensor] = roots[node.input[0]]
    return roots


def _is_parameter(tensor: str, path: str) -> bool:
    one, other = parse_parameter(tensor), parse_parameter(path)
    return one.leaf == other.leaf and same_module(one.module, other.module)
