"""The reference that a pack is verified against: the base graph with W + dW put in.

Built with onnx-graphsurgeon from the base graph and the adapters' factors; it shares no code with
the branch builder, and knows neither slots nor padding nor alpha inputs. Every adapted weight
becomes a graph input, so that one session serves all use cases.

    dW = sum over adapters of alpha_i * B_i diag(s_i) A_i         [out, in, *kernel]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from lora_quant.adapters.lowered import Lowered
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.engine import Engine


@dataclass(frozen=True)
class Site:
    """Output rows `[offset, offset + size)` of the weight of a node that belong to a module."""

    module: str
    node: str
    offset: int
    size: int


class Reference:
    """Runs the base graph with any of the sites' weights changed."""

    def __init__(self, proto: ModelProto, path: Path, nodes: frozenset[str]) -> None:
        """`proto` is the base without external data, `nodes` those whose weights may change."""
        import onnx_graphsurgeon as gs

        folder = path.parent
        graph = gs.import_onnx(proto)
        by_name = {output.name: node for node in graph.nodes for output in node.outputs}
        by_name.update((node.name, node) for node in graph.nodes if node.name)
        self._weights: dict[str, NDArray[Any]] = {}
        self._is_out_in: dict[str, bool] = {}
        for name in sorted(nodes):
            node = by_name.get(name)
            if node is None:
                raise VerificationError(
                    f"the base graph has no node {name!r}",
                    where=Where(file=path, node=name),
                    hint="the pack was built from another base graph",
                )
            weight = _constant_value(node.inputs[1], folder)
            self._is_out_in[name] = node.op == "Conv" or bool(node.attrs.get("transB", 0))
            self._weights[name] = weight
            variable = gs.Variable(f"{name}/weight", dtype=weight.dtype, shape=weight.shape)
            node.inputs[1] = variable
            graph.inputs.append(variable)
        self._engine = Engine(gs.export_onnx(graph).SerializeToString(), folder, path)

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        deltas: Mapping[str, NDArray[np.float64]],
    ) -> dict[str, NDArray[Any]]:
        """Outputs with `deltas` (node -> dW `[out, in, *kernel]`) added to the weights."""
        feeds = dict(inputs)
        for name, weight in self._weights.items():
            delta = deltas.get(name)
            if delta is not None:
                oriented = delta if self._is_out_in[name] else delta.T
                weight = (weight.astype(np.float64) + oriented).astype(weight.dtype)
            feeds[f"{name}/weight"] = weight
        return self._engine.run(feeds)

    def out_features(self, node: str) -> int:
        """Rows of the weight of a node in `[out, in]` orientation."""
        return int(self._weights[node].shape[0 if self._is_out_in[node] else 1])

    def in_shape(self, node: str) -> tuple[int, ...]:
        """`(in, *kernel)` of the weight of a node."""
        shape = self._weights[node].shape
        return tuple(shape[1:]) if self._is_out_in[node] else (int(shape[0]),)


def add_delta(
    deltas: dict[str, NDArray[np.float64]],
    site: Site,
    reference: Reference,
    lowered: Lowered,
    alpha: float,
) -> None:
    """Add alpha * B diag(s) A of one module to the delta of its node."""
    shape = (reference.out_features(site.node), *reference.in_shape(site.node))
    delta = deltas.setdefault(site.node, np.zeros(shape))
    scaled = lowered.B.astype(np.float64) * (alpha * lowered.s)
    rows = slice(site.offset, site.offset + site.size)
    product = scaled @ lowered.A.reshape(lowered.rank, -1).astype(np.float64)
    delta[rows] += product.reshape(delta[rows].shape)


def _constant_value(tensor: Any, folder: Path) -> NDArray[Any]:
    """Evaluate the constant that a weight input reads, through Transpose, Identity and Cast."""
    if hasattr(tensor, "_values"):
        values = tensor._values
        stored = getattr(values, "tensor", None)
        if stored is None:
            return np.asarray(tensor.values)
        return np.asarray(numpy_helper.to_array(stored, base_dir=str(folder)))
    producer = tensor.inputs[0]
    if producer.op == "Constant":
        return _constant_value(producer.attrs["value"], folder)
    value = _constant_value(producer.inputs[0], folder)
    if producer.op == "Transpose":
        return value.transpose(producer.attrs.get("perm"))
    if producer.op == "Cast":
        return value.astype(onnx.helper.tensor_dtype_to_np_dtype(int(producer.attrs["to"])))
    return value
