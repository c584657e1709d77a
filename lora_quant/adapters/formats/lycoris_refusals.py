"""What LyCORIS and ComfyUI can put into a file that PEFT's vocabulary has no place for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_quant.errors import UnsupportedAdapterError, Where

_MERGE = "merge it into the base with the library that trained it, and export that"
_OFT = "the blocks of an orthogonal update, which is parametrised otherwise than PEFT's OFT"
_GLORA = "a factor of GLoRA"
_TLORA = "a factor of T-LoRA, whose rank depends on the time step"
_NORM = "a change of a normalisation's own parameters"
_BIAS = "a change of the base's bias"

REFUSED: Mapping[str, str] = {
    "a1.weight": _GLORA,
    "a2.weight": _GLORA,
    "b1.weight": _GLORA,
    "b2.weight": _GLORA,
    "b_norm": _NORM,
    "bm.weight": _GLORA,
    "bundle_emb": "a textual embedding that came with the adapter",
    "diff": "the whole change of a weight (algorithm full), which has no low rank",
    "diff_b": _BIAS,
    "lambda_layer": _TLORA,
    "oft_blocks": _OFT,
    "oft_diag": _OFT,
    "p_layer.weight": _TLORA,
    "q_layer.weight": _TLORA,
    "rescale": "the output scale of an orthogonal update",
    "reshape_weight": "a new shape for the base's weight",
    "scalar": "a factor that was still trained; LyCORIS multiplies it in when it saves",
    "set_bias": "a whole new bias",
    "set_weight": "a whole new weight",
    "w_norm": _NORM,
}


def refuse(file: Path, module: str, tensor: str, parameter: str) -> UnsupportedAdapterError:
    """The error for a tensor of a module that is not served."""
    where = Where(file=file, module=module, tensor=tensor)
    reason = REFUSED.get(parameter)
    if reason is not None:
        return UnsupportedAdapterError(f"the tensor is {reason}", where=where, hint=_MERGE)
    return UnsupportedAdapterError(
        f"the tensor's name ends in {parameter!r}, which is not a parameter that is known here",
        where=where,
        hint=f"it may be of a newer version of the training library; {_MERGE}",
    )
