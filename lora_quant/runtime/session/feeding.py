"""Inputs of an application against the inputs of a graph, before the engine sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_quant.engines.onnxruntime import Array, GraphValue
from lora_quant.errors import VerificationError, Where, did_you_mean, some


def check_fed(
    inputs: Mapping[str, Array],
    required: Mapping[str, GraphValue],
    optional: Mapping[str, GraphValue],
    reserved: Collection[str],
    source: Path,
) -> dict[str, Array]:
    """The inputs as arrays.

    Raises VerificationError for one that is missing or unknown, of another dtype, number of axes or
    fixed size, or `reserved`: what use cases and strengths set, which values given by hand would
    mix.
    """
    known = {**optional, **required}
    fed: dict[str, Array] = {}
    for name, given in inputs.items():
        where = Where(file=source, tensor=name)
        if name in reserved:
            raise VerificationError(
                f"the input {name!r} belongs to use cases and their strengths: a value given by "
                "hand would mix two of them",
                where=where,
                hint="leave it out; choose use case and strengths with --use-case and --alpha, in "
                "Python with UseCaseRunConfig",
            )
        value = known.get(name)
        if value is None:
            raise VerificationError(
                f"the graph has no input {name!r}", where=where, hint=did_you_mean(name, known)
            )
        fed[name] = np.asarray(given)
        _check(fed[name], value, where)
    missing = [name for name in required if name not in inputs]
    if missing:
        raise VerificationError(
            f"the inputs lack {some(missing)}",
            where=Where(file=source),
            hint=f"the graph takes {some(list(required))}",
        )
    return fed


def check_outputs(outputs: Sequence[str], known: Collection[str], source: Path) -> None:
    """Raises VerificationError for an output that the graph has not, and for a lone text."""
    if isinstance(outputs, str):
        raise VerificationError(
            f"outputs are given as the text {outputs!r}, expected a list of names",
            where=Where(file=source),
            hint=f"give [{outputs!r}]",
        )
    for name in outputs:
        if name not in known:
            raise VerificationError(
                f"the graph has no output {name!r}",
                where=Where(file=source, tensor=name),
                hint=did_you_mean(name, known),
            )


def _check(array: Array, value: GraphValue, where: Where) -> None:
    is_text = value.dtype == "string" and array.dtype.kind in "OUST"
    if array.dtype.name != value.dtype and not is_text:
        raise VerificationError(
            f"input {value.name!r} is {array.dtype}, expected {value.dtype}",
            where=where,
            hint=f"convert it: numpy.asarray(values, {value.dtype!r})",
        )
    fits = len(array.shape) == len(value.shape) and all(
        wanted == size
        for wanted, size in zip(value.shape, array.shape, strict=True)
        if isinstance(wanted, int)
    )
    if not fits:
        sizes = ", ".join("?" if size is None else str(size) for size in value.shape)
        raise VerificationError(
            f"input {value.name!r} has the shape {list(array.shape)}, expected [{sizes}]",
            where=where,
        )
