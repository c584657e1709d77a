"""KaSA: a trained diagonal d between A and B, and a base without its r smallest directions.

    y = (W - U_r S_r V_r) x + s B (d * (A x))          U S V = SVD of W, the r smallest

Only the product U_r S_r V_r counts, so that the signs of the singular vectors do not. The branch
has rank 2 r.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_quant.adapters.base_modules import whole_weight
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.kinds.lora_pairs import appended
from lora_quant.adapters.kinds.lora_starts import cut_is_determined, need_scale
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

DIAGONAL = "lora_diag"


def kasa_shape(shape: ModuleShape, headers: Headers) -> ModuleShape:
    """Twice the rank; AdapterError if the diagonal and `kasa_config` do not agree."""
    where = Where(file=headers.source.path, module=headers.module)
    if headers.config.is_neutral("kasa_config"):
        if headers.has(DIAGONAL):
            raise UnsupportedAdapterError(
                "the tensor is the diagonal of KaSA, but kasa_config is not set",
                where=replace(where, tensor=headers.names[DIAGONAL]),
                hint="the base of a KaSA adapter lost directions; save the adapter again with the "
                "configuration that it was trained with",
            )
        return shape
    if shape.kernel or shape.is_embedding:
        raise UnsupportedAdapterError(
            "the module is a convolution or an embedding, and KaSA adapts linear modules only",
            where=where,
            hint="leave it out of target_modules",
        )
    headers.expect({DIAGONAL: (shape.rank,)})
    if shape.rank >= min(shape.in_features or 0, shape.out_features or 0):
        raise headers.error(
            DIAGONAL,
            f"the rank is {shape.rank}, expected less than the {shape.in_features} inputs and "
            f"{shape.out_features} outputs: KaSA takes as many directions away from the base",
        )
    need_scale(shape, headers, "kasa_config")
    return replace(shape, rank=2 * shape.rank, need=Need.WEIGHT, adds_up=False)


def with_diagonal(lowered: Lowered, module: ModuleTensors) -> Lowered:
    """A = [A; sqrt(S/s) V], B = [B, -U sqrt(S/s)], s = s [d, 1]."""
    if DIAGONAL not in module:
        return lowered
    scale = module.shape.scale
    U, S, V = np.linalg.svd(whole_weight(module.base, module.shape.module), full_matrices=False)
    kept = len(S) - lowered.rank
    if not cut_is_determined(S, kept):
        raise AdapterError(
            f"singular values {kept} and {kept + 1} of the base's weight agree to float32, so that "
            "what KaSA took from it is not determined",
            where=Where(file=module.source.path, module=module.shape.module),
            hint="check that the base is the one of the training",
        )
    root = np.sqrt(S[kept:] / scale)
    diagonal = replace(lowered, s=lowered.s * module[DIAGONAL])
    return appended(diagonal, root[:, None] * V[kept:], -U[:, kept:] * root, scale)
