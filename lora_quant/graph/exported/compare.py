"""Whether a graph without its branches is the base, and which of its tensors are the base's.

    exported, y read as h     x -> MatMul -> /q/Relu -> ...     the same values, by whatever names
    base                      x -> MatMul -> /p/Relu -> ...     and in whatever order

Structure and small constants are compared as numbers of values; then the bytes of the weights,
block by block. Metadata, doc strings and the IR version do not matter, nor does what no output
needs.
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_quant.graph.exported.comparison.differing import differing
from lora_quant.graph.exported.comparison.equal_values import check_equal_values
from lora_quant.graph.exported.comparison.first_difference import first_difference, unequal_values
from lora_quant.graph.exported.comparison.interface import compare_opsets, pair_inputs, pair_outputs
from lora_quant.graph.exported.comparison.numbering import number_both
from lora_quant.graph.exported.comparison.pairing import (
    pair_tensors,
    with_widened,
    without_partner,
)
from lora_quant.graph.exported.comparison.stored_bytes import StoredTensor, is_same_place
from lora_quant.graph.exported.comparison.trunk import Trunk, trunk_of
from lora_quant.graph.exported.comparison.value_shapes import compare_shapes
from lora_quant.graph.exported.records import Correspondence, ExportedGraph


def compare_with_base(base: Trunk, exported: ExportedGraph) -> Correspondence:
    """Which tensors of `exported`, its branches left out, are which of `base`.

    `base` is `trunk_of` the base graph: one for all graphs that are held against it. Raises
    GraphError at the first difference in graph order, of an operator, an attribute, a connection,
    an input, an output, a shape or a small constant, and then of the bytes of a weight; for a
    branch at one of several equal nodes if nothing tells at which; InputMissingError if a data file
    cannot be read.
    """
    sums = {point.y: point.h for point in exported.points}
    other = trunk_of(exported.graph, sums)
    compare_opsets(base, other)
    inputs = pair_inputs(base, other)
    outputs = pair_outputs(base, other)
    wanted, got = number_both(base, other, inputs)
    difference = first_difference(wanted, got, outputs)
    if difference is not None:
        raise difference
    tensors = pair_tensors(wanted, got, inputs, outputs)
    check_equal_values(wanted, got, tensors, outputs, exported.points)
    compare_shapes(base, other, {**tensors, **dict(outputs)})
    shared, compared = _compare_weights(base, other, tensors)
    tensors = with_widened(tensors, other, sums.values())
    same, left_out = without_partner(tensors, other)
    return Correspondence(
        tensors=tensors,
        same=same,
        left_out=left_out,
        shared_bytes=shared,
        compared_bytes=compared,
    )


def _compare_weights(base: Trunk, exported: Trunk, tensors: dict[str, str]) -> tuple[int, int]:
    """Bytes of weights that both read at one place, and bytes that were found equal."""
    shared = compared = 0
    for name, one, other in _weights(base, exported, tensors):
        size = one.size
        if is_same_place(one, other):
            shared += size
            continue
        how = unequal_values(one, other)
        if how is not None:
            partner = tensors[name]
            known = f"{name!r}" if name == partner else f"{name!r} (there {partner!r})"
            raise differing(
                f"the values of {known} {how}",
                base.graph.path,
                exported.graph.path,
                tensor=name,
            )
        compared += size
    return shared, compared


def _weights(
    base: Trunk, exported: Trunk, tensors: dict[str, str]
) -> Iterator[tuple[str, StoredTensor, StoredTensor]]:
    """Each constant of the exported graph with that of the base."""
    for name, partner in tensors.items():
        other = exported.constants.get(name)
        if other is not None:
            yield name, base.constants[base.root(partner)], other
