"""Use cases as graphs of their own: the decoder with LoRA branches inside, as exporters leave it.

    x -> lora_A/MatMul -> Mul -> lora_B/MatMul -> Add <- MatMul <- x      per adapted projection

    model/model.onnx, model.data            the base
    model/use_case_a.onnx, use_case_a.data  a use case; its data file begins with a copy of the
                                            base's, or holds the branches alone

Adapters of a mix lie side by side along the rank. Adapter b skips projections, where a moves to the
front; c has another rank and scale in down_proj. Adapters come as JSON without weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from case_graph import DATA, build_graph
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from shape import Linear, Shape

_ALIGNMENT = 4096
_COPIED = 64 << 20


@dataclass(frozen=True)
class Part:
    """Projections of an adapter that share a rank and a lora_alpha."""

    targets: tuple[str, ...]
    rank: int
    alpha: int


@dataclass(frozen=True)
class ExportedAdapter:
    """An adapter; `seed` of its values."""

    name: str
    seed: int
    parts: tuple[Part, ...]

    def part(self, linear: Linear) -> Part | None:
        """What it has at a projection, None if it skips it."""
        last = linear.module.rpartition(".")[2]
        return next((part for part in self.parts if last in part.targets), None)

    def factors(self, shape: Shape) -> Iterator[tuple[Linear, np.ndarray, np.ndarray]]:
        """A [in, rank] and B [rank, out] in float16 of every projection, in the graph's order."""
        rng = np.random.default_rng(self.seed)
        for linear in shape.all_projections():
            part = self.part(linear)
            if part is not None:
                a = rng.standard_normal((linear.in_features, part.rank), dtype=np.float32)
                b = rng.standard_normal((part.rank, linear.out_features), dtype=np.float32)
                scaled = a * np.float32(linear.in_features**-0.5), b * np.float32(0.01)
                yield linear, scaled[0].astype(np.float16), scaled[1].astype(np.float16)


@dataclass(frozen=True)
class ExportedUseCase:
    """A use case and the strength of each adapter in it."""

    name: str
    strengths: dict[ExportedAdapter, float] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """How the names of its files begin."""
        return f"use_case_{self.name}" if self.strengths else "model"


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_A = ExportedAdapter("a", 1, (Part((*_ATTENTION, *_MLP), 16, 32),))
_B = ExportedAdapter("b", 2, (Part(("q_proj", "v_proj", "down_proj"), 8, 16),))
_C = ExportedAdapter("c", 3, (Part(_ATTENTION, 16, 32), Part(("down_proj",), 4, 32)))
ADAPTERS = (_A, _B, _C)
USE_CASES = (
    ExportedUseCase("base"),
    ExportedUseCase("a", {_A: 1.0}),
    ExportedUseCase("b", {_B: 1.0}),
    ExportedUseCase("mix", {_B: 1.0, _A: 0.6}),
    ExportedUseCase("c", {_C: 1.0}),
)


def write_exported(folder: Path, shape: Shape, *, share_data: bool) -> None:
    """Write graphs, adapter JSONs and lora_config.yaml into a case that has its base already."""
    for use_case in USE_CASES:
        if use_case.strengths:
            _write_graph(folder / "model", shape, use_case, share_data=share_data)
    lines = ["adapter:"]
    for adapter in ADAPTERS:
        lines += [f"  - name: {adapter.name}", "    lora_config:"]
        for number, part in enumerate(adapter.parts):
            path = folder / "adapters" / f"{adapter.name}_{number}.json"
            path.parent.mkdir(exist_ok=True)
            content = {
                "name": adapter.name,
                "rank": part.rank,
                "alpha": part.alpha,
                "target_modules": list(part.targets),
            }
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            lines.append(f"      - adapters/{path.name}")
    lines.append("use-case:")
    for use_case in USE_CASES:
        names = ", ".join(adapter.name for adapter in use_case.strengths)
        lines += [
            f"  - name: {use_case.name}",
            f"    adapter_names: [{names}]",
            f"    adapter_alphas: [{', '.join(map(str, use_case.strengths.values()))}]",
            f"    model_name: model/{use_case.stem}.onnx",
        ]
    (folder / "lora_config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_graph(
    folder: Path, shape: Shape, use_case: ExportedUseCase, *, share_data: bool
) -> None:
    model, _ = build_graph(shape)
    data = f"{use_case.stem}.data"
    with (folder / data).open("wb") as file:
        if not share_data:
            _append_copy(folder / DATA, file.fileno())
            file.seek(0, os.SEEK_END)
            for tensor in model.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = data
        branches = {}
        for linear, a, b, scale in _factors(shape, use_case):
            prefix = f"base_model.model.{linear.module}"
            model.graph.initializer.extend(
                _stored(f"{prefix}.{name}.weight", values, data, file)
                for name, values in (("lora_A", a), ("lora_B", b))
            )
            branches[f"{linear.node}/MatMul"] = (linear, prefix, scale)
    _insert(model, branches)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    path = folder / f"{use_case.stem}.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))


def _factors(
    shape: Shape, use_case: ExportedUseCase
) -> Iterator[tuple[Linear, np.ndarray, np.ndarray, np.ndarray]]:
    """A, B and scale of every adapted projection, the ranks of all its adapters side by side.

    The scale is one number for one adapter, else one per rank.
    """
    running = {adapter: adapter.factors(shape) for adapter in use_case.strengths}
    for linear in shape.all_projections():
        found = []
        for adapter, strength in use_case.strengths.items():
            part = adapter.part(linear)
            if part is not None:
                _, a, b = next(running[adapter])
                found.append((a, b, np.full(part.rank, strength * part.alpha / part.rank)))
        if found:
            a, b, scale = (
                np.concatenate(parts, axis)
                for parts, axis in zip(zip(*found, strict=True), (1, 0, 0), strict=True)
            )
            one = len(use_case.strengths) == 1
            yield linear, a, b, (scale[0] if one else scale).astype(np.float16)


def _insert(model: ModelProto, branches: dict[str, tuple[Linear, str, np.ndarray]]) -> None:
    """Put the branches behind their projections; what read these reads the sums."""
    nodes: list[NodeProto] = []
    sums: dict[str, str] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = sums.get(name, name)
        nodes.append(node)
        if node.name not in branches:
            continue
        linear, prefix, scale = branches[node.name]
        a, s, m, b, y = (
            f"{linear.node}/{part}_output_0"
            for part in ("lora_A/MatMul", "Constant", "Mul", "lora_B/MatMul", "Add")
        )
        stored = numpy_helper.from_array(scale)
        nodes += [
            _node("MatMul", [node.input[0], f"{prefix}.lora_A.weight"], a),
            helper.make_node("Constant", [], [s], name=s.removesuffix("_output_0"), value=stored),
            _node("Mul", [a, s], m),
            _node("MatMul", [m, f"{prefix}.lora_B.weight"], b),
            _node("Add", [node.output[0], b], y),
        ]
        sums[node.output[0]] = y
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _node(op: str, inputs: list[str], output: str) -> NodeProto:
    return helper.make_node(op, inputs, [output], name=output.removesuffix("_output_0"))


def _stored(name: str, values: np.ndarray, location: str, file: BinaryIO) -> TensorProto:
    """Append the values to a data file."""
    offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
    file.seek(offset)
    file.write(values.tobytes())
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _append_copy(source: Path, target: int) -> None:
    with source.open("rb") as file:
        while os.copy_file_range(file.fileno(), target, _COPIED):
            pass
