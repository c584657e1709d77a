"""The source-framework module path of a linear node, as far as an export left traces of it.

/model/layers.0/self_attn/q_proj/MatMul      node name (TorchScript, ONNX Runtime GenAI)
pkg.torch.onnx.name_scopes                   node metadata (torch.export based exporter)
model.layers.0.self_attn.q_proj.weight       initializer name
pkg.onnxscript.optimizer.folded_from         metadata of a value whose weight was folded
model_layers_0_self_attn_q_proj_Conv         node name of a "prepared" model, dots lost
encoder.attn.in_proj_weight                  q, k and v of an nn.MultiheadAttention: the module
                                             itself, not a layer in it
/model/layers.0/self_attn/q_proj/MatMul_output_0     name of the output, where the node has none

Quantizers and optimizers lengthen names (lora_quant.graph.attach.added_names) and drop metadata of
nodes; that of a weight which they replaced can stay behind, under the weight's old name.
"""

from __future__ import annotations

import ast
import re

from onnx import NodeProto, ValueInfoProto

from lora_quant.graph.attach.added_names import plain_node_name, plain_tensor_name
from lora_quant.graph.attach.name_table import flat_name, same_module
from lora_quant.graph.files.graph_index import GraphIndex

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"
_OUTPUT = re.compile(r"[_/]output_0$")
_LINEAR_OPERATOR = re.compile(r"/(?:MatMul|Gemm|Conv)(?:_\d+)?$")
# Exporters and quantizers append _fp16, _transposed, _quantized, _Q4 and more.
_WEIGHT_SUFFIX = re.compile(r"(?:\.MatMul)?\.(?:in_proj_)?weight(?:_\w+)?$")


def path_of_node_name(name: str) -> str | None:
    """AIMET's rule for slash-separated names; None if the name carries no module.

    Split on `/`, drop the first (empty) and the last (operator) part, drop a part when the next
    one contains a `.` and contains it: `/layer2/layer2.0/conv1/Conv` -> `layer2.0.conv1`.
    """
    parts = plain_node_name(name).split("/")[1:-1]
    kept = [
        part
        for part, following in zip(parts, [*parts[1:], ""], strict=False)
        if part and not ("." in following and part in following)
    ]
    return ".".join(kept) or None


def module_paths(node: NodeProto, weight: str, index: GraphIndex) -> tuple[str, ...]:
    """Every spelling of the module path that the graph offers for this node, best first.

    The name of a weight that several nodes share (tied embeddings) tells only one of them: it does
    not count for a node whose own name says something else.
    """
    own = own_paths(node) or [p for p in (_from_output(node),) if p]
    stored = [p for p in (_from_weight_name(weight), _from_folded(weight, index)) if p]
    if own and index.is_shared(weight):
        stored = [p for p in stored if any(_agree(one, p) for one in own)]
    return tuple(dict.fromkeys([*own, *stored]))


def own_paths(node: NodeProto) -> list[str]:
    """The module path by the node's own name and metadata, best first."""
    own = [p for p in (_from_scopes(node), path_of_node_name(node.name)) if p]
    if not own and "/" not in node.name:
        own = [p for p in (flat_name(plain_node_name(node.name)),) if p]
    return own


def folded_from(value: ValueInfoProto) -> list[str]:
    """The tensors that an exporter computed a constant from, as its metadata tells."""
    for entry in value.metadata_props:
        if entry.key == FOLDED_FROM:
            return _metadata_list(entry.value)
    return []


def _agree(own: str, stored: str) -> bool:
    return stored.startswith(f"{own}.") or same_module(own, stored)


def _metadata_list(text: str) -> list[str]:
    """A list that an exporter stored as its Python repr; empty if it is something else."""
    try:
        value = ast.literal_eval(text) if len(text) < 100_000 else None
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return []
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _from_scopes(node: NodeProto) -> str | None:
    for entry in node.metadata_props:
        if entry.key == NAME_SCOPES:
            scopes = _metadata_list(entry.value)
            return scopes[-2] if len(scopes) > 1 and scopes[-2] else None
    return None


def _from_output(node: NodeProto) -> str | None:
    """By the name that the TorchScript exporter and GenAI give the output of an operator.

    What is named after another operator may be the sum of a residual, which is of no linear layer.
    """
    for output in node.output[:1]:
        name = _OUTPUT.sub("", plain_tensor_name(output))
        if name != output and _LINEAR_OPERATOR.search(name):
            return path_of_node_name(name)
    return None


def _from_weight_name(weight: str) -> str | None:
    path = _WEIGHT_SUFFIX.sub("", weight)
    return path if path and path != weight else None


def _from_folded(weight: str, index: GraphIndex) -> str | None:
    plain = plain_tensor_name(weight)
    # A tensor that is still there is another one.
    is_other = plain in index.initializers or plain in index.producers
    for name in (weight,) if is_other else (weight, plain):
        value = index.values.get(name)
        for source in folded_from(value) if value is not None else ():
            path = _from_weight_name(source)
            if path:
                return path
    return None
