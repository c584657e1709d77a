"""The graph of a pack: onnx.checker, its external data, and the tensors that packs replace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lora_quant.config.manifest_records import PackFile
from lora_quant.errors import LoraQuantError, some
from lora_quant.findings import Finding
from lora_quant.graph.model_file import ModelFile
from lora_quant.graph.saving import check_model_file
from lora_quant.validation.from_errors import finding_of
from lora_quant.validation.pack_view import PackView


def check_graph(
    view: PackView,
    file: PackFile,
    waiting: Mapping[str, str],
    *,
    weights_are_initializers: bool,
) -> Iterator[Finding]:
    """The checker with shape inference, then names and shapes against the manifest.

    `waiting`: final names of data files -> those that they have until the pack is published.
    """
    try:
        model = check_model_file(view.locate(file.path), waiting)
    except LoraQuantError as error:
        yield finding_of(error, shown=view.show(file.path))
        return
    if weights_are_initializers:
        yield from _weights(view, file, model)
    alpha = view.manifest.alpha
    inputs = [value.name for value in model.proto.graph.input]
    if alpha is not None and alpha.tensor not in inputs:
        yield view.error(
            "graph-alpha",
            f"the graph has no input {alpha.tensor!r} for the strengths; it has {some(inputs)}",
            file.path,
            tensor=alpha.tensor,
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
            hint="graph and manifest come from different builds",
            tensor=tensor.name,
        )
