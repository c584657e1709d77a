"""The modules of a quantized graph, as the float graph that it was made from tells them.

    float graph      module  ->  node          names and metadata of the exporter
    quantized graph  node    ->  float node    values; where several are alike, names, connections,
                                               and at last the order

Names are no proof (see traces.py), values nearly always are: a node is that of the float weight
which it holds, rounded to its grid. Only weights that are equal need more. Whatever is not decided
is refused, with both names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_quant.errors import GraphError, InputMissingError, Where
from lora_quant.graph.attach.catalog import NodeCatalog
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.records import Form, LinearNode
from lora_quant.graph.twin.candidates import Candidates, FloatWeights
from lora_quant.graph.twin.pairing import Pairing
from lora_quant.graph.twin.sampling import sample_of

_Shape = tuple[bool, int, int, tuple[int, ...], int]

_HINT = (
    "give the float graph that was quantized, as it was before; where a quantizer changed weights "
    "beyond rounding (smoothing, equalization), write an `attach_point_onnx_mapping` by hand"
)


@dataclass(frozen=True)
class TwinMap:
    """`mapping` is module path -> node names, as in `attach_point_onnx_mapping`.

    `by_order` are modules that nothing but the order of the nodes tells apart; `left_out` are those
    of the float graph that have no linear node in the quantized one.
    """

    mapping: Mapping[str, list[str]]
    by_order: tuple[str, ...]
    left_out: tuple[str, ...]


def open_twin(path: Path) -> BaseGraph:
    """The float graph at `path`; GraphError or InputMissingError if it cannot be used as one."""
    where = Where(file=path)
    if not path.is_file():
        raise InputMissingError(
            "the float graph of the quantized one does not exist",
            where=where,
            hint="the path is used as it is given; a relative one starts at the current folder",
        )
    twin = open_base(path)
    quantized = [one for one in twin.catalog.linears.values() if one.is_quantized]
    if quantized or not twin.catalog.linears:
        reason = (
            f"the weight of node {quantized[0].label!r} is quantized"
            if quantized
            else ("it has no linear node with a constant float weight")
        )
        raise GraphError(
            f"this is no float graph that tells the modules of a quantized one: {reason}",
            where=where,
            hint="give the graph that was quantized, as it was before",
        )
    if not any(twin.catalog.paths.values()):
        raise GraphError(
            "this is no float graph that tells the modules of a quantized one: none of its linear "
            "nodes tells its module",
            where=where,
            hint="give the graph as its exporter wrote it: other tools drop names and metadata",
        )
    return twin


def twin_map(base: BaseGraph, twin: BaseGraph) -> TwinMap:
    """The modules of `base`, a quantized graph, as `twin` tells them; see `open_twin`.

    Of every weight some thousand values are read. Raises GraphError if the graphs are not of one
    model, or if it is not certain which node is which.
    """
    groups = _groups(base), _groups(twin)
    for shape, linears in groups[0].items():
        _check_counts(base, twin, linears, groups[1].get(shape, []))
    pairing = Pairing(base, twin)
    for shape, linears in groups[0].items():
        floats = FloatWeights({one.product: sample_of(twin, one) for one in groups[1][shape]})
        for linear in linears:
            found = floats.candidates(sample_of(base, linear))
            if not found.products:
                raise _unlike(base, twin, linear, found)
            pairing.add(linear.product, found.products)
    pairs, by_order = pairing.solve()
    return _twin_map(base, twin, pairs, by_order)


def _groups(graph: BaseGraph) -> dict[_Shape, list[LinearNode]]:
    """The linear nodes and embeddings by the shape of their weight, in graph order."""
    found: dict[_Shape, list[LinearNode]] = defaultdict(list)
    catalog = graph.catalog
    for linear in (*catalog.linears.values(), *catalog.embeddings.linears.values()):
        found[_shape(linear)].append(linear)
    return found


def _shape(linear: LinearNode) -> _Shape:
    """A convolution of kernel one is a linear layer: exporters choose."""
    kernel: tuple[int, ...] = ()
    groups = 1
    if linear.conv is not None and (linear.conv.groups > 1 or set(linear.conv.kernel) != {1}):
        kernel, groups = linear.conv.kernel, linear.conv.groups
    is_embedding = linear.form is Form.EMBEDDING
    return is_embedding, linear.in_features, linear.out_features, kernel, groups


def _check_counts(
    base: BaseGraph, twin: BaseGraph, linears: Sequence[LinearNode], floats: Sequence[LinearNode]
) -> None:
    if len(linears) <= len(floats):
        return
    first = linears[0]
    kind = "embeddings" if first.form is Form.EMBEDDING else "linear nodes"
    raise GraphError(
        f"the graph has {len(linears)} {kind} of {first.in_features} inputs and "
        f"{first.out_features} outputs, {first.label!r} among them, and the float graph "
        f"{str(twin.path)!r} has {len(floats)}: it is not the one that was quantized",
        where=Where(file=base.path, node=first.node or None),
        hint=_HINT,
    )


def _unlike(base: BaseGraph, twin: BaseGraph, linear: LinearNode, found: Candidates) -> GraphError:
    other = _linear(twin, found.nearest)
    return GraphError(
        f"the weight of node {linear.label!r} is none of the float graph's, rounded to its grid: "
        f"the nearest is {_described(twin, other)}, on average {found.distance:.3g} steps of the "
        "grid away, expected less than 1",
        where=Where(file=base.path, tensor=linear.weight, node=linear.node or None),
        hint=_HINT,
    )


def _twin_map(
    base: BaseGraph, twin: BaseGraph, pairs: Mapping[str, str], by_order: Iterable[str]
) -> TwinMap:
    mapping: dict[str, list[str]] = {}
    left_out: list[str] = []
    products = {float_product: product for product, float_product in pairs.items()}
    for catalog in (twin.catalog, twin.catalog.embeddings):
        for float_product in catalog.linears:
            product = products.get(float_product)
            names = _names(catalog, float_product)
            if product is None:
                left_out += names[:1]
                continue
            for name in names:
                mapping[name] = [_catalog(base, product).key_of(product)]
    ordered = (_catalog(twin, pairs[product]).name_of(pairs[product]) for product in by_order)
    return TwinMap(mapping, tuple(name for name in ordered if name is not None), tuple(left_out))


def _names(catalog: NodeCatalog, product: str) -> list[str]:
    """The module of a node, and every other path that is its alone."""
    best = catalog.name_of(product)
    alone = [path for path in catalog.paths[product] if len(catalog.products[path]) == 1]
    return list(dict.fromkeys([best, *alone])) if best is not None else []


def _catalog(graph: BaseGraph, product: str) -> NodeCatalog:
    catalog = graph.catalog
    return catalog if product in catalog.linears else catalog.embeddings


def _linear(graph: BaseGraph, product: str) -> LinearNode:
    return _catalog(graph, product).linears[product]


def _described(graph: BaseGraph, linear: LinearNode) -> str:
    """The node, and the module that it tells."""
    module = _catalog(graph, linear.product).name_of(linear.product)
    return f"{linear.label!r}" + ("" if module is None else f" of module {module!r}")
