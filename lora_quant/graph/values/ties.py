"""The output layer whose weight is the table of an embedding, stored a second time.

    embed_tokens.weight [V, dim]   =   lm_head's constant [dim, V], transposed by the exporter

A model with tied embeddings has one parameter, its graph often two initializers. Whether they are
one is told by their values: all of some rows, spread over the table.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lora_quant.errors import Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.records import LinearNode, ReplacedParameter, TensorRecord

_SAMPLES = 64


def tied_output(
    base: BaseGraph, table: ReplacedParameter, rows: Iterable[int]
) -> ReplacedParameter | None:
    """What else holds the values of `table` `[V, dim]`: compared at `rows` and 64 others.

    Raises GraphError or InputMissingError if the values cannot be read.
    """
    vocabulary, dim = table.weight.shape
    sample = sorted({*rows, *np.linspace(0, vocabulary - 1, _SAMPLES).astype(int).tolist()})
    own = _rows(base, table, sample)
    for linear in base.catalog.linears.values():
        fits = (linear.out_features, linear.in_features) == (vocabulary, dim)
        fits = fits and linear.dtype == table.weight.dtype and not linear.is_quantized
        if fits and linear.weight != table.weight.name:
            other = _parameter(base, linear)
            if np.array_equal(_rows(base, other, sample), own):
                return other
    return None


def _parameter(base: BaseGraph, linear: LinearNode) -> ReplacedParameter:
    dims = tuple(base.index.initializers[linear.weight].dims)
    name = base.catalog.name_of(linear.product) or linear.product
    record = TensorRecord(linear.weight, dims, linear.dtype)
    return ReplacedParameter(f"{name}.weight", record, linear.weight_is_in_out)


def _rows(
    base: BaseGraph, one: ReplacedParameter, rows: list[int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Rows of `[V, dim]`, whichever way round they are stored."""
    tensor = base.index.initializers[one.weight.name]
    first, second = one.weight.shape
    with stored_values(base.model, tensor, Where(file=base.path, tensor=tensor.name)) as read:
        if not one.transposed:
            return np.stack([read(row * second, second) for row in rows])
        lines = [read(line * second, second)[rows] for line in range(first)]
        return np.stack(lines, axis=1)
