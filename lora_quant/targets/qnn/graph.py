"""The grids of the qnn target's graph, as the graph room takes them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import BLOCKWISE
from lora_quant.engines.qnn import has_wide_products
from lora_quant.errors import EncodingsError, Where
from lora_quant.graph.device.constant_grids import ConstantGrid
from lora_quant.graph.device.device_graph import CodedInput, QuantizedGraph
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.records import TensorRecord
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.axes import base_facts, facts_by_size, with_axes
from lora_quant.targets.qnn.grids import SharedGrids
from lora_quant.targets.qnn.inputs import QnnInput, QnnInputs
from lora_quant.targets.quantized.grids import activation_grid, onnx_grid

_BIAS_BITS = 17
"""From here on an encoding is that of a bias: on the grid of sums, which is computed anew."""


def quantize_graph(
    compilation: Compilation, graph: QuantizedGraph, shared: SharedGrids, inputs: QnnInputs
) -> None:
    """Put every tensor of the graph on its grid.

    Raises EncodingsError for encodings that the device has no operators for, and tensors without.
    """
    where = Where(file=compilation.base.path)
    constants = graph.constants
    known = graph.activations | graph.copies.keys()
    encodings = shared.activations()
    activations = {
        name: activation_grid(encoding, where=Where(file=where.file, tensor=name))
        for name, encoding in encodings.items()
        if name in known and name not in constants
    }
    quantized = {one.tensor.name: _coded(one) for one in inputs.quantized}
    weights = {
        name: made
        for name, made in _weights(compilation, constants, encodings).items()
        if name not in quantized
    }
    graph.quantize(
        activations,
        weights,
        quantized,
        _computed_dtype(compilation, encodings),
        wide_products=has_wide_products(compilation.options.htp_arch),
    )
    if inputs.alpha is not None:
        graph.default(inputs.alpha.name)


def _weights(
    compilation: Compilation,
    constants: Mapping[str, tuple[int, ...]],
    activations: Mapping[str, Encoding],
) -> dict[str, ConstantGrid]:
    """The grids of constants that have an encoding, their own or that of what was folded."""
    base = compilation.base
    given: Mapping[str, Encoding] = compilation.having("merged").base.encodings
    known = {
        name: encoding
        for name, encoding in given.items()
        if name in constants and encoding.scale is not None and encoding.bits < _BIAS_BITS
    }
    facts = {**facts_by_size(base, known), **base_facts(base)}
    found: dict[str, ConstantGrid] = {}
    for name, encoding in known.items():
        where = Where(file=base.path, tensor=name)
        if encoding.granularity in BLOCKWISE:
            raise EncodingsError(
                "the encoding of a weight is blockwise, expected per tensor or per channel",
                where=where,
                hint="the operators of this target have no blocks: calibrate the base per channel",
            )
        record = TensorRecord(name, constants[name], "float32")
        encoding = with_axes(activations.get(name, encoding), record, facts)
        grid = onnx_grid(encoding, record.shape, where=where)
        if grid is not None:
            found[name] = _with_ends(grid, encoding)
    return found


def _with_ends(grid: Grid, encoding: Encoding) -> ConstantGrid:
    whole = ConstantGrid.whole(grid)
    if encoding.bits in (8, 16):
        return whole
    middle = 2 ** (encoding.bits - 1) if encoding.symmetric else 0
    return ConstantGrid(grid, -middle, encoding.steps - middle)


def _coded(one: QnnInput) -> CodedInput:
    grid = Grid(
        one.dtype,
        np.array([one.encoding.stored_scale], np.float32),
        np.array([one.encoding.zero_point], np.dtype(one.dtype)),
    )
    code = int(one.codes(np.full(one.tensor.shape, one.default)).reshape(-1)[0])
    return CodedInput(grid, code)


def _computed_dtype(compilation: Compilation, encodings: Mapping[str, Encoding]) -> str:
    """The type of most activations."""
    bits = [e.bits for e in encodings.values() if e.scale is not None and e.bits in (8, 16)]
    most = max((8, 16), key=bits.count) if bits else compilation.options.activation_bits
    return f"uint{most}"
