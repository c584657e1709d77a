"""Inputs of a graph with defaults, which adapter files replace: the manifest's against the graph's.

ONNX Runtime takes a parameter only under the name of a graph input, and asks for every input
without an initializer in each run. So what the manifest records must be both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.config.manifest_records import OverridableRecord, PackFile, TargetRecord
from lora_quant.engines.onnxruntime import spelt
from lora_quant.findings import Finding
from lora_quant.graph.files.element_types import type_name
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.quantized.qdq_records import quantized_name
from lora_quant.validation.pack.view import PackView

ANY = "any"
"""Stands for a size that has neither a number nor a name."""

_OF_ONE_TARGET = ("expansion", "ratio")
"""Roles of inputs that stand for none of the manifest's tensors."""


def owner_of(record: OverridableRecord) -> str:
    """The tensor that an input holds the values, the scale or the zero point of."""
    return record.of or record.name.removesuffix(quantized_name(""))


@dataclass(frozen=True)
class Default:
    """One input: its sizes, a name for one that is open, and the sizes of its default."""

    sizes: tuple[int | str, ...]
    default: tuple[int, ...]


def defaults_of(target: TargetRecord, model: ModelFile) -> Mapping[str, Default]:
    """The recorded inputs that the graph has with a default, by name."""
    graph = model.proto.graph
    recorded = {record.name for record in target.inputs}
    sizes = {value.name: declared_sizes(value) for value in graph.input if value.name in recorded}
    return {
        tensor.name: Default(tuple(sizes[tensor.name]), tuple(tensor.dims))
        for tensor in graph.initializer
        if tensor.name in sizes
    }


def declared_sizes(value: Any) -> list[int | str]:
    """The sizes of a graph input: a number, the name of one that is open, or ANY."""
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or ANY
        for dim in value.type.tensor_type.shape.dim
    ]


def check_recorded(view: PackView, target: TargetRecord) -> Iterator[Finding]:
    """Each input belongs to a tensor that the manifest has in the same role."""
    manifest = view.manifest
    alpha = view.manifest.alpha_of(target)
    roles = {tensor.name: tensor.role for tensor in manifest.tensors}
    activations = {
        name
        for point in manifest.attach_points
        if point.tensors is not None
        for name in (point.tensors.a, point.tensors.m, point.tensors.l)
    }
    for record in target.inputs:
        owner = owner_of(record)
        if record.role in _OF_ONE_TARGET or roles.get(owner) == record.role:
            continue
        if record.role == "alpha" and alpha is not None and owner == alpha.tensor:
            continue
        if record.role == "activation" and owner in activations:
            continue
        yield view.error(
            "target-inputs",
            f"the input is recorded as {record.role!r} of {owner!r}, which the manifest does not "
            "have in this role",
            MANIFEST_FILE,
            hint="build the pack again",
            tensor=record.name,
        )


def check_overridable(
    view: PackView, target: TargetRecord, file: PackFile, model: ModelFile
) -> Iterator[Finding]:
    """Each recorded input is an input of the graph and has a default, of its dtype and shape."""
    graph = model.proto.graph
    inputs = {value.name: value for value in graph.input}
    defaults = {tensor.name: tensor for tensor in graph.initializer}
    for record in target.inputs:
        value, default = inputs.get(record.name), defaults.get(record.name)
        if value is None:
            problem: str | None = "the graph has no input of this name"
        elif default is None:
            problem = "the graph's input of this name has no default"
        else:
            problem = _problem(
                record,
                type_name(value.type.tensor_type.elem_type),
                declared_sizes(value),
                type_name(default.data_type),
                list(default.dims),
            )
        if problem is not None:
            yield view.error(
                "graph-overridable",
                problem,
                file.path,
                hint="graph and manifest come from different builds",
                tensor=record.name,
            )


def _problem(
    record: OverridableRecord,
    dtype: str,
    sizes: list[int | str],
    default_dtype: str,
    default: list[int],
) -> str | None:
    wanted = f"expected {spelt(record.dtype)} {list(record.shape)}"
    fixed = [size if isinstance(size, int) else -1 for size in sizes]
    if (spelt(dtype), fixed) != (spelt(record.dtype), list(record.shape)):
        return f"the input is {spelt(dtype)} {sizes}, {wanted} with -1 for sizes that are open"
    fits = len(default) == len(fixed) and all(
        size in (-1, given) for size, given in zip(fixed, default, strict=True)
    )
    if spelt(default_dtype) != spelt(record.dtype) or not fits:
        return f"the default is {spelt(default_dtype)} {default}, {wanted}"
    return None
