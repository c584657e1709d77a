"""Target `onnxruntime`: one graph, and one adapter file of ONNX Runtime for each use case.

onnxruntime/model.onnx, its data             LoRA tensors are inputs; the defaults are the base
onnxruntime/<use case>.onnx_adapter          what the use case changes, without padding
onnxruntime/<use case>/prompt.safetensors    the soft prompt of a use case that has one
onnxruntime/genai_config.json, ...           where the base is a model of ONNX Runtime GenAI

`RunOptions.add_active_adapter` reproduces a use case as it is configured. Every file carries the
fingerprint of the graph as its model version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph, TensorRecord
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.alpha_record import alpha_record
from lora_quant.targets.files.file_names import check_file_names
from lora_quant.targets.files.fingerprint import fingerprint
from lora_quant.targets.files.graph_files import (
    MODEL,
    ZEROS,
    write_graph,
    zeros_location,
)
from lora_quant.targets.files.merged_graph import write_merged_graph
from lora_quant.targets.files.onnx_adapter_writer import ADAPTER_SUFFIX
from lora_quant.targets.files.pack_folder import PackFolder, TargetDetails
from lora_quant.targets.files.prompt_file import write_prompt
from lora_quant.targets.files.use_case_adapter import write_use_case
from lora_quant.targets.onnxruntime.adapter_parameters import AdapterParameters
from lora_quant.targets.onnxruntime.companions import COMPANIONS, GENAI_CONFIG, write_companions
from lora_quant.targets.onnxruntime.open_layout import OpenLayout, plan_layout
from lora_quant.targets.onnxruntime.overridable_graph import overridable_graph


@dataclass(frozen=True)
class OnnxruntimeTarget:
    """Writes a graph with open ranks, and the use cases as adapters of ONNX Runtime."""

    name: ClassVar[str] = "onnxruntime"

    def emit(self, compilation: Compilation, folder: PackFolder) -> tuple[Finding, ...]:
        """Raises PackError if a file cannot be written, ConfigError if names collide.

        Also what the layout and the graph refuse: see plan_layout and overridable_graph.
        """
        if compilation.options.merge is not None:
            write_merged_graph(compilation, folder, self.name)
            return write_companions(compilation, folder, self.name, MODEL)
        own = (MODEL, ZEROS, GENAI_CONFIG, *COMPANIONS)
        check_file_names(compilation, own, ("", ADAPTER_SUFFIX))
        layout = plan_layout(compilation)
        findings = list(_notes(compilation))
        expansions, version = self._write_graph(compilation, folder, layout, findings)
        use_cases = compilation.config.use_cases
        for number, use_case in enumerate(use_cases):
            name = use_case.name
            compilation.progress(f"use case {name}", number, len(use_cases))
            found = AdapterParameters(compilation, layout, expansions, name)
            # Other targets read the same encodings, and may have found the same.
            findings += [f for f in found.findings if f not in compilation.findings]
            values = found.values()
            write_use_case(folder, self.name, name, found.records, values, fingerprint=version)
            write_prompt(compilation, folder, self.name, name)
        return tuple(findings)

    def _write_graph(
        self,
        compilation: Compilation,
        folder: PackFolder,
        layout: OpenLayout,
        findings: list[Finding],
    ) -> tuple[Mapping[int, TensorRecord], int]:
        """The E_n and the fingerprint of the graph, which is not kept."""
        made = overridable_graph(compilation, layout)
        data = made.graph.data(zeros_location(compilation, folder, self.name))
        model = write_graph(compilation, folder, self.name, made.graph.zeros, data)
        findings += write_companions(compilation, folder, self.name, PurePosixPath(model).name)
        version = fingerprint(data, compilation.base.model.data_files)
        branched: BranchedGraph = compilation.having("branched")
        folder.details[self.name] = TargetDetails(
            alpha=alpha_record(branched, "slot") if _has_own_alpha(compilation) else None,
            inputs=made.inputs,
            fingerprint=version,
        )
        return made.expansions, version


def _notes(compilation: Compilation) -> tuple[Finding, ...]:
    if not _has_own_alpha(compilation):
        return ()
    return (
        Finding(
            rule="onnxruntime/alpha-layout",
            severity=Severity.NOTE,
            message="the alpha input of the onnxruntime target has one strength for each slot: "
            "its ranks differ from use case to use case, so that the layout 'rank' does not apply",
        ),
    )


def _has_own_alpha(compilation: Compilation) -> bool:
    """Whether the input for strengths is another one than the pack's."""
    branched: BranchedGraph = compilation.having("branched")
    return branched.scale is not None and compilation.options.alpha_layout != "slot"
