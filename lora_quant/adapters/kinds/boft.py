"""BOFT: the inputs are rotated by several layers of blocks, permuted like a butterfly.

    W' = diag(s) W Q'        Q = Q_m ... Q_1        Q_i = P_i blockdiag(R_i) P_i'

The file has the blocks `boft_R [m, n, b, b]`, whose skew-symmetric part (X - X') / 2 makes each R
by the Cayley transform, and the scales `boft_s` of the outputs. With one layer there is no
permutation. The bias of the module is not scaled.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import whole_weight
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.kinds.oft import cayley, rotate_columns
from lora_quant.adapters.lowered import Dense, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight


class BoftRule(KindRule):
    """ΔW = diag(s) W Q' - W."""

    kind: ClassVar[str] = "BOFT"
    adds_up = False
    rank = "full"
    required = ("boft_R", "boft_s")
    # PEFT lowers boft_n_butterfly_factor where its extension is missing; the file has the truth
    neutral = frozenset(
        {
            "boft_block_num",
            "boft_block_size",
            "boft_dropout",
            "boft_n_butterfly_factor",
            "fan_in_fan_out",
            "init_weights",
        }
    )

    def shape(self, headers: Headers) -> ModuleShape:
        """Inputs from the blocks, outputs from the scales `[out, 1]` (convolutions: `[1, out]`)."""
        layers, blocks, size, columns = headers.dims("boft_R", 4)
        scales = headers.dims("boft_s", 2)
        if size != columns:
            raise headers.error(
                "boft_R", f"boft_R has blocks of [{size}, {columns}], expected square ones"
            )
        if 1 not in scales:
            raise headers.error(
                "boft_s", f"boft_s has shape {list(scales)}, expected [out, 1] or [1, out]"
            )
        if layers > 1 and (size % 2 or blocks % 2 ** (layers - 1)):
            raise headers.error(
                "boft_R",
                f"boft_R has {layers} layers of {blocks} blocks of {size}, expected an even size "
                f"and a multiple of {2 ** (layers - 1)} blocks",
            )
        return ModuleShape(
            headers.module,
            0,
            blocks * size,
            max(scales),
            None,
            headers.scale,
            need=Need.WEIGHT,
            dense=True,
        )

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = diag(s) W Q' - W, each layer of Q' applied to the columns of W in turn."""
        name, shape = module.shape.module, module.shape
        expect_weight(
            module.base,
            name,
            module.source.path,
            out=shape.out_features,
            columns=shape.in_features,
        )
        W = whole_weight(module.base, name)
        rotated = W.reshape(len(W), -1)
        blocks = module["boft_R"]
        layers, count, size, _ = blocks.shape
        for layer in range(layers):
            R = cayley((blocks[layer] - np.swapaxes(blocks[layer], 1, 2)) / 2)
            order = butterfly(count, size, layer, layers)
            turned = rotate_columns(rotated[:, np.argsort(order)], np.swapaxes(R, 1, 2))
            rotated = turned[:, order]
        scaled = module["boft_s"].reshape(-1, 1) * rotated
        return Dense(scaled.reshape(W.shape) - W)


def butterfly(count: int, size: int, layer: int, layers: int) -> NDArray[np.intp]:
    """P of one layer as an order: row i of P has its 1 at the returned entry i, `[count * size]`.

    Layer i takes 2^i neighbouring blocks together, cuts them into halves of blocks, and puts the
    even halves before the odd ones. A single layer leaves everything in its place.
    """
    places = np.arange(count * size, dtype=np.intp)
    if layers == 1:
        return places
    groups = count // 2**layer
    halves = places.reshape(groups, -1, 2, size // 2)
    return halves.swapaxes(1, 2).reshape(-1)
