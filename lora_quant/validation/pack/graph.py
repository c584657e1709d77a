"""The graph of a pack: onnx.checker, its external data, and what the manifest says that it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_quant.config.manifest_records import PackFile, TargetRecord
from lora_quant.errors import InputMissingError, LoraQuantError, some
from lora_quant.findings import Finding
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.validation.from_errors import finding_of
from lora_quant.validation.pack.overridable import (
    Default,
    check_overridable,
    declared_sizes,
    defaults_of,
)
from lora_quant.validation.pack.view import PackView

_OTHER_BUILD = "graph and manifest come from different builds"


@dataclass(frozen=True)
class GraphCheck:
    """What is wrong with a graph, and the recorded inputs that it has with a default.

    `defaults` is None if the graph cannot be read.
    """

    findings: tuple[Finding, ...]
    defaults: Mapping[str, Default] | None


def check_graph(
    view: PackView,
    target: TargetRecord,
    file: PackFile,
    waiting: Mapping[str, str],
    *,
    weights_are_initializers: bool,
) -> GraphCheck:
    """The checker with shape inference, then names and shapes against the manifest.

    `waiting`: final names of data files -> those that they have until the pack is published.
    """
    try:
        model = check_model_file(view.locate(file.path), waiting)
    except LoraQuantError as error:
        # What is not there was said of the file itself.
        data = (f.path for f in target.files if f.role == "graph-data")
        if isinstance(error, InputMissingError) and not view.usable.issuperset(data):
            return GraphCheck((), None)
        return GraphCheck((finding_of(error, shown=view.show(file.path)),), None)
    findings = (
        *(_weights(view, file, model) if weights_are_initializers else ()),
        *_inputs(view, target, file, model),
        *check_overridable(view, target, file, model),
        *_activations(view, file, model),
    )
    return GraphCheck(findings, defaults_of(target, model))


def _inputs(
    view: PackView, target: TargetRecord, file: PackFile, model: ModelFile
) -> Iterator[Finding]:
    """The inputs for strengths, gates and soft prompts, with the sizes that are recorded."""
    inputs = {value.name: declared_sizes(value) for value in model.proto.graph.input}
    for what, rule, name, expected in _wanted_inputs(view, target):
        if name not in inputs:
            message = f"the graph has no input {name!r} for {what}; it has {some(list(inputs))}"
        elif not _fits(inputs[name], expected):
            sizes = ["any" if size is None else size for size in expected]
            message = f"the input for {what} has the sizes {inputs[name]}, expected {sizes}"
        else:
            continue
        yield view.error(rule, message, file.path, hint=_OTHER_BUILD, tensor=name)


def _wanted_inputs(
    view: PackView, target: TargetRecord
) -> Iterator[tuple[str, str, str, tuple[int | None, ...]]]:
    """What an input is for, the rule that asks for it, its name, and its sizes (None for any)."""
    alpha = view.manifest.alpha_of(target)
    if alpha is not None:
        yield "the strengths", "graph-alpha", alpha.tensor, alpha.shape
        if alpha.gate is not None:
            yield "the gates", "graph-gate", alpha.gate.tensor, (None, None, *alpha.gate.shape)
    for use_case in view.manifest.use_cases:
        prompt = use_case.prompt
        if prompt is None:
            continue
        what = f"the soft prompt of {use_case.name!r}"
        for name in prompt.inputs:
            sizes = (None, None, *prompt.shape[1:])
            if prompt.form == "past_key_values":
                sizes = (None, *prompt.shape[1:2], None, *prompt.shape[3:])
            yield what, "graph-prompt", name, sizes


def _fits(sizes: list[int | str], expected: tuple[int | None, ...]) -> bool:
    """Whether sizes are those expected, as far as both are numbers."""
    return len(sizes) == len(expected) and all(
        wanted is None or isinstance(size, str) or size == wanted
        for size, wanted in zip(sizes, expected, strict=True)
    )


def _activations(view: PackView, file: PackFile, model: ModelFile) -> Iterator[Finding]:
    """What branches and vectors are said to give, the graph has."""
    graph = model.proto.graph
    known = {value.name for value in graph.input}
    known.update(name for node in graph.node for name in node.output)
    for point in view.manifest.attach_points:
        named = [vector.output for vector in point.vectors]
        if point.tensors is not None:
            branch = point.tensors
            named += [branch.x, branch.h, branch.a, branch.m, branch.l, branch.y]
            named += branch.relayouts
        for name in named:
            if name not in known:
                yield view.error(
                    "graph-activations",
                    f"the graph has no tensor of this name, which attach point {point.name!r} "
                    "names",
                    file.path,
                    hint=_OTHER_BUILD,
                    tensor=name,
                )


def _weights(view: PackView, file: PackFile, model: ModelFile) -> Iterator[Finding]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.proto.graph.initializer}
    for tensor in view.manifest.tensors:
        shape = shapes.get(tensor.name)
        if shape is None:
            message = "the graph has no initializer of this name"
        elif shape != tensor.shape:
            message = f"the initializer has the shape {list(shape)}, expected {list(tensor.shape)}"
        else:
            continue
        yield view.error(
            "graph-tensors",
            message,
            file.path,
            hint=_OTHER_BUILD,
            tensor=tensor.name,
        )
