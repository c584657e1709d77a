"""Quantized builds over the small models of the kinds' fixtures, and what they wrote.

The base's encodings are made here: every output of a float operator has a 16 bit asymmetric grid of
its own, every initializer an 8 bit symmetric one, per column for matrices.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file

from lora_quant.api import BuildResult, build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions
from lora_quant.findings import Finding
from tests.adapters.fixture_base import KINDS
from tests.sample import Document, entries

_FLOAT_OPERATORS = {"MatMul", "Gemm", "Conv", "Mul", "Add", "Sub", "Div", "Sqrt", "Pow", "Softmax"}
SECTIONS = ("activation_encodings", "param_encodings")


def activation(low: float, high: float, *, bits: int = 16) -> Document:
    """An asymmetric grid over a range that contains 0."""
    steps = 2**bits - 1
    scale = (high - low) / steps
    return grid([scale], [round(low / scale)], bits=bits, symmetric=False)


def weight(scales: list[float], *, bits: int = 8) -> Document:
    """A symmetric grid, per channel if there are several scales."""
    return grid(scales, [-(2 ** (bits - 1))] * len(scales), bits=bits, symmetric=True)


def grid(scale: list[float], offset: list[int], *, bits: int, symmetric: bool) -> Document:
    kind = "PER_TENSOR" if len(scale) == 1 else "PER_CHANNEL"
    entry = {"bw": bits, "dtype": "INT", "enc_type": kind, "is_sym": symmetric}
    return {**entry, "scale": scale, "offset": offset}


def base_encodings(model: Path) -> dict[str, Document]:
    """Entries for the tensors of a base graph; ranges differ from tensor to tensor."""
    graph = onnx.load(str(model)).graph
    found: dict[str, Document] = {}
    floats = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == 1}
    for name, values in floats.items():
        largest = np.abs(values).max(axis=0 if values.ndim == 2 else None)
        found[name] = weight([float(scale) / 127 for scale in np.atleast_1d(largest)])
    for node in graph.node:
        if node.op_type in _FLOAT_OPERATORS:
            size = 1 + zlib.crc32(node.output[0].encode()) % 1000 / 100
            found[node.output[0]] = activation(-size, 1.5 * size)
    return found


def write_encodings(path: Path, found: Mapping[str, Document], model: Path) -> Path:
    """An encodings file in version 1.0.0; initializers of the model and LoRA weights are params."""
    graph = onnx.load(str(model)).graph
    initializers = {t.name for t in graph.initializer}
    document: dict[str, Any] = {"version": "1.0.0", **{section: [] for section in SECTIONS}}
    for name, entry in found.items():
        is_param = name in initializers or name.endswith(".weight")
        document[SECTIONS[is_param]].append({"name": name, **entry})
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@dataclass(frozen=True, eq=False)
class Built:
    """A finished build, read without lora_quant."""

    result: BuildResult

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.result.findings

    @property
    def folder(self) -> Path:
        return self.result.output / "qairt"

    def base(self) -> dict[str, Document]:
        return entries(self.folder / "base_encodings.json")

    def overrides(self, use_case: str) -> dict[str, Document]:
        return entries(self.folder / use_case / "quant_overrides.json")

    def weights(self, use_case: str) -> dict[str, NDArray[Any]]:
        return load_file(self.folder / use_case / "lora_weights.safetensors")

    def listed(self, use_case: str) -> set[str]:
        path = self.folder / use_case / "quant_updatable_tensors.txt"
        return set(path.read_text(encoding="utf-8").splitlines())

    def graph(self) -> onnx.GraphProto:
        return onnx.load(str(self.folder / "model.onnx")).graph

    def added(self) -> set[str]:
        """Float tensors that the graph has and its base has not."""
        graph = self.graph()
        names = {t.name for t in graph.initializer if t.data_type == 1}
        names |= {value.name for value in graph.input}
        return names | {output for node in graph.node for output in node.output}

    def rules(self, use_case: str) -> dict[str, set[str]]:
        """Rule -> tensors that it names in a use case."""
        found: dict[str, set[str]] = {}
        for finding in self.findings:
            if finding.where.use_case == use_case and finding.where.tensor is not None:
                found.setdefault(finding.rule, set()).add(finding.where.tensor)
        return found


def model_of(base: str) -> Path:
    return KINDS / "bases" / base / "model.onnx"


def kind_config(
    folder: Path,
    base: str | Path,
    use_cases: Mapping[str, tuple[str, ...]],
    files: Mapping[str, Mapping[str, Document]] | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> LoraConfig:
    """Use cases over a base of the fixtures, or another model, and the use case `base`.

    Adapters are those of the fixtures, but for the given ones. `files` gives what the encodings
    file of a use case holds; the base's has `base_encodings` if it is not among them.
    """
    model = base if isinstance(base, Path) else model_of(base)
    given = {"base": base_encodings(model), **(files or {})}
    used = sorted({name for names in use_cases.values() for name in names})
    items = []
    for name, asked in {"base": (), **use_cases}.items():
        item: dict[str, Any] = {
            "name": name,
            "adapter_names": list(asked),
            "adapter_alphas": [1.0] * len(asked),
            "model_name": model,
        }
        if name in given:
            path = folder / f"{name}.encodings"
            item["quant_overrides"] = write_encodings(path, given[name], model)
        items.append(item)
    paths = {**{name: KINDS / name for name in used}, **(adapters or {})}
    listed = [{"name": name, "lora_config": paths[name]} for name in used]
    return LoraConfig.model_validate({"adapter": listed, "use-case": items})


def build_kinds(
    folder: Path,
    base: str | Path,
    use_cases: Mapping[str, tuple[str, ...]],
    files: Mapping[str, Mapping[str, Document]] | None = None,
    adapters: Mapping[str, Path] | None = None,
    **options: Any,
) -> Built:
    """Build what `kind_config` tells; the pack is the folder's `out`."""
    config = kind_config(folder, base, use_cases, files, adapters)
    return Built(build(config, folder / "out", BuildOptions(**options)))


def ends(entry: Document) -> tuple[float, float]:
    """Range of a per-tensor entry, real units."""
    (scale,), (offset,) = entry["scale"], entry["offset"]
    return offset * scale, (offset + 2 ** entry["bw"] - 1) * scale
