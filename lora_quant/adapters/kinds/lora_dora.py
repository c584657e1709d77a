"""DoRA: every row of the merged weight has a trained norm m.

    g = m / |W + s B A|          y = g * (W x) + (g * B) (s * (A x)) + b

with the norm of each output over all other axes (of an embedding: of each dimension over the
vocabulary). The bias is not scaled, so that c = (1 - g) b. The norm is summed over the tiles of W
from the rows of the sum itself: nothing cancels, and W is never whole.

For a convolution with groups, PEFT (0.21.2) takes the norm of another sum: it reads B
`[out, r / groups]` as `[out / groups, r]`, and its product with A `[r, in, *kernel]` as
`[out, in / groups, *kernel]`. So m was trained beside that norm, and it is taken here too.

Files of LyCORIS have a field `lora_quant_norm_eps`: what that library adds to the norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import FloatArray, Lowered, ModuleShape, Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

# the second one in a plain state dict, where the magnitude is a module of its own
MAGNITUDE = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
NORM_EPS = "lora_quant_norm_eps"
_TRAINED_BIAS = "base_layer.bias"

Vector = NDArray[np.float64]


def beside_biases(
    modules: Mapping[str, Mapping[str, str]], others: Mapping[str, str]
) -> dict[str, Mapping[str, str]]:
    """The tensors of each DoRA module with the bias that was trained beside it, if there is one."""
    return {
        module: {**names, _TRAINED_BIAS: others[f"{module}.bias"]}
        if f"{module}.bias" in others and not names.keys().isdisjoint(MAGNITUDE)
        else names
        for module, names in modules.items()
    }


def dora_shape(shape: ModuleShape, headers: Headers) -> ModuleShape:
    """Announce g and c; AdapterError if the magnitude and `use_dora` do not agree."""
    name = next((name for name in MAGNITUDE if headers.has(name)), None)
    where = Where(file=headers.source.path, module=headers.module)
    if not headers.config.flag("use_dora"):
        if name is not None:
            raise UnsupportedAdapterError(
                "the tensor is the magnitude of DoRA, but use_dora is not set",
                where=replace(where, tensor=headers.names[name]),
                hint="set use_dora to true if it was trained so; PEFT leaves the tensor out else",
            )
        return shape
    name = name or MAGNITUDE[0]
    dims = headers.dims(name)
    if max(dims) != shape.out_features or np.prod(dims, dtype=object) != shape.out_features:
        raise headers.error(
            name,
            f"{name} has shape {list(dims)}, expected one value for each of the "
            f"{shape.out_features} outputs",
        )
    if headers.has(_TRAINED_BIAS):
        headers.expect({_TRAINED_BIAS: (shape.out_features or 0,)})
    vectors = {"g"} if shape.is_embedding else {"g", "c"}
    return replace(shape, vectors=shape.vectors | vectors, need=Need.WEIGHT)


def with_magnitude(lowered: Lowered, module: ModuleTensors) -> Lowered:
    """g `[out]`, B -> g B and, where the base has a bias, c = (1 - g) b; float64."""
    name = next((name for name in MAGNITUDE if name in module), None)
    if name is None:
        return lowered
    norms = row_norms(lowered, module) + module.config.number(NORM_EPS, 0.0)
    if not norms.all():
        raise AdapterError(
            f"row {int(np.argmin(norms))} of the base's weight with its update is zero, and DoRA "
            "divides by its norm",
            where=Where(file=module.source.path, module=module.shape.module),
            hint="check that the base is the one of the training",
        )
    g = module[name].reshape(-1) / norms
    c = None if module.shape.is_embedding else (1 - g) * _bias(module)
    has_bias = c is not None and bool(np.any(c))
    return replace(lowered, B=g[:, None] * lowered.B, g=g, c=c if has_bias else None)


def row_norms(lowered: Lowered, module: ModuleTensors) -> Vector:
    """|W + B diag(s) A| of every row, `[out]`; for groups the sum that PEFT takes for it."""
    out, groups = len(lowered.B), module.shape.groups
    squares = np.zeros(out)
    B = lowered.B.astype(np.float64).reshape(out // groups, -1) * lowered.s
    A = lowered.A.astype(np.float64)
    width = A.shape[1] // groups
    for tile in module.base.tiles(module.shape.module):
        values = tile.values.reshape(len(tile.values), -1)
        if groups == 1:
            squares[tile.rows] += _squares(B[tile.rows], A[:, tile.columns], values)
            continue
        rows, columns = np.arange(out)[tile.rows], np.arange(width)[tile.columns]
        for group in np.unique(rows % groups):
            of_group = rows % groups == group
            chosen = rows[of_group]
            inputs = A[:, group * width + columns]
            squares[chosen] += _squares(B[chosen // groups], inputs, values[of_group])
    return np.sqrt(squares)


def _squares(B: Vector, A: Vector, values: FloatArray) -> Vector:
    """Sums over the rows of (values + B A)^2, of a tile."""
    merged = B @ A.reshape(len(A), -1)
    merged += values
    squares: Vector = np.einsum("ij,ij->i", merged, merged)
    return squares


def _bias(module: ModuleTensors) -> Vector:
    """The bias `[out]` beside the adapter: a trained one of the file, else the base's own."""
    if _TRAINED_BIAS in module:
        return module[_TRAINED_BIAS]
    return module.base.bias(module.shape.module)
