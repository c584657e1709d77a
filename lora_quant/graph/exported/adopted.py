"""The branches that a graph brought, as the records that add_branches leaves of its own.

found: A, Mul, B, Add of the file  ->  Branch, with the names, shapes and dtypes of the file

What a use case can bring values for is an initializer that branches alone read: A, B, the matrix
that expands strengths, and constants that scale. Chained branches are attach points of their own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace

from lora_quant.errors import GraphError, Where, some
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.base.inputs import graph_inputs
from lora_quant.graph.exported.records import (
    ExportedGraph,
    FoundBranch,
    FoundPoint,
    FoundScale,
    ScalePlace,
    ScaleSource,
)
from lora_quant.graph.files.element_types import FLOAT_TYPES, type_name
from lora_quant.graph.records import (
    AttachPoint,
    Branch,
    BranchedGraph,
    ConstantScale,
    Form,
    LinearNode,
    ModulePart,
    ScaleRecord,
    Storage,
    TensorRecord,
)

_JOINING = frozenset({"MatMul", "Gemm"})


@dataclass(frozen=True, eq=False)
class AdoptedGraph:
    """The records of a graph's branches; `found` tells each by the name of its attach point."""

    branched: BranchedGraph
    found: Mapping[str, FoundBranch]


def adopt(
    exported: ExportedGraph, known: Mapping[str, AttachPoint], slot_count: int
) -> AdoptedGraph:
    """Records of every branch, in graph order.

    `known` names attach points that are known already, by the product of their node. `slot_count`
    is the number of slots, unless a matrix `[slots, R]` in the graph tells it. Raises GraphError
    for a factor that no use case could bring values for, and for strengths that come from several
    inputs.
    """
    graph = exported.graph
    names = _Names(graph)
    overridable = frozenset(value.name for value in graph.model.proto.graph.input)
    branches: list[Branch] = []
    found: dict[str, FoundBranch] = {}
    for point in exported.points:
        for number, one in enumerate(point.branches):
            attach = names.attach_point(point, one, number, known.get(point.linear.product))
            branches.append(_branch(graph, attach, one, overridable))
            found[attach.name] = one
    _check_distinct(graph, branches)
    scale = _strengths(graph, found)
    if scale is not None and scale.expansion is not None:
        slot_count = math.prod(scale.alpha.shape)
    branched = BranchedGraph(
        points=tuple(branch.attach for branch in branches),
        branches=tuple(branches),
        scale=scale,
        max_rank=_max_rank(scale, found),
        slot_count=slot_count,
        constant_scales=tuple(_constant_scales(graph, found)),
    )
    return AdoptedGraph(branched, found)


class _Names:
    """Names of attach points: the module's path, else the node's name, else its output's."""

    def __init__(self, graph: BaseGraph) -> None:
        self._catalog = graph.catalog
        self._taken: set[str] = set()

    def attach_point(
        self, point: FoundPoint, one: FoundBranch, number: int, known: AttachPoint | None
    ) -> AttachPoint:
        linear = point.linear
        if known is None:
            catalog = self._catalog
            nodes = catalog if linear.product in catalog.linears else catalog.embeddings
            name = nodes.name_of(linear.product) or linear.label
            parts = (ModulePart(name, 0, linear.out_features),)
            known = AttachPoint(name, linear, point.y, None, parts)
        name = known.name if number == 0 else f"{known.name}.{number}"
        if name in self._taken:
            name = f"{name}:{one.y}"
        self._taken.add(name)
        return replace(known, name=name, output=one.y, low_rank=True)


def _branch(
    graph: BaseGraph, attach: AttachPoint, one: FoundBranch, overridable: Set[str]
) -> Branch:
    record_a = _factor(graph, one.a, "A", attach, overridable)
    record_b = _factor(graph, one.b, "B", attach, overridable)
    between = {one.b.product, *(scale.output for scale in one.scales)} - {one.m, one.l}
    for scale in one.scales:
        if scale.source is ScaleSource.CONSTANT:
            between.update(_path_of(graph, scale))
    between.update(one.relayouts)
    branch = Branch(
        attach=attach,
        a_weight=record_a,
        b_weight=record_b,
        x=one.x,
        h=one.h,
        a=one.a.product,
        m=one.m,
        l=one.l,
        y=one.y,
        relayouts=tuple(sorted(between, key=graph.index.positions.__getitem__)),
    )
    axes = (int(one.a.weight_is_in_out), int(one.b.weight_is_in_out))
    return branch if branch.channel_axes == axes else replace(branch, out_axes=axes)


def _factor(
    graph: BaseGraph, linear: LinearNode, what: str, attach: AttachPoint, overridable: Set[str]
) -> TensorRecord:
    where = Where(file=graph.path, tensor=linear.weight, module=attach.name)
    stored = graph.index.initializers.get(linear.weight)
    if linear.storage is not Storage.FLOAT:
        reason = "it is stored quantized"
    elif stored is None:
        reason = "it is the output of a Constant node"
    elif linear.weight in overridable:
        reason = "it is a graph input as well, and the converter takes initializers alone"
    elif graph.index.is_shared(linear.weight):
        reason = "more than one node reads it"
    elif stored.data_type not in FLOAT_TYPES:
        reason = f"it is of type {type_name(stored.data_type)}"
    else:
        return TensorRecord(linear.weight, tuple(stored.dims), FLOAT_TYPES[stored.data_type])
    raise GraphError(
        f"{what} of the branch at {attach.name!r} cannot be switched: {reason}",
        where=where,
        hint="export the graph with A and B of every branch as float initializers of their own, "
        "without folding constants or merging equal ones",
    )


def _check_distinct(graph: BaseGraph, branches: list[Branch]) -> None:
    owners: dict[str, str] = {}
    for branch in branches:
        for record in (branch.a_weight, branch.b_weight):
            other = owners.setdefault(record.name, branch.attach.name)
            if other != branch.attach.name or branch.a_weight.name == branch.b_weight.name:
                raise GraphError(
                    f"the branches at {other!r} and {branch.attach.name!r} read one initializer, "
                    "so that they cannot be switched apart",
                    where=Where(file=graph.path, tensor=record.name),
                    hint="export the graph without merging equal initializers",
                )


def _strengths(graph: BaseGraph, found: Mapping[str, FoundBranch]) -> ScaleRecord | None:
    """The one input that carries strengths, with the tensors between it and the branches."""
    fed = [s for one in found.values() for s in one.scales if s.source is not ScaleSource.CONSTANT]
    if not fed:
        return None
    sources = dict.fromkeys((scale.tensor, scale.expansion) for scale in fed)
    if len(sources) > 1:
        told = some(sorted({" x ".join(filter(None, pair)) for pair in sources}))
        raise GraphError(
            f"the branches are scaled by {len(sources)} different strengths, expected one for all: "
            f"{told}",
            where=Where(file=graph.path, tensor=fed[-1].tensor),
            hint="export the graph with one input for the strengths of all adapters",
        )
    first = fed[0]
    tensors = {name for scale in fed for name in _path_of(graph, scale)}
    return ScaleRecord(
        alpha=_alpha(graph, first),
        expansion=_expansion(graph, first) if first.expansion else None,
        scales=tuple(sorted(tensors, key=graph.index.positions.__getitem__)),
    )


def _max_rank(scale: ScaleRecord | None, found: Mapping[str, FoundBranch]) -> int:
    """R, as the strengths tell it: a branch of a fused projection has R ranks for each part."""
    if scale is not None and scale.expansion is not None:
        return scale.expansion.shape[-1]
    if scale is not None and math.prod(scale.alpha.shape) > 1:
        return math.prod(scale.alpha.shape)
    return max((one.rank for one in found.values()), default=0)


def _alpha(graph: BaseGraph, scale: FoundScale) -> TensorRecord:
    """The input that carries strengths; where its size is open, what multiplies it tells."""
    record = next((r for r in graph_inputs(graph) if r.name == scale.tensor), None)
    if record is None:
        raise GraphError(
            f"the strengths {scale.tensor!r} are a graph input with a default",
            where=Where(file=graph.path, tensor=scale.tensor),
            hint="export the graph with the strengths as an input, or as constants",
        )
    shape = record.shape
    if any(size < 1 for size in shape):
        size = scale.size
        if scale.expansion:
            size = graph.index.initializers[scale.expansion].dims[0]
        shape = tuple(1 if n else size for n in range(len(shape)))[::-1]
    return replace(record, shape=shape)


def _expansion(graph: BaseGraph, scale: FoundScale) -> TensorRecord:
    stored = graph.index.initializers.get(scale.expansion)
    if stored is None or stored.data_type not in FLOAT_TYPES:
        raise GraphError(
            "the matrix that expands the strengths to ranks is no float initializer",
            where=Where(file=graph.path, tensor=scale.expansion),
            hint="export the graph without folding constants",
        )
    return TensorRecord(scale.expansion, tuple(stored.dims), FLOAT_TYPES[stored.data_type])


def _constant_scales(graph: BaseGraph, found: Mapping[str, FoundBranch]) -> Iterator[ConstantScale]:
    """Float initializers that scale branches, and that nothing else of the graph reads."""
    users: dict[str, list[str]] = defaultdict(list)
    own = {position for one in found.values() for position in one.nodes}
    for name, one in found.items():
        for scale in one.scales:
            if scale.source is ScaleSource.CONSTANT and is_switchable(graph, scale, own):
                users[scale.tensor].append(name)
    for tensor, names in users.items():
        stored = graph.index.initializers[tensor]
        record = TensorRecord(tensor, tuple(stored.dims), FLOAT_TYPES[stored.data_type])
        yield ConstantScale(record, tuple(dict.fromkeys(names)))


def is_switchable(graph: BaseGraph, scale: FoundScale, own: Set[int]) -> bool:
    """Whether a use case can bring values for a constant; `own` are the positions of branches."""
    index = graph.index
    stored = index.initializers.get(scale.tensor)
    if stored is None or stored.data_type not in FLOAT_TYPES:
        return False
    path = {scale.tensor, *_path_of(graph, scale)}
    if path & (index.captured | index.outputs):
        return False
    return all(
        index.positions[node.output[0]] in own or not path.isdisjoint(node.output)
        for tensor in path
        for node in index.consumers.get(tensor, [])
    )


def _path_of(graph: BaseGraph, scale: FoundScale) -> list[str]:
    """The tensors that nodes give between what a scale comes from and the Mul that reads it."""
    index = graph.index
    ends = {scale.tensor, scale.expansion}
    path: list[str] = []
    waiting = [scale.operand]
    while waiting:
        name = waiting.pop()
        node = index.producers.get(name)
        if name in ends or node is None or name in path:
            continue
        path.append(name)
        waiting.extend(node.input if node.op_type in _JOINING else node.input[:1])
    return path


def holds_ranks(one: FoundBranch, scale: FoundScale) -> bool:
    """Whether a scale has a value for each rank, where the ranks are."""
    return scale.place is ScalePlace.BETWEEN and scale.size == one.rank


def factor_shapes(branch: Branch, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes that initializers of A and B have for every rank to reach every feature."""
    linear = branch.attach.linear
    if linear.form is Form.CONV and linear.conv is not None:
        ones = (1,) * len(linear.conv.kernel)
        return (rank, linear.in_features, *linear.conv.kernel), (linear.out_features, rank, *ones)
    shapes = (linear.in_features, rank), (rank, linear.out_features)
    axes = branch.channel_axes
    return (shapes[0] if axes[0] else shapes[0][::-1], shapes[1] if axes[1] else shapes[1][::-1])
