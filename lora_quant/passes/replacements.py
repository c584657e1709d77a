"""Parameters of the base that adapters replace, and the initializers that hold them.

    modules_to_save, trained biases, norms, rows of an embedding  ->  an initializer of the graph

The initializer becomes updatable: a use case whose adapters replace it brings their values, every
other use case the base's own. Beside an adapted embedding PEFT saves the base's whole table; where
it is the graph's, nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.description import ParameterShape
from lora_quant.adapters.lowered import Need
from lora_quant.errors import AttachPointError, UnsupportedAdapterError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.element_types import DTYPE_OF
from lora_quant.graph.records import ReplacedParameter
from lora_quant.graph.values.parameters import find_parameter, parameter_values
from lora_quant.graph.values.ties import tied_output
from lora_quant.passes.factors import cast_to


@dataclass(frozen=True)
class Replacement:
    """One parameter that one adapter replaces, whole or in rows."""

    adapter: str
    shape: ParameterShape
    target: ReplacedParameter


def find_replacements(
    base: BaseGraph, adapters: Iterable[Adapter]
) -> tuple[tuple[Replacement, ...], tuple[Finding, ...]]:
    """All replacements, and what was noticed.

    Raises AttachPointError for a parameter that the graph does not have or that does not fit it,
    UnsupportedAdapterError for one that the adapter's own update is computed from.
    """
    found: list[Replacement] = []
    findings: list[Finding] = []
    for adapter in adapters:
        for parameter, shape in adapter.parameters.items():
            where = Where(file=base.path, adapter=adapter.name, module=parameter)
            target = find_parameter(
                base,
                parameter,
                where,
                shape=_whole(shape),
                together=adapter.parameters,
                with_ties=shape.with_ties,
            )
            _check_shape(shape, target, where)
            if shape.rows is None and _is_as_it_was(base, adapter, parameter, target):
                findings.append(_unchanged(adapter, parameter))
                continue
            _check_not_read(base, adapter, shape, target)
            found.append(Replacement(adapter.name, shape, target))
            tied = tied_output(base, target, shape.rows or ()) if shape.with_ties else None
            if tied is not None:
                _check_not_read(base, adapter, shape, tied)
                found.append(Replacement(adapter.name, shape, tied))
                findings.append(_tied(adapter, shape, tied))
        _check_shared(adapter, [one for one in found if one.adapter == adapter.name])
    return tuple(found), tuple(findings)


def replaced_values(
    base: BaseGraph, one: ReplacedParameter, adapter: Adapter | None, shape: ParameterShape | None
) -> NDArray[np.generic]:
    """Values of one initializer for a use case: the adapter's, or the base's own without one.

    Raises AdapterError for values that the initializer's dtype cannot hold.
    """
    if adapter is None or shape is None:
        return parameter_values(base, one)
    values = adapter.parameter(shape.parameter)
    dtype = DTYPE_OF[one.weight.dtype]
    where = Where(file=adapter.checkpoint.tensors.path, adapter=adapter.name, tensor=shape.tensor)
    if shape.rows is not None:
        own = parameter_values(base, one)
        record = replace(one.weight, shape=values.shape)
        rows = own.T if one.transposed else own
        rows[list(shape.rows)] = cast_to(values, record, dtype, where)
        return own
    return cast_to(values.T if one.transposed else values, one.weight, dtype, where)


def distinct_targets(replacements: Iterable[Replacement]) -> tuple[ReplacedParameter, ...]:
    """Every initializer that is replaced, once, however adapters spell its parameter."""
    return tuple({r.target.weight.name: r.target for r in reversed(list(replacements))}.values())


def _whole(shape: ParameterShape) -> tuple[int, ...] | None:
    """The shape of the parameter, None where the adapter brings some of its rows."""
    return shape.shape if shape.rows is None else None


def _check_shape(shape: ParameterShape, target: ReplacedParameter, where: Where) -> None:
    stored = target.weight.shape
    logical = tuple(reversed(stored)) if target.transposed else stored
    fits = shape.shape == logical
    if shape.rows is not None:
        fits = shape.shape[1:] == logical[1:]
    beyond = [row for row in shape.rows or () if row >= logical[0]]
    if beyond:
        raise AttachPointError(
            f"the adapter replaces row {beyond[0]} of {shape.parameter!r}, which has {logical[0]} "
            "rows in the graph",
            where=where,
            hint="export the base graph from the model with its embeddings resized as they were in "
            "training",
        )
    if not fits:
        raise AttachPointError(
            f"the adapter's {shape.parameter!r} has shape {list(shape.shape)}, the graph's has "
            f"{list(logical)}",
            where=where,
            hint="the adapter was trained on another base model",
        )


def _is_as_it_was(
    base: BaseGraph, adapter: Adapter, parameter: str, target: ReplacedParameter
) -> bool:
    """Whether the adapter's copy of a table of an adapted module is the graph's own."""
    module, _, leaf = parameter.rpartition(".")
    if leaf != "weight" or module not in adapter.shapes:
        return False
    given = adapter.parameter(parameter)
    stored = given.T if target.transposed else given
    own = parameter_values(base, target)
    with np.errstate(over="ignore"):  # what does not fit the base's dtype is another value
        cast = stored.astype(own.dtype)
    return bool(np.array_equal(cast.reshape(own.shape), own))


def _check_not_read(
    base: BaseGraph, adapter: Adapter, shape: ParameterShape, target: ReplacedParameter
) -> None:
    """The graph has the old weight only: an update that reads the weight was trained on the new."""
    reading = NameTable(m for m, one in adapter.shapes.items() if one.need is Need.WEIGHT)
    if not reading.paths:
        return
    path, _, leaf = target.parameter.rpartition(".")
    readers = [path] if leaf == "weight" else []
    for nodes in (base.catalog, base.catalog.embeddings):
        for product, linear in nodes.linears.items():
            if linear.weight == target.weight.name:
                readers.append(nodes.name_of(product) or product)
    module = next((module for reader in readers for module in reading.find(reader)), None)
    if module is None:
        return
    hint = "export a base that holds the new values"
    if shape.rows is None:
        hint += ", or, if they were not trained, save the adapter without them "
        hint += "(save_embedding_layers=False)"
    raise UnsupportedAdapterError(
        f"the adapter replaces {shape.parameter!r}, from which its update of module {module!r} is "
        "computed, expected the values that the graph has",
        where=Where(
            file=adapter.checkpoint.tensors.path,
            adapter=adapter.name,
            module=module,
            tensor=shape.tensor,
        ),
        hint=hint,
    )


def _tied(adapter: Adapter, shape: ParameterShape, tied: ReplacedParameter) -> Finding:
    return Finding(
        rule="adapter/tied-rows",
        severity=Severity.NOTE,
        message=f"the graph holds the values of {shape.parameter!r} in {tied.parameter!r} as well: "
        "the base's embeddings are tied, and the rows are replaced in both",
        where=Where(file=adapter.checkpoint.tensors.path, adapter=adapter.name),
    )


def _check_shared(adapter: Adapter, found: Iterable[Replacement]) -> None:
    """Parameters that share an initializer must be replaced by the same values."""
    first: dict[str, Replacement] = {}
    for one in found:
        other = first.setdefault(one.target.weight.name, one)
        if other.shape == one.shape:
            continue
        values = adapter.parameter(one.shape.parameter)
        same = np.array_equal(values, adapter.parameter(other.shape.parameter))
        if not same or one.shape.rows != other.shape.rows:
            raise AttachPointError(
                f"the adapter replaces {other.shape.parameter!r} and {one.shape.parameter!r} by "
                "different values, but the graph stores them once",
                where=Where(
                    file=adapter.checkpoint.tensors.path,
                    adapter=adapter.name,
                    tensor=one.target.weight.name,
                ),
                hint="export the graph from a model whose embeddings are not tied",
            )


def _unchanged(adapter: Adapter, parameter: str) -> Finding:
    return Finding(
        rule="adapter/unchanged-parameter",
        severity=Severity.NOTE,
        message=f"the adapter brings {parameter!r} as the base has it: it is not replaced",
        where=Where(file=adapter.checkpoint.tensors.path, adapter=adapter.name),
    )
