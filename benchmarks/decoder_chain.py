"""A chain of linears without anything between them: all time is products, all overhead shows.

y = x W0 W1 ... as nodes named like those of a decoder's q_proj, weights in one external data file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from shape import Linear


@dataclass(frozen=True)
class Chain:
    """`layers` linears of `width` x `width`."""

    layers: int
    width: int

    def projections(self, layer: int) -> Iterator[Linear]:
        """The one linear of a layer."""
        place = f"layers.{layer}"
        yield Linear(
            f"model.{place}.attn.q_proj", f"/model/{place}/attn/q_proj", self.width, self.width
        )

    def all_projections(self) -> Iterator[Linear]:
        """All linears, in the order of their nodes."""
        for layer in range(self.layers):
            yield from self.projections(layer)


def write_chain(chain: Chain, folder: Path) -> None:
    """`model.onnx` and `model.data`: x float32 [tokens, width] -> y of the same shape."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    current = "x"
    for number, linear in enumerate(chain.all_projections()):
        output = "y" if number == chain.layers - 1 else f"{linear.node}/MatMul_output_0"
        name = f"{linear.module}.weight"
        values = rng.standard_normal((chain.width, chain.width), dtype=np.float32)
        weights.append(numpy_helper.from_array(values * np.float32(chain.width**-0.5), name))
        nodes.append(
            helper.make_node("MatMul", [current, name], [output], name=f"{linear.node}/MatMul")
        )
        current = output
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", chain.width])
        for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="model.data")
