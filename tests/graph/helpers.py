"""What the tests of the graph room share: resolving, branching, undoing, printing."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, helper, numpy_helper

from lora_quant.graph.attach.fit import ModuleRequest
from lora_quant.graph.attach.resolver import Resolution, Resolver
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.branching.branches import AlphaLayout, add_branches
from lora_quant.graph.branching.updatable_weights import Role, base_outputs, updatable_weights
from lora_quant.graph.records import AttachPoint, BranchedGraph, Gate, Vector
from tests.builders import save

Array = NDArray[Any]
GOLDENS = Path(__file__).parent / "goldens"
ADAPTER = "tone"


def opened(model: ModelProto, folder: Path, *, external: bool = False) -> BaseGraph:
    return open_base(save(model, folder / "base.onnx", external=external))


def request(
    module: str,
    in_features: int = 8,
    out_features: int = 8,
    kernel: tuple[int, ...] = (),
    adapter: str = ADAPTER,
) -> ModuleRequest:
    return ModuleRequest(module, in_features, out_features, kernel, adapter)


def resolver(base: BaseGraph, mapping: Mapping[str, list[str]] | None = None) -> Resolver:
    return Resolver(
        base.catalog,
        base.index,
        graph_file=base.path,
        mapping=mapping,
        mapping_file=None if mapping is None else Path("attach_points.json"),
    )


def resolve(
    base: BaseGraph,
    requests: Sequence[ModuleRequest],
    mapping: Mapping[str, list[str]] | None = None,
) -> Resolution:
    return resolver(base, mapping).resolve(requests)


def node_of(
    base: BaseGraph, wanted: ModuleRequest, mapping: Mapping[str, list[str]] | None = None
) -> str:
    """The node (or product) that one request resolves to."""
    linear = resolve(base, [wanted], mapping).points[0].linear
    return linear.node or linear.product


def all_points(base: BaseGraph) -> tuple[AttachPoint, ...]:
    """Every linear node of the graph as an attach point, under its own name."""
    requests = [
        request(
            base.catalog.name_of(product) or "",
            linear.in_features,
            linear.out_features,
            linear.conv.kernel if linear.conv else (),
        )
        for product, linear in base.catalog.linears.items()
    ]
    return resolve(base, requests).points


def with_extras(
    point: AttachPoint,
    vectors: str = "",
    gates: Iterable[Gate] = (),
    *,
    low_rank: bool = True,
) -> AttachPoint:
    """The point with the vectors whose letters are given, and gates."""
    return replace(
        point,
        low_rank=low_rank,
        vectors=frozenset(map(Vector, vectors)),
        gates=frozenset(gates),
    )


def branch(
    base: BaseGraph,
    points: Sequence[AttachPoint],
    *,
    max_rank: int = 4,
    slot_count: int = 2,
    alpha_name: str = "lora_alpha",
    alpha_layout: AlphaLayout = "slot",
    experts: int = 0,
) -> BranchedGraph:
    return add_branches(
        base,
        points,
        max_rank=max_rank,
        slot_count=slot_count,
        alpha_name=alpha_name,
        alpha_layout=alpha_layout,
        experts=experts,
    )


def undone(model: ModelProto, branched: BranchedGraph) -> ModelProto:
    """What is left of a branched model when all that the records name is taken out of it."""
    model = copy.deepcopy(model)
    graph = model.graph
    renamed = {new: old for old, new in base_outputs(branched).items()}
    added = added_activations(branched)
    stored = {w.record.name for w in updatable_weights(branched) if w.role is not Role.REPLACED}
    inputs = set()
    scale = branched.scale
    if scale is not None:
        stored.update(scale.shapes)
        inputs = {record.name for record in (scale.alpha, scale.gate) if record is not None}
    _drop(graph.node, lambda n: n.output[0] in added or _gives(n, renamed, stored | added))
    _drop(graph.initializer, lambda t: t.name in stored)
    _drop(graph.input, lambda v: v.name in inputs)
    _drop(graph.value_info, lambda v: v.name in added | set(renamed))
    _drop(graph.quantization_annotation, lambda a: a.tensor_name in renamed)
    unscaled = {v.output: v.input for v in branched.vectors if v.vector is Vector.H}
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = unscaled.get(name, name)
        for position, name in enumerate(node.output):
            node.output[position] = renamed.get(name, name)
    return model


def added_activations(branched: BranchedGraph) -> set[str]:
    """Every activation that was added, but for those that have an old name."""
    old = set(base_outputs(branched))
    added = {name for b in branched.branches for name in (b.a, b.m, b.l, *b.relayouts)}
    added.update(name for b in branched.branches if b.router for name in b.router.tensors)
    added.update(v.output for v in branched.vectors if v.output not in old)
    if branched.scale is not None:
        added.update(branched.scale.scales)
    return added


def _gives(node: Any, renamed: Mapping[str, str], read: Set[str]) -> bool:
    """Whether an added node, which reads nothing but what was added, gives an old name."""
    return node.output[0] in renamed.values() and all(
        name in read or name in renamed for name in node.input
    )


def _drop(entries: Any, is_added: Any) -> None:
    for position in reversed(range(len(entries))):
        if is_added(entries[position]):
            del entries[position]


def printed(graph: GraphProto) -> str:
    """One line per input, initializer, node and output; attributes in order of their names."""
    lines = [f"input {v.name}: {_type(v)}" for v in graph.input]
    lines += [f"weight {t.name}: {_tensor(t)}" for t in graph.initializer]
    for node in graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        shown = "".join(f" {name}={given[name]}" for name in sorted(given))
        lines.append(
            f"{node.name}: {node.op_type}({', '.join(node.input)}) -> "
            f"{', '.join(node.output)}{shown}"
        )
    lines += [f"value {v.name}: {_type(v)}" for v in graph.value_info]
    lines += [f"output {v.name}: {_type(v)}" for v in graph.output]
    return "\n".join(lines) + "\n"


def _type(value: Any) -> str:
    tensor = value.type.tensor_type
    sizes = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
    return f"{helper.tensor_dtype_to_np_dtype(tensor.elem_type).name}[{', '.join(sizes)}]"


def _tensor(tensor: Any) -> str:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
    return f"{dtype}[{', '.join(map(str, tensor.dims))}]"


def put(model: ModelProto, values: Mapping[str, Array]) -> ModelProto:
    """A copy of `model` with initializers replaced."""
    model = copy.deepcopy(model)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            new = numpy_helper.from_array(values[tensor.name], tensor.name)
            assert list(new.dims) == list(tensor.dims)
            assert new.data_type == tensor.data_type
            tensor.CopyFrom(new)
    return model


def run(
    model: ModelProto | Path, feeds: Mapping[str, Array], *, optimized: bool = True
) -> list[Array]:
    """Outputs in ONNX Runtime on the CPU, in one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, dict(feeds))
    return outputs
