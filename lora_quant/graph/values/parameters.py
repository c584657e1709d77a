"""The initializer whose values a use case replaces, to replace a parameter of the source model.

It must hold that parameter and no other, as floats. What an exporter folded into something else,
quantized, or stored once for two modules, cannot be replaced and is refused with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from lora_quant.errors import AttachPointError, Where, did_you_mean
from lora_quant.graph.attach.name_table import same_module
from lora_quant.graph.attach.parameter_table import FoundTensor, parse_parameter
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.element_types import FLOAT_TYPES, type_name
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.records import ReplacedParameter, TensorRecord


def find_parameter(
    base: BaseGraph,
    parameter: str,
    where: Where,
    *,
    shape: tuple[int, ...] | None = None,
    together: Collection[str] = (),
    with_ties: bool = False,
) -> ReplacedParameter:
    """The initializer of `parameter` (`model.norm.weight`); `where` is the place for errors.

    `shape`, if known, tells which way round a weight is stored. One initializer may serve several
    parameters (tied embeddings) if all of them are among `together`, which are replaced by the same
    values, or with `with_ties`: all of them are replaced, whichever they are. Raises
    AttachPointError if there is not exactly one initializer that can be replaced.
    """
    found = _one(base, parameter, where)
    where = replace(where, tensor=found.initializer)
    stored = base.index.initializers.get(found.initializer)
    if stored is None:
        raise _refused(parameter, "it is the value of a Constant node", where)
    if stored.data_type not in FLOAT_TYPES:
        reason = f"it is stored as {type_name(stored.data_type)}, expected float32, float16 or "
        raise _refused(parameter, f"{reason}bfloat16", where)
    leaf = parse_parameter(parameter).leaf
    alone = [
        reader
        for reader in base.parameters.other_readers(found)
        if not with_ties and not any(_names(other, reader, leaf) for other in together)
    ]
    if alone:
        readers = " and ".join(map(repr, alone[:3]))
        raise _refused(
            parameter,
            f"the graph stores it once for several modules, among them {readers}",
            where,
            hint="export the graph from a model whose parameters are neither shared nor equal",
        )
    dims = tuple(stored.dims)
    transposed = len(dims) == 2 and base.parameters.is_flipped(found, parameter)
    if shape in (dims, dims[::-1]) and len(dims) == 2 and dims[0] != dims[1]:
        transposed = shape != dims
    record = TensorRecord(found.initializer, dims, FLOAT_TYPES[stored.data_type])
    return ReplacedParameter(parameter, record, transposed)


def parameter_values(base: BaseGraph, one: ReplacedParameter) -> NDArray[Any]:
    """The base's own values of an initializer, of its shape and dtype; the array may be written.

    Raises GraphError or InputMissingError if they cannot be read.
    """
    stored = base.index.initializers[one.weight.name]
    with stored_values(base.model, stored, Where(file=base.path, tensor=one.weight.name)) as read:
        return read(0, math.prod(one.weight.shape)).reshape(one.weight.shape).copy()


def _one(base: BaseGraph, parameter: str, where: Where) -> FoundTensor:
    found = base.parameters.find(parameter)
    if len({one.initializer for one in found}) > 1:
        names = ", ".join(repr(one.initializer) for one in found)
        raise AttachPointError(
            f"parameter {parameter!r} fits {len(found)} tensors of the graph, expected exactly "
            f"one: {names}",
            where=where,
            hint="export the graph with the module paths of the model that the adapter was "
            "trained on",
        )
    if found:
        return found[0]
    reason = base.parameters.reason(parameter)
    if reason is not None:
        raise _refused(parameter, reason, where)
    raise AttachPointError(
        f"the graph has no parameter {parameter!r}",
        where=where,
        hint=did_you_mean(parameter, base.parameters.paths),
    )


def _names(parameter: str, module: str, leaf: str) -> bool:
    other = parse_parameter(parameter)
    return other.leaf == leaf and same_module(other.module, module)


def _refused(
    parameter: str,
    reason: str,
    where: Where,
    hint: str = "export the graph so that it keeps this parameter as a float initializer",
) -> AttachPointError:
    return AttachPointError(
        f"parameter {parameter!r} cannot be replaced: {reason}", where=where, hint=hint
    )
