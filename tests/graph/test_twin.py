"""The module map of a quantized graph, taken from the float graph that it was made from."""

from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

from lora_quant.errors import GraphError, InputMissingError
from lora_quant.graph.attach.catalog import attach_map
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.twin.twin_map import TwinMap, open_twin, twin_map
from tests.builders import GraphBuilder, attention, save
from tests.graph.helpers import opened
from tests.graph.twins import SCHEMES, quantized, scrambled, stack
from tests.timing import cpu_seconds

EXPORTS = Path(__file__).parents[1] / "fixtures" / "exports"


def mapped(model: ModelProto, twin: ModelProto, folder: Path, **options: bool) -> TwinMap:
    return twin_map(opened(model, folder, **options), open_twin(save(twin, folder / "twin.onnx")))


def modules(twin: ModelProto, folder: Path) -> dict[str, list[str]]:
    return attach_map(opened(twin, folder).catalog)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_module_is_found_by_the_names_that_a_quantizer_leaves(
    scheme: str, tmp_path: Path
) -> None:
    twin = stack().model()
    found = mapped(quantized(twin, scheme), twin, tmp_path)
    suffix = "_Q4" if scheme == "nbits" else ""
    names = {k: [f"{node}{suffix}" for node in v] for k, v in modules(twin, tmp_path).items()}
    assert len(names) == 12
    assert found == TwinMap(names, (), ())


def test_a_float_weight_near_the_largest_number_is_another_one_and_no_overflow(
    tmp_path: Path,
) -> None:
    twin = stack().model()
    model = quantized(twin, "channel")
    for tensor in twin.graph.initializer:
        if tensor.name == "w.0.q":
            values = np.full(tuple(tensor.dims), 1e30, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(GraphError, match="is none of the float graph's"):
        mapped(model, twin, tmp_path)


@settings(max_examples=40)
@given(scheme=st.sampled_from(SCHEMES), seed=st.integers(0, 2**16), external=st.booleans())
def test_every_module_is_found_without_any_name_and_in_any_order(
    scheme: str, seed: int, external: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("twin")
    twin = stack(seed=seed).model()
    model, renamed = scrambled(quantized(twin, scheme), seed)
    found = mapped(model, twin, folder, external=external)
    suffix = "_Q4" if scheme == "nbits" else ""
    wanted = {k: [renamed[f"{v[0]}{suffix}"]] for k, v in modules(twin, folder).items()}
    assert found == TwinMap(wanted, (), ())


@settings(max_examples=30)
@given(scheme=st.sampled_from(SCHEMES), seed=st.integers(0, 2**16), layers=st.integers(2, 5))
def test_equal_weights_are_told_apart_by_connections(
    scheme: str, seed: int, layers: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All layers read one set of weights."""
    folder = tmp_path_factory.mktemp("twin")
    twin = stack(layers, shared=True).model()
    model, renamed = scrambled(quantized(twin, scheme), seed)
    found = mapped(model, twin, folder)
    suffix = "_Q4" if scheme == "nbits" else ""
    wanted = {k: [renamed[f"{v[0]}{suffix}"]] for k, v in modules(twin, folder).items()}
    assert found == TwinMap(wanted, (), ())


def twice(*names: str) -> ModelProto:
    """Two linears of one weight that read one tensor, and are added up."""
    graph = GraphBuilder()
    graph.input("x", ("n", 32))
    parts = [graph.matmul(name, "x", in_features=32, out_features=32, weight="w") for name in names]
    graph.output(graph.node("Add", parts, "add"), ("n", 32))
    return graph.model()


def test_what_connections_do_not_tell_names_do(tmp_path: Path) -> None:
    found = mapped(quantized(twice("/b/MatMul", "/a/MatMul"), "nbits"), _twice(), tmp_path)
    assert found.mapping == {"a": ["/a/MatMul_Q4"], "b": ["/b/MatMul_Q4"]}
    assert not found.by_order


def test_what_names_do_not_tell_the_order_does_and_that_is_said(tmp_path: Path) -> None:
    found = mapped(twice("n0", "n1"), _twice(), tmp_path)
    assert found.mapping == {"a": ["n0"], "b": ["n1"]}
    assert found.by_order == ("a", "b")


def _twice() -> ModelProto:
    return twice("/a/MatMul", "/b/MatMul")


def test_fewer_nodes_than_float_ones_that_are_alike_are_not_decided(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.input("x", ("n", 32))
    y = graph.matmul("n0", "x", in_features=32, out_features=32, weight="w")
    graph.output(y, ("n", 32))
    with pytest.raises(GraphError, match=r"nodes 'n0_output_0' cannot be told apart") as caught:
        mapped(graph.model(), _twice(), tmp_path)
    assert "name these nodes in `attach_point_onnx_mapping`" in str(caught.value)


def test_numbered_names_of_another_export_do_not_mislead(tmp_path: Path) -> None:
    """The nodes bear the names of each other."""
    twin = stack(1).model()
    model = copy.deepcopy(twin)
    for node in model.graph.node:
        old = {
            "/layers.0/k/MatMul": "/layers.0/v/MatMul",
            "/layers.0/v/MatMul": "/layers.0/k/MatMul",
        }
        node.name = old.get(node.name, node.name)
    found = mapped(quantized(model, "channel"), twin, tmp_path)
    assert found.mapping["layers.0.k"] == ["/layers.0/v/MatMul"]
    assert found.mapping["layers.0.v"] == ["/layers.0/k/MatMul"]


def test_nodes_of_one_name_go_by_their_outputs(tmp_path: Path) -> None:
    twin = stack(1).model()
    model = quantized(twin, "nbits")
    for node in model.graph.node:
        node.name = "same"
    base = opened(model, tmp_path)
    found = twin_map(base, open_twin(save(twin, tmp_path / "twin.onnx"))).mapping
    assert found["layers.0.k"] == ["/layers.0/k/MatMul_output_0"]
    assert {base.catalog.nodes[nodes[0]] for nodes in found.values()} == set(
        base.catalog.linears.values()
    )


def test_every_path_of_a_float_node_is_kept(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.input("x", ("n", 32))
    y = graph.matmul("/bn/Conv", "x", in_features=32, out_features=8, weight="conv.weight")
    graph.output(y, ("n", 8))
    model = graph.model()
    assert mapped(scrambled(model, 0)[0], model, tmp_path).mapping == {"bn": ["n0"], "conv": ["n0"]}


def test_embeddings_are_told_as_well(tmp_path: Path) -> None:
    twin = open_twin(EXPORTS / "genai_fp32" / "model.onnx")
    found = twin_map(opened_file("genai_fp16"), twin)
    assert found.mapping == attach_map(twin.catalog) | attach_map(twin.catalog.embeddings)


def opened_file(export: str) -> BaseGraph:
    from lora_quant.graph.base.base_graph import open_base

    return open_base(EXPORTS / export / "model.onnx")


def test_the_int4_graph_of_the_model_builder(tmp_path: Path) -> None:
    """By names it tells all modules itself; without them its float graph does."""
    twin = open_twin(EXPORTS / "genai_fp32" / "model.onnx")
    base = opened_file("genai_int4")
    wanted = attach_map(base.catalog) | attach_map(base.catalog.embeddings)
    assert twin_map(base, twin).mapping == wanted


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions(kernel: int, groups: int, tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (1, 8, 4, 4))
    for leaf in "abc":
        w = graph.weight(f"{leaf}.weight", 8, 8 // groups, kernel, kernel)
        pads = [kernel // 2] * 4
        x = graph.node("Conv", [x, w], f"/{leaf}/Conv", pads=pads, group=groups)
    graph.output(x, (1, 8, 4, 4))
    twin = graph.model()
    model, renamed = scrambled(twin, 3)
    found = mapped(model, twin, tmp_path)
    assert found.mapping == {leaf: [renamed[f"/{leaf}/Conv"]] for leaf in "abc"}


def test_a_convolution_of_kernel_one_is_a_linear_layer(tmp_path: Path) -> None:
    twin = GraphBuilder()
    twin.input("x", (1, 8))
    y = twin.matmul("/a/MatMul", "x", in_features=8, out_features=6, weight="w")
    twin.output(y, (1, 6))
    graph = GraphBuilder()
    graph.input("x", (1, 8, 1, 1))
    w = graph.constant("w", twin.weights["w"].T.reshape(6, 8, 1, 1))
    graph.output(graph.node("Conv", ["x", w], "n"), (1, 6, 1, 1))
    assert mapped(graph.model(), twin.model(), tmp_path).mapping == {"a": ["n"]}


def test_a_graph_with_other_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="it is not the one that was quantized") as caught:
        mapped(quantized(stack(3).model(), "channel"), stack(2).model(), tmp_path)
    assert "the graph has 3 linear nodes of 32 inputs and 32 outputs" in str(caught.value)
    assert "/layers.0/q/MatMul" in str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_graph_of_another_model_is_refused_with_both_names(scheme: str, tmp_path: Path) -> None:
    model = quantized(stack(seed=1).model(), scheme)
    with pytest.raises(GraphError, match="is none of the float graph's") as caught:
        mapped(model, stack(seed=2).model(), tmp_path)
    text = str(caught.value)
    assert "the weight of node '/layers.0/q/MatMul" in text
    assert "the nearest is '/layers." in text
    assert "of module 'layers." in text


@pytest.mark.parametrize("scheme", ["tensor", "channel", "blocks", "float", "float16"])
def test_a_fine_tuned_twin_is_refused(scheme: str, tmp_path: Path) -> None:
    """8 bits have steps of 1 / 60 of the deviation: a change of 1 / 10 of it is six of them."""
    twin = stack()
    model = quantized(twin.model(), scheme)
    random = np.random.default_rng(0)
    for name, values in twin.weights.items():
        change = 0.05 * random.normal(size=values.shape)
        twin.weights[name] = (values + change).astype(np.float32)
    with pytest.raises(GraphError, match="is none of the float graph's"):
        mapped(model, twin.model(), tmp_path)


def test_a_layer_that_was_left_float_has_to_be_equal(tmp_path: Path) -> None:
    twin = stack(1)
    model = twin.model()
    twin.weights["w.0.q"] = twin.weights["w.0.q"] * np.float32(1 + 1e-5)
    with pytest.raises(GraphError, match=r"'/layers\.0/q/MatMul' is none of the float"):
        mapped(model, twin.model(), tmp_path)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    twin = stack(1)
    twin.weights["w.0.q"] = np.full((32, 32), np.nan, np.float32)
    with pytest.raises(GraphError, match="inf steps of the grid away"):
        mapped(stack(1).model(), twin.model(), tmp_path)


def test_a_weight_that_two_nodes_hold_and_the_float_graph_once_is_refused(tmp_path: Path) -> None:
    twin, graph = GraphBuilder(), GraphBuilder()
    for one, names in ((twin, ("a", "b")), (graph, ("a", "a"))):
        x = one.input("x", ("n", 32))
        for number, name in enumerate(names):
            one.weight("a", 32, 32)
            one.weight("b", 32, 32)
            x = one.matmul(f"/{number}/MatMul", x, in_features=32, out_features=32, weight=name)
        one.output(x, ("n", 32))
    with pytest.raises(GraphError, match="both hold the weight that the float graph has once"):
        mapped(graph.model(), twin.model(), tmp_path)


def test_modules_without_a_node_are_told(tmp_path: Path) -> None:
    """One linear became an operator on integers."""
    twin = stack(1).model()
    model = quantized(twin, "nbits")
    node = next(n for n in model.graph.node if n.name == "/layers.0/k/MatMul_Q4")
    node.CopyFrom(helper.make_node("MatMulBnb4", node.input, node.output, domain="com.microsoft"))
    found = mapped(model, twin, tmp_path)
    assert found.left_out == ("layers.0.k",)
    assert "layers.0.k" not in found.mapping
    assert len(found.mapping) == 5


def test_a_twin_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    model = stack(1).model()
    with pytest.raises(InputMissingError, match=r"the float graph .* does not exist"):
        open_twin(tmp_path / "absent.onnx")
    with pytest.raises(GraphError, match=r"node '/layers\.0/q/MatMul' is quantized"):
        open_twin(save(quantized(model, "channel"), tmp_path / "quantized.onnx"))
    with pytest.raises(GraphError, match="none of its linear nodes tells its module"):
        open_twin(save(scrambled(model, 0)[0], tmp_path / "nameless.onnx"))
    graph = GraphBuilder()
    graph.output(graph.node("Relu", [graph.input("x", (1,))], "r"), (1,))
    with pytest.raises(GraphError, match="it has no linear node"):
        open_twin(save(graph.model(), tmp_path / "none.onnx"))


def test_graphs_of_one_model_by_two_exporters(tmp_path: Path) -> None:
    """TorchScript and torch.export number nodes and weights in their own ways."""
    torchscript = open_twin(EXPORTS / "torchscript" / "model.onnx")
    dynamo = opened_file("dynamo")
    wanted = attach_map(dynamo.catalog) | attach_map(dynamo.catalog.embeddings)
    assert twin_map(dynamo, torchscript).mapping == wanted


def test_a_graph_of_560_linear_nodes_of_one_shape(tmp_path: Path) -> None:
    # Measured 0.5 s of processor time; the limit is what the slowest machine may take.
    twin = attention(layers=140, hidden=32, kv=32).model()
    for tensor in twin.graph.initializer:
        values = numpy_helper.to_array(tensor)[:32]
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    base = opened(scrambled(twin, 0)[0], tmp_path)
    other = open_twin(save(twin, tmp_path / "twin.onnx"))
    assert min(cpu_seconds(lambda: twin_map(base, other)) for _ in range(2)) < 5


def test_weights_are_never_read_whole(tmp_path: Path) -> None:
    """Four patches of 32 x 32 floats are 16 KiB; the weight has 64 MiB."""
    graph = GraphBuilder()
    graph.input("x", ("n", 4))
    graph.output(graph.matmul("/a/MatMul", "x", in_features=4, out_features=4, weight="w"), (1,))
    path = graph.save(tmp_path / "model.onnx", external=True)
    model = onnx.load(str(path), load_external_data=False)
    (tensor,) = model.graph.initializer
    tensor.dims[:] = [4096, 4096]
    for entry in tensor.external_data:
        if entry.key == "length":
            entry.value = str(4096 * 4096 * 4)
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "model.data").open("r+b") as file:
        file.truncate(4096 * 4096 * 4)
    twin = open_twin(path)
    tracemalloc.start()
    found = twin_map(twin, twin)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.mapping == {"a": ["/a/MatMul"]}
    assert peak < 2**20
