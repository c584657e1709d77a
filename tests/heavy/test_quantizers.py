"""Graphs that quantizers make of exports: which modules their names tell, and packs for them.

What names and metadata tell is held against what the values of the weights tell; nothing of it may
be wrong. A graph that lost everything gets its modules from the float graph.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.errors import GraphError
from lora_quant.graph.attach.catalog import attach_map
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.twin.twin_map import open_twin, twin_map
from lora_quant.runtime.verify.verify import verify
from tests.test_quantized_exports import EXPORTS, config_for

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

Quantize = Callable[[Path, Path], None]


def by_onnxruntime(bits: int = 4, *, qdq: bool = False, hqq: bool = False) -> Quantize:
    """MatMulNBits, or DequantizeLinear of 4 bits in blocks."""

    def run(source: Path, target: Path) -> None:
        pytest.importorskip("onnx_ir")
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

        given: Any = nbits.HQQWeightOnlyQuantConfig(block_size=32, bits=bits)
        if not hqq:
            form = QuantFormat.QDQ if qdq else QuantFormat.QOperator
            given = nbits.DefaultWeightOnlyQuantConfig(
                block_size=32, is_symmetric=True, bits=bits, quant_format=form
            )
        made = nbits.MatMulNBitsQuantizer(onnx.load(str(source)), algo_config=given)
        made.process()
        onnx.save(made.model.model, str(target))

    return run


def by_aimet(**options: bool) -> Quantize:
    def run(source: Path, target: Path) -> None:
        pytest.importorskip("aimet_onnx")
        from aimet_onnx.quantsim import QuantizationSimModel

        sim = QuantizationSimModel(
            onnx.load(str(source)),
            param_type="int8",
            activation_type="int16",
            providers=["CPUExecutionProvider"],
        )
        sim.compute_encodings([load_file(source.with_name("inputs.safetensors"))])
        onnx.save(sim.to_onnx_qdq(**options), str(target))

    return run


def by_olive(name: str, **options: int) -> Quantize:
    def run(source: Path, target: Path) -> None:
        pytest.importorskip("olive")
        from olive.model import ONNXModelHandler
        from olive.passes.olive_pass import create_pass_from_dict
        from olive.passes.onnx.hqq_quantization import OnnxHqqQuantization
        from olive.passes.onnx.kquant_quantization import OnnxKQuantQuantization
        from olive.passes.onnx.rtn_quantization import OnnxBlockWiseRtnQuantization

        passes = {
            "hqq": OnnxHqqQuantization,
            "k-quant": OnnxKQuantQuantization,
            "rtn": OnnxBlockWiseRtnQuantization,
        }
        made = create_pass_from_dict(passes[name], options, disable_search=True)
        model = made.run(ONNXModelHandler(str(source)), str(target.with_name("olive")))
        onnx.save(onnx.load(model.model_path), str(target))

    return run


QUANTIZERS = {
    "nbits-4": by_onnxruntime(),
    "nbits-8": by_onnxruntime(8),
    "nbits-qdq": by_onnxruntime(qdq=True),
    "nbits-hqq": by_onnxruntime(hqq=True),
    "aimet": by_aimet(),
    "aimet-codes": by_aimet(prequantize_constants=True),
    "olive-rtn": by_olive("rtn"),
    "olive-rtn-8": by_olive("rtn", bits=8),
    "olive-k-quant": by_olive("k-quant"),
}
EXPORTERS = ("torchscript", "dynamo", "genai_fp32")
# AIMET does not take the contributed operators of GenAI's graph. What ONNX Runtime writes for
# graphs of an opset before 21 is no valid graph, as it says.
NO_CASES = [("aimet", "genai_fp32"), ("aimet-codes", "genai_fp32"), ("nbits-qdq", "torchscript")]
CASES = [(q, e) for q in QUANTIZERS for e in EXPORTERS if (q, e) not in NO_CASES]


def quantized(quantizer: str, exporter: str, folder: Path) -> Path:
    # Quantizers write files beside the graph that they are given.
    shutil.copytree(EXPORTS / exporter, folder / "source")
    target = folder / "model.onnx"
    QUANTIZERS[quantizer](folder / "source" / "model.onnx", target)
    return target


@pytest.mark.parametrize(("quantizer", "exporter"), CASES)
def test_modules_of_a_quantized_graph(quantizer: str, exporter: str, tmp_path: Path) -> None:
    graph = quantized(quantizer, exporter, tmp_path)
    twin = EXPORTS / exporter / "model.onnx"
    base, floats = open_base(graph), open_twin(twin)
    found = twin_map(base, floats)
    assert not found.by_order
    assert set(found.left_out) <= {"model.embed_tokens"}
    by_values = {k: v for k, v in found.mapping.items() if k != "model.embed_tokens"}
    assert list(by_values) == list(attach_map(floats.catalog))
    by_names = attach_map(base.catalog)
    # These tools drop the metadata of nodes and of weights; names that torch.export gives are
    # numbers.
    is_lost = exporter == "dynamo" and quantizer.startswith(("aimet", "olive"))
    assert by_names == ({} if is_lost else by_values)
    inputs = EXPORTS / exporter / "inputs.safetensors"
    pack = build(config_for(graph), tmp_path / "out", BuildOptions(map_from=str(twin))).output
    checked = verify(pack, inputs=inputs)
    assert checked.ok
    assert checked.targets[0].base_exact


def test_a_graph_that_does_not_hold_the_weights_is_refused(tmp_path: Path) -> None:
    """What Olive 0.13 writes as HQQ is another model: its logits are 4.6 away, and 3.5 in size."""
    shutil.copytree(EXPORTS / "torchscript", tmp_path / "source")
    by_olive("hqq", block_size=32)(tmp_path / "source" / "model.onnx", tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="is none of the float graph's"):
        twin_map(
            open_base(tmp_path / "model.onnx"),
            open_twin(EXPORTS / "torchscript" / "model.onnx"),
        )
