"""PiSSA and OLoRA, unconverted: the base lost s B0 A0 before training, where B0 A0 started.

    y = (W - s B0 A0) x + s B (A x)  =  W x + s [B, -B0] ([A; A0] x)          rank 2 r

    PiSSA    s B0 A0 = U_r S_r V_r, the r largest of the SVD of W
    OLoRA    B0 A0 = Q_r R_r of W = Q R: W projected on its first r columns

Only the products count, so that the signs of singular vectors and of Q do not. PEFT moves linear
modules only: an embedding of such an adapter is plain LoRA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import BaseModules, whole_weight
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.kinds.lora_pairs import appended
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

Matrix = NDArray[np.float64]
# PEFT decomposes in float32: what is equal to that precision is in no certain order.
_FLOAT32 = 2.0**-23


def start_of(config: PeftConfig) -> str | None:
    """`pissa` or `olora` if the configuration says that the base was moved, else None."""
    init = config.fields.get("init_lora_weights")
    name = init.lower() if isinstance(init, str) else ""
    return name if name in _PRODUCTS else None


def start_shape(shape: ModuleShape, headers: Headers) -> ModuleShape:
    """Twice the rank, for a linear module of a base that was moved."""
    start = start_of(headers.config)
    if start is None or shape.is_embedding:
        return shape
    if shape.kernel:
        raise UnsupportedAdapterError(
            f"the module is a convolution, and init_lora_weights {start!r} starts linear modules "
            "only",
            where=Where(file=headers.source.path, module=headers.module),
            hint="correct init_lora_weights: PEFT cannot have trained this",
        )
    if start == "olora" and headers.config.flag("fan_in_fan_out"):
        raise UnsupportedAdapterError(
            "fan_in_fan_out is set beside init_lora_weights 'olora', where PEFT takes the "
            "transposed weight apart",
            where=replace(headers.config.where("fan_in_fan_out"), module=headers.module),
            hint="save the adapter with "
            "save_pretrained(path_initial_model_for_weight_conversion=...), which needs no base",
        )
    smallest = min(shape.in_features or 0, shape.out_features or 0)
    if shape.rank > smallest:
        raise headers.error(
            "lora_A.weight",
            f"the rank is {shape.rank}, expected at most {smallest}: the base's weight has no more "
            f"directions for {start!r} to start from",
        )
    need_scale(shape, headers, "init_lora_weights")
    return replace(shape, rank=2 * shape.rank, need=Need.WEIGHT, adds_up=False)


def without_start(lowered: Lowered, module: ModuleTensors) -> Lowered:
    """[B, -B0] and [A; A0], float64."""
    start = start_of(module.config)
    if start is None or module.shape.is_embedding:
        return lowered
    B0, A0 = _PRODUCTS[start](module, lowered.rank)
    scale = module.shape.scale
    return appended(lowered, A0, -B0, scale)


def cut_is_determined(S: Matrix, at: int) -> bool:
    """Whether singular values on both sides of a cut can be told apart in float32."""
    return at >= len(S) or S[0] == 0 or S[at - 1] - S[at] > _FLOAT32 * S[0]


def need_scale(shape: ModuleShape, headers: Headers, field: str) -> None:
    """AdapterError for a scale that nothing can be divided by."""
    if shape.scale > 0:
        return
    raise AdapterError(
        f"the scale of module {shape.module!r} is {shape.scale:g}, expected more than 0: "
        f"{field} divides by it",
        where=replace(headers.config.where("lora_alpha"), module=shape.module),
        hint="set the lora_alpha that it was trained with",
    )


def _pissa(module: ModuleTensors, rank: int) -> tuple[Matrix, Matrix]:
    """B0 = U sqrt(S/s), A0 = sqrt(S/s) V of the `rank` largest."""
    W = whole_weight(module.base, module.shape.module)
    S, images, vectors = _largest(W if len(W) >= len(W.T) else W.T, rank + 1)
    if not cut_is_determined(S, rank):
        raise _undetermined(module, f"singular values {rank} and {rank + 1}", "agree to float32")
    root = np.sqrt(S[:rank] / module.shape.scale)
    unit = images[:, :rank] / np.where(S[:rank] > 0, S[:rank], 1)
    U, V = (unit, vectors) if len(W) >= len(W.T) else (vectors, unit)
    return U[:, :rank] * root, root[:, None] * V[:, :rank].T


def _largest(W: Matrix, count: int) -> tuple[Matrix, Matrix, Matrix]:
    """The largest singular values of W `[m, n]`, m >= n: S `[k]`, W V `[m, k]` and V `[n, k]`.

    V is of W'W, in a fraction of the time that the whole decomposition of W takes. Squares halve
    the digits of small singular values, but not of S, which are the lengths of W V; W V V' is as
    good as V, which stands at right angles to float64 and is off by 2**-52 over a gap of squares.
    """
    vectors = np.linalg.eigh(W.T @ W)[1][:, ::-1][:, :count]
    images = W @ vectors
    return np.linalg.norm(images, axis=0), images, vectors


def _olora(module: ModuleTensors, rank: int) -> tuple[Matrix, Matrix]:
    """B0 = Q of the first `rank` columns, A0 = Q' W, summed over the tiles of W."""
    name, base = module.shape.module, module.base
    first = first_columns(base, name, rank)
    Q, R = np.linalg.qr(first)
    diagonal = np.abs(np.diag(R))
    if diagonal.min() <= _FLOAT32 * diagonal.max():
        raise _undetermined(module, f"the first {rank} columns", "are linearly dependent")
    A0 = np.zeros((rank, base.sizes(name).in_features))
    for tile in base.tiles(name):
        A0[:, tile.columns] += Q[tile.rows].T @ tile.values.astype(np.float64)
    return Q, A0


def first_columns(base: BaseModules, module: str, count: int) -> Matrix:
    """`[out, count]` of the weight `[out, in]`, in float64."""
    first = np.empty((base.sizes(module).out_features, count))
    for tile in base.tiles(module):
        columns = range(tile.columns.start, min(tile.columns.stop, count))
        if columns:
            first[tile.rows, columns] = tile.values[:, : len(columns)]
    return first


def _undetermined(module: ModuleTensors, what: str, why: str) -> AdapterError:
    return AdapterError(
        f"{what} of the base's weight {why}, so that where the training started is not determined",
        where=Where(file=module.source.path, module=module.shape.module),
        hint="check that the base is the one of the training, or save the adapter with "
        "save_pretrained(path_initial_model_for_weight_conversion=...), which needs no base",
    )


_PRODUCTS: dict[str, Callable[[ModuleTensors, int], tuple[Matrix, Matrix]]] = {
    "pissa": _pissa,
    "olora": _olora,
}
