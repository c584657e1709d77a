"""Comparing an exported graph with its base, as the tests of the comparison do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.errors import GraphError
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.exported.compare import compare_with_base
from lora_quant.graph.exported.comparison.trunk import trunk_of
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import Correspondence, ExportedGraph
from tests.builders import GraphBuilder, save


def compare(base: Path, other: Path) -> Correspondence:
    return compared(open_base(base), recognise_branches(open_base(other)))


def compared(base: BaseGraph, other: ExportedGraph) -> Correspondence:
    return compare_with_base(trunk_of(base, {}), other)


def renamed(found: Correspondence) -> list[str]:
    return [name for name, partner in found.tensors.items() if name != partner]


def refused(base: Path, other: Path) -> GraphError:
    with pytest.raises(GraphError) as caught:
        compare(base, other)
    assert str(base) in caught.value.message
    assert caught.value.where.file == other
    return caught.value


def linear(path: Path, **changes: Any) -> Path:
    """x -> MatMul -> Relu -> y; `changes` of the finished model: weight, output, shape."""
    graph = GraphBuilder()
    x = graph.input("x", changes.get("shape", ("batch", 4)))
    weight = changes.get("weight", np.arange(16, dtype=np.float32).reshape(4, 4))
    graph.constant("w", weight)
    product = graph.node("MatMul", [x, "w"], "/q/MatMul")
    y = graph.node("Relu", [product], "/Relu", changes.get("output", "y"))
    graph.output(y, changes.get("shape", ("batch", 4)))
    model = graph.model(opset=changes.get("opset", 17))
    return save(model, path, external=changes.get("external", False))
