"""The base's modules as lowering rules see them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.base_modules import BaseModules, BaseSizes, whole_weight
from lora_quant.errors import AttachPointError, UnsupportedAdapterError
from lora_quant.graph.attach.resolver import ModuleRequest, Resolver
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.passes.base_modules import ModuleWeights
from tests.builders import GraphBuilder

MODULES = ("net.a", "net.b", "net.c")


def three(folder: Path) -> tuple[BaseGraph, dict[str, Any]]:
    """Two linear layers, the second one as a convolution of kernel 1, and a grouped convolution."""
    graph = GraphBuilder()
    x = graph.input("x", (1, 4, 2, 4))
    x = graph.matmul("/net/a/MatMul", x, in_features=4, out_features=4, weight="a")
    x = graph.node("Add", [x, graph.weight("a_bias", 4)], "/net/a/Add")
    x = graph.node("Conv", [x, graph.weight("b", 6, 4, 1, 1)], "/net/b/Conv")
    x = graph.node("Conv", [x, graph.weight("c", 6, 3, 2, 2)], "/net/c/Conv", group=2)
    graph.output(x, (1, 6, 1, 3))
    return open_base(graph.save(folder / "base.onnx", external=True)), graph.weights


def base_modules(base: BaseGraph, mapping: Mapping[str, list[str]] | None = None) -> BaseModules:
    resolver = Resolver(base.catalog, base.index, graph_file=base.path)
    none: tuple[int, ...] = ()
    requests = [
        ModuleRequest("net.a", None, None, none, "tone"),
        ModuleRequest("net.b", 4, 6, none, "tone"),
        ModuleRequest("net.c", 6, 6, (2, 2), "tone", groups=2),
        ModuleRequest("a", 4, 4, none, "legal"),
    ]
    resolution = resolver.resolve(requests)
    return ModuleWeights(
        base,
        resolution,
        MODULES,
        adapter="tone",
        mapping=mapping,
        mapping_file=None if mapping is None else Path("map.json"),
    )


def test_weights_have_the_shape_that_the_adapter_knows(tmp_path: Path) -> None:
    base, stored = three(tmp_path)
    modules = base_modules(base)
    assert modules.sizes("net.a") == BaseSizes(4, 4)
    assert modules.sizes("net.b") == BaseSizes(4, 6)
    assert modules.sizes("net.c") == BaseSizes(6, 6, (2, 2), 2)
    assert np.array_equal(whole_weight(modules, "net.a"), stored["a"].T)
    assert np.array_equal(whole_weight(modules, "net.b"), stored["b"][:, :, 0, 0])
    assert np.array_equal(whole_weight(modules, "net.c"), stored["c"])
    assert np.array_equal(modules.bias("net.a"), stored["a_bias"])
    assert np.array_equal(modules.bias("net.c"), np.zeros(6))


@pytest.mark.parametrize("module", ["net.d", "a"])
def test_modules_that_the_adapter_does_not_adapt(tmp_path: Path, module: str) -> None:
    modules = base_modules(three(tmp_path)[0])
    for ask in (modules.sizes, modules.bias, lambda name: list(modules.tiles(name))):
        with pytest.raises(AttachPointError, match=f"the base has no module {module!r}"):
            ask(module)


def test_the_order_is_that_of_the_mapping(tmp_path: Path) -> None:
    names = ("model.net.c", "model.net.head", "model.net.a", "model.net.b")
    modules = base_modules(three(tmp_path)[0], {name: [] for name in names})
    assert modules.order() == ("net.c", "model.net.head", "net.a", "net.b")


def test_the_order_is_not_known_without_a_mapping(tmp_path: Path) -> None:
    modules = base_modules(three(tmp_path)[0])
    with pytest.raises(
        UnsupportedAdapterError,
        match="the order of modules in the model's definition is not known from a graph",
    ) as caught:
        modules.order()
    assert "in the order of `named_modules()`" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["net.a", "net.b"], 0),
        (["net.a", "net.b", "x.c", "y.c"], 0),
        (["net.a", "net.b", "x.net.c", "y.net.c"], 2),
    ],
)
def test_a_mapping_that_leaves_a_place_open(tmp_path: Path, names: list[str], count: int) -> None:
    modules = base_modules(three(tmp_path)[0], {name: [] for name in names})
    message = rf"place of module 'net\.c' .* {count} entries of the mapping can be it, expected one"
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        modules.order()
    assert "map.json" in str(caught.value)
