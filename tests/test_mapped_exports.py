"""Packs for quantized exports whose modules the float graph tells (`--map-from`).

ONNX Runtime's own tools quantize one export each; they drop the names or the metadata by which its
nodes tell their modules. The pack is the one that a mapping written by hand gives, byte for byte.
Off it is the base bit for bit; on it is the formula on dequantized weights where only weights are
quantized, and what `verify` takes where activations are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize,
    quantize_static,
)
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.numpy import load_file, save_file

from lora_quant.api import build
from lora_quant.cli.main import run as cli
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.manifest import read_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.errors import AttachPointError, ConfigError, GraphError
from lora_quant.findings import Severity
from lora_quant.graph.attach.catalog import attach_map
from lora_quant.graph.base.base_graph import open_base
from lora_quant.runtime.verify.verify import verify
from tests.builders import GraphBuilder
from tests.graph.twins import quantized, scrambled
from tests.run_graph import largest
from tests.sample import CONFIG, tree
from tests.test_quantized_exports import (
    ADAPTER,
    EXPORTS,
    Array,
    compiled,
    config_for,
    run,
    with_alpha,
)

EXPORTERS = ("torchscript", "dynamo", "genai_fp32")


def float_graph(exporter: str) -> Path:
    return EXPORTS / exporter / "model.onnx"


class Once(CalibrationDataReader):  # type: ignore[misc]
    """The inputs of an exporter's graph, one time."""

    def __init__(self, exporter: str) -> None:
        inputs = load_file(EXPORTS / exporter / "inputs.safetensors")
        self._inputs: Iterator[dict[str, Array]] = iter([inputs])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._inputs, None)


def static(source: Path, target: Path, exporter: str) -> None:
    quantize_static(
        str(source),
        str(target),
        Once(exporter),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Add", "Mul"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def static_16_bits(source: Path, target: Path, exporter: str) -> None:
    """Needs a newer opset: the conversion drops all metadata."""
    quantize_static(
        str(source),
        str(target),
        Once(exporter),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QInt8,
    )


def preprocessed(source: Path, target: Path, exporter: str) -> None:
    """The optimizer changes the order of nodes and drops all metadata."""
    between = target.with_name("between.onnx")
    quant_pre_process(str(source), str(between), skip_symbolic_shape=True)
    static(between, target, exporter)


def for_qnn(source: Path, target: Path, exporter: str) -> None:
    config = get_qnn_qdq_config(
        str(source),
        Once(exporter),
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QUInt8,
    )
    quantize(str(source), str(target), config)


def nameless(source: Path, target: Path, exporter: str) -> None:
    between = target.with_name("between.onnx")
    static(source, between, exporter)
    onnx.save(scrambled(onnx.load(str(between)), 7)[0], str(target))


QUANTIZERS: dict[str, Callable[[Path, Path, str], None]] = {
    one.__name__: one for one in (static, static_16_bits, preprocessed, for_qnn, nameless)
}
# The optimizer of preprocessed() does not take GenAI's graph; that of for_qnn() does not run.
NO_CASES = [("preprocessed", "genai_fp32"), ("for_qnn", "genai_fp32")]
CASES = [(q, e) for q in QUANTIZERS for e in EXPORTERS if (q, e) not in NO_CASES]
TOLD = {"static": EXPORTERS} | dict.fromkeys(
    ("static_16_bits", "preprocessed", "for_qnn"), ("torchscript", "genai_fp32")
)
"""Where names and metadata tell all modules: what torch.export writes is lost on the way."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Path]:
    """Quantizer, exporter and the quantized graph."""
    quantizer, exporter = request.param
    folder = tmp_path_factory.mktemp("quantized")
    # Quantizers write files beside the graph that they are given.
    source = folder / "source"
    shutil.copytree(EXPORTS / exporter, source)
    QUANTIZERS[quantizer](source / "model.onnx", folder / "model.onnx", exporter)
    return quantizer, exporter, folder / "model.onnx"


def test_what_a_quantizer_leaves_is_never_wrong(case: tuple[str, str, Path]) -> None:
    quantizer, exporter, graph = case
    wanted = attach_map(open_base(float_graph(exporter)).catalog)
    found = attach_map(open_base(graph).catalog)
    assert found == (wanted if exporter in TOLD.get(quantizer, ()) else {})


def by_hand(case: tuple[str, str, Path], folder: Path) -> Path:
    """The mapping, by the names of nodes alone."""
    quantizer, exporter, graph = case
    wanted = attach_map(open_base(float_graph(exporter)).catalog)
    if quantizer == "nameless":
        renamed = scrambled(onnx.load(str(graph.with_name("between.onnx"))), 7)[1]
        wanted = {module: [renamed[node] for node in nodes] for module, nodes in wanted.items()}
    path = folder / "map.json"
    path.write_text(json.dumps(wanted))
    return path


def with_mapping(config: LoraConfig, path: Path) -> LoraConfig:
    return config.model_copy(update={"attach_point_onnx_mapping": path})


@pytest.fixture(scope="module")
def pack(case: tuple[str, str, Path]) -> Path:
    """The pack that is made with the float graph."""
    _, exporter, graph = case
    options = BuildOptions(map_from=str(float_graph(exporter)))
    return build(config_for(graph), graph.with_name("out"), options).output


def test_the_pack_is_that_of_a_mapping(
    case: tuple[str, str, Path], pack: Path, tmp_path: Path
) -> None:
    _, exporter, graph = case
    build(with_mapping(config_for(graph), by_hand(case, tmp_path)), tmp_path / "out")
    assert tree(pack / "qairt") == tree(tmp_path / "out" / "qairt")
    manifest = read_manifest(pack / "pack.json")
    (record,) = [r for r in manifest.inputs if r.role == "map-from"]
    assert record.path is not None
    assert (pack / record.path).resolve() == float_graph(exporter)
    assert len(manifest.attach_points) == (10 if exporter == "genai_fp32" else 14)


def test_the_pack_runs(case: tuple[str, str, Path], pack: Path) -> None:
    _, exporter, graph = case
    inputs = load_file(EXPORTS / exporter / "inputs.safetensors")
    for level in ("DISABLE_ALL", "ENABLE_ALL"):
        wanted = run(onnx.load(str(graph)), inputs, level)
        for use_case, alpha in (("base", 1.0), ("on", 0.0)):
            got = run(compiled(pack, use_case), with_alpha(inputs, alpha), level)
            np.testing.assert_array_equal(got, wanted)
        assert largest(run(compiled(pack, "on"), with_alpha(inputs, 1.0), level), wanted) > 1
    checked = verify(pack, inputs=EXPORTS / exporter / "inputs.safetensors")
    assert checked.ok
    assert checked.targets[0].base_exact


def weight_only(exporter: str) -> ModelProto:
    """Weights of 4 bits in blocks, activations in floats, without any trace of names."""
    model = onnx.load(str(float_graph(exporter)))
    return scrambled(quantized(model, "nbits"), 3)[0]


def in_floats(exporter: str) -> ModelProto:
    """The float export with W' + 2 B A, where W' is W rounded to 4 bits; lora_alpha / r is 2."""
    model = onnx.load(str(float_graph(exporter)))
    factors = load_file(ADAPTER / "adapter_model.safetensors")
    named = attach_map(open_base(float_graph(exporter)).catalog)
    modules = {node: name for name, (node,) in named.items()}
    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in modules:
            continue
        w = numpy_helper.to_array(tensors[node.input[1]])
        blocks = w.T.reshape(w.shape[1], -1, 16)
        scale = np.abs(blocks).max(-1, keepdims=True) / 7
        rounded = np.clip(np.rint(blocks / scale), -8, 7).astype(np.float64) * scale
        values = rounded.reshape(w.shape[1], -1)
        name = f"base_model.model.{modules[node.name]}"
        if f"{name}.lora_A.weight" in factors:
            A, B = (factors[f"{name}.lora_{side}.weight"].astype(np.float64) for side in "AB")
            values = values + 2.0 * B @ A
        values = np.ascontiguousarray(values.T.astype(np.float32))
        tensors[node.input[1]].CopyFrom(numpy_helper.from_array(values, node.input[1]))
    return model


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_on_is_the_formula_on_dequantized_weights(exporter: str, tmp_path: Path) -> None:
    """Logits of size 2.7: measured 2.1e-6, 9 units in the last place of 2.7 (2**-22), with a
    factor of 3.
    """
    graph = tmp_path / "model.onnx"
    onnx.save(weight_only(exporter), str(graph))
    pack = tmp_path / "out"
    build(config_for(graph), pack, BuildOptions(map_from=str(float_graph(exporter))))
    inputs = load_file(EXPORTS / exporter / "inputs.safetensors")
    wanted = run(in_floats(exporter), inputs)
    got = run(compiled(pack, "on"), with_alpha(inputs, 1.0))
    assert largest(got, wanted) < 6.4e-6
    off = run(compiled(pack, "on"), with_alpha(inputs, 0.0))
    np.testing.assert_array_equal(off, run(onnx.load(str(graph)), inputs))
    assert largest(off, wanted) > 1


def test_a_mapping_and_a_float_graph_are_not_taken_together(tmp_path: Path) -> None:
    graph, mapping = float_graph("torchscript"), tmp_path / "map.json"
    mapping.write_text("{}")
    with pytest.raises(ConfigError, match="the modules are told twice") as caught:
        build(
            with_mapping(config_for(graph), mapping),
            tmp_path / "out",
            BuildOptions(map_from=str(graph)),
        )
    assert str(mapping) in str(caught.value)
    assert str(graph) in str(caught.value)
    assert "leave one of them out" in str(caught.value)


def test_a_float_graph_and_merge_are_not_taken_together() -> None:
    with pytest.raises(ConfigError, match="map_from is given with merge: nothing can be merged"):
        BuildOptions(map_from="float.onnx", merge="on")


def test_the_float_graph_of_another_model_is_refused(tmp_path: Path) -> None:
    sample = EXPORTS.parents[2] / "samples" / "tiny_llama" / "model" / "model.onnx"
    graph = tmp_path / "model.onnx"
    onnx.save(weight_only("dynamo"), str(graph))
    with pytest.raises(GraphError, match="float graph"):
        build(config_for(graph), tmp_path / "out", BuildOptions(map_from=str(sample)))
    assert not (tmp_path / "out").exists()


def test_a_module_whose_node_takes_no_branch_is_named(tmp_path: Path) -> None:
    model = weight_only("dynamo")
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    node.CopyFrom(helper.make_node("MatMulBnb4", node.input, node.output, domain="com.microsoft"))
    graph = tmp_path / "model.onnx"
    onnx.save(model, str(graph))
    with pytest.raises(AttachPointError, match="as the float graph tells") as caught:
        build(
            config_for(graph), tmp_path / "out", BuildOptions(map_from=str(float_graph("dynamo")))
        )
    assert "has no node in the quantized graph" in str(caught.value)


def test_what_is_left_out_is_a_finding(tmp_path: Path) -> None:
    model = onnx.load(str(float_graph("torchscript")))
    graph = tmp_path / "model.onnx"
    changed = quantized(model, "nbits")
    head = next(node for node in changed.graph.node if node.name == "/lm_head/MatMul_Q4")
    head.CopyFrom(helper.make_node("MatMulBnb4", head.input, head.output, domain="com.microsoft"))
    onnx.save(scrambled(changed, 5)[0], str(graph))
    options = BuildOptions(map_from=str(float_graph("torchscript")))
    (found,) = build(config_for(graph), tmp_path / "out", options).findings
    assert (found.rule, found.severity) == ("graph/not-in-quantized", Severity.NOTE)
    assert "take a branch: 'lm_head'" in found.message


def test_the_command_line_names_a_float_graph_that_is_not_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent.onnx"
    arguments = ["build", str(CONFIG), "-o", str(tmp_path / "out"), "--map-from", str(absent)]
    assert cli(arguments) == 1
    error = capfd.readouterr().err
    assert "the float graph does not exist" in error
    assert str(absent) in error


def test_what_is_left_to_the_order_of_nodes_is_a_finding(tmp_path: Path) -> None:
    """Two modules have one weight, read one tensor, and are added up."""
    twin, graph = GraphBuilder(), GraphBuilder()
    for builder, names in ((twin, ("/a/MatMul", "/b/MatMul")), (graph, ("m", "n"))):
        x = builder.input("x", ("n", 8))
        parts = [
            builder.matmul(name, x, in_features=8, out_features=8, weight="w") for name in names
        ]
        builder.output(builder.node("Add", parts, "sum"), ("n", 8))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["b"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    factors = {"A": np.ones((2, 8), np.float32), "B": np.ones((8, 2), np.float32)}
    tensors = {f"base_model.model.b.lora_{side}.weight": v for side, v in factors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    options = BuildOptions(map_from=str(twin.save(tmp_path / "twin.onnx")))
    base = graph.save(tmp_path / "model.onnx")
    result = build(config_for(base, adapter), tmp_path / "out", options)
    (found,) = result.findings
    assert (found.rule, found.severity) == ("graph/told-by-order", Severity.WARNING)
    assert found.message.endswith("in the order of the graphs: 'a', 'b'")
    assert [point.node for point in result.manifest.attach_points] == ["n"]
