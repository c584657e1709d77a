"""Target `qnn`: a graph of integers for the QNN execution provider of ONNX Runtime.

qnn/model.onnx, model.data     static shapes, Q/DQ throughout; LoRA tensors are inputs of codes
qnn/<use case>.onnx_adapter    what a use case puts into them, for add_active_adapter
qnn/model_ctx.onnx, *.bin      the same compiled for a device, on request
qnn/<use case>/prompt.safetensors

Encodings are compile-time constants of this device: one grid serves all use cases, and a ratio per
rank keeps the accuracy of each; see lora_quant.targets.qnn.factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_quant.engines.qnn import has_wide_products
from lora_quant.errors import ConfigError, Where
from lora_quant.findings import Finding
from lora_quant.graph.branching.updatable_weights import updatable_weights
from lora_quant.graph.device.device_graph import QuantizedGraph
from lora_quant.graph.device.static_shapes import parse_dims
from lora_quant.graph.files.external_data import DataFile
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.file_names import check_file_names
from lora_quant.targets.files.fingerprint import fingerprint
from lora_quant.targets.files.graph_files import MODEL
from lora_quant.targets.files.onnx_adapter_writer import ADAPTER_SUFFIX
from lora_quant.targets.files.pack_folder import PackFolder, TargetDetails
from lora_quant.targets.files.prompt_file import write_prompt
from lora_quant.targets.files.use_case_adapter import write_use_case
from lora_quant.targets.qnn.context import CONTEXT, check_compiler, write_context
from lora_quant.targets.qnn.graph import quantize_graph
from lora_quant.targets.qnn.grids import SharedGrids
from lora_quant.targets.qnn.inputs import QnnInputs
from lora_quant.targets.qnn.supported import check_supported, own_data

DATA = "model.data"


@dataclass(frozen=True)
class QnnTarget:
    """Writes one graph of integers, and an adapter file per use case."""

    name: ClassVar[str] = "qnn"

    def emit(self, compilation: Compilation, folder: PackFolder) -> tuple[Finding, ...]:
        """Raises ConfigError, EncodingsError, GraphError and UnsupportedAdapterError for what this
        device does not take, PackError if a file cannot be written."""
        check_supported(compilation)
        check_compiler(compilation)
        own = (MODEL, DATA, CONTEXT)
        check_file_names(compilation, own, ("", ADAPTER_SUFFIX), with_base_data=False)
        branched: BranchedGraph = compilation.having("branched")
        merged = compilation.having("merged")
        keep = {*merged.base.encodings, *(w.record.name for w in updatable_weights(branched))}
        graph = QuantizedGraph(
            compilation.base, branched, parse_dims(compilation.options.dims), keep, DATA
        )
        names = [use_case.name for use_case in compilation.config.use_cases]
        shared = SharedGrids(compilation, graph.ratios)
        findings: list[Finding] = list(own_data(compilation))
        for number, name in enumerate(names):
            compilation.progress(f"grids of {name}", number, len(names))
            findings += shared.take(name)
        inputs = QnnInputs(compilation, graph.ratios, shared, _bits(compilation))
        quantize_graph(compilation, graph, shared, inputs)
        version = self._write_graph(graph, folder)
        for number, name in enumerate(names):
            compilation.progress(f"use case {name}", number, len(names))
            values = inputs.values(name)
            write_use_case(folder, self.name, name, inputs.records, values, fingerprint=version)
            write_prompt(compilation, folder, self.name, name)
        if compilation.options.qnn_context:
            write_context(compilation, folder, graph, self.name)
        folder.details[self.name] = TargetDetails(
            inputs=inputs.overridable,
            fingerprint=version,
            htp_arch=compilation.options.htp_arch,
        )
        return tuple(findings)

    def _write_graph(self, graph: QuantizedGraph, folder: PackFolder) -> int:
        """Write graph and data; returns the fingerprint."""
        path = f"{self.name}/{DATA}"
        with folder.create(path, "graph-data") as sink:
            graph.write_data(sink)
        data = graph.graph_bytes()
        with folder.create(f"{self.name}/{MODEL}", "graph") as sink:
            sink.write(data)
        written = folder.locate(path)
        return fingerprint(data, [DataFile(DATA, written, written.stat().st_size)])


def _bits(compilation: Compilation) -> int:
    """Bits of A and B: 8, or 16 where the device has them."""
    options = compilation.options
    where = Where(file=compilation.config_file, field="weight_bits")
    if options.weight_bits not in (8, 16):
        raise ConfigError(
            f"the qnn target stores LoRA weights in 8 or 16 bits, got {options.weight_bits}",
            where=where,
            hint="give --weight-bits 8 or 16",
        )
    if options.weight_bits == 16 and not has_wide_products(options.htp_arch):
        raise ConfigError(
            f"the HTP architecture {options.htp_arch} has no products of 16-bit activations and "
            "16-bit weights, expected 73 or later",
            where=where,
            hint="give --weight-bits 8, or --htp-arch 73",
        )
    return options.weight_bits
