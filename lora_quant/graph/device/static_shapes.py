"""A graph with a size for every axis, as compilers of devices want it.

    input_ids [batch, sequence]   +   batch=1, sequence=16   ->   input_ids [1, 16]

The names are those of symbolic axes. Shapes of the tensors in between are inferred anew; what no
longer fits is dropped. What only depends on shapes and on constants is computed here: see
lora_quant.graph.device.static_constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from lora_quant.errors import ConfigError, GraphError, Where, did_you_mean

FIELD = "dims"
_MOST_ELEMENTS = 2**31 - 1


def parse_dims(dims: Iterable[str]) -> dict[str, int]:
    """`NAME=SIZE` texts as sizes by name; the last `=` separates.

    Raises ConfigError for a text of another form, a size below 1, or a name that is given twice.
    """
    found: dict[str, int] = {}
    for text in dims:
        name, separator, size = text.rpartition("=")
        name, size = name.strip(), size.strip()
        if not separator or not name or not (size.isascii() and size.isdigit()):
            raise ConfigError(
                f"the size of an axis is given as {text!r}, expected NAME=SIZE",
                where=Where(field=FIELD),
                hint="for example --dim sequence_length=64",
            )
        if len(size) > 10 or not 1 <= int(size) <= _MOST_ELEMENTS:
            raise ConfigError(
                f"the axis {name!r} is given the size {size}, expected 1 to {_MOST_ELEMENTS}",
                where=Where(field=FIELD),
            )
        if found.setdefault(name, int(size)) != int(size):
            raise ConfigError(
                f"the axis {name!r} is given two sizes: {found[name]} and {size}",
                where=Where(field=FIELD),
                hint="give each axis once",
            )
    return found


def fix_axes(proto: ModelProto, dims: Mapping[str, int], where: Where) -> None:
    """Give the symbolic axes of `proto` their sizes, in place, and infer the shapes in between.

    Raises ConfigError for a name that the graph does not have, and for inputs whose axes are open
    still; GraphError where the sizes contradict the graph.
    """
    graph = proto.graph
    known = {
        dim.dim_param
        for value in (*graph.input, *graph.output, *graph.value_info)
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_param
    }
    for name in dims:
        if name not in known:
            raise ConfigError(
                f"the graph has no axis {name!r}",
                where=Where(file=where.file, field=FIELD),
                hint=did_you_mean(name, known)
                if known
                else "its shapes are fixed already: leave out --dim",
            )
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    for value in (*graph.input, *graph.output, *graph.value_info):
        _substitute(value, dims)
    _check_inputs(inputs, where)
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    infer_shapes(proto, where)


def infer_shapes(proto: ModelProto, where: Where) -> None:
    """Keep the types that have sizes only, and infer the others; operators that ONNX does not know
    stay without.

    Raises GraphError where a shape contradicts what its operator computes, unless the graph has
    operators of ONNX Runtime in the default domain: nobody checks such a graph.
    """
    graph = proto.graph
    kept = [value for value in graph.value_info if is_static(value)]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    is_strict = all(
        node.domain not in ("", "ai.onnx") or onnx.defs.has(node.op_type) for node in graph.node
    )
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=is_strict, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise _contradiction(error, where) from error
    del graph.value_info[:]
    graph.value_info.extend(inferred.graph.value_info)
    for value, found in zip(graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(found)


def is_static(value: ValueInfoProto) -> bool:
    """Whether the type of a tensor tells a size for every axis."""
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def element_types(proto: ModelProto) -> dict[str, int]:
    """The element type of every tensor of the top-level graph that is known."""
    graph = proto.graph
    found = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    found.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    return {name: element for name, element in found.items() if element != TensorProto.UNDEFINED}


def _substitute(value: ValueInfoProto, dims: Mapping[str, int]) -> None:
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_param in dims:
            size = dims[dim.dim_param]
            dim.Clear()
            dim.dim_value = size


def _check_inputs(inputs: Iterable[ValueInfoProto], where: Where) -> None:
    open_axes: dict[str, list[str]] = {}
    for value in inputs:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and not tensor.HasField("shape"):
            raise GraphError(
                f"the graph does not tell the shape of its input {value.name!r}",
                where=Where(file=where.file, tensor=value.name),
                hint="export the graph with the shapes of its inputs",
            )
        for axis, dim in enumerate(tensor.shape.dim):
            if not dim.HasField("dim_value"):
                place = f"axis {axis} of input {value.name!r}"
                open_axes.setdefault(dim.dim_param, []).append(place)
    nameless = open_axes.pop("", [])
    if nameless:
        raise GraphError(
            f"{len(nameless)} axes have neither a size nor a name: {', '.join(nameless[:5])}",
            where=where,
            hint="export the graph with names for its open axes, or with sizes",
        )
    if open_axes:
        told = "; ".join(f"{name!r} ({_some_places(p)})" for name, p in open_axes.items())
        names = " ".join(f"--dim {_quoted(name)}=SIZE" for name in open_axes)
        raise ConfigError(
            f"the graph has axes without a size, and this target needs one for each: {told}",
            where=Where(file=where.file, field=FIELD),
            hint=f"give them with {names}",
        )


def _some_places(places: list[str]) -> str:
    """The first of the places of one axis, and how many more there are."""
    more = len(places) - 1
    return places[0] + (f" and {more} more" if more else "")


def _quoted(name: str) -> str:
    return f"'{name}'" if set(name) & set(" *+()|&;<>$") else name


def _contradiction(error: Exception, where: Where) -> GraphError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return GraphError(
        f"the graph does not work with these sizes: {reason}",
        where=where,
        hint="check the sizes that --dim gives, or the graph with onnx.checker",
    )
