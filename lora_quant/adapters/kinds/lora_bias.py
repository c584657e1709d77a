"""lora_bias: B has a bias, which is scaled as B's output is.  c = s b_B"""

from __future__ import annotations

from dataclasses import replace

from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.errors import UnsupportedAdapterError, Where

B_BIAS = "lora_B.bias"


def bias_shape(shape: ModuleShape, headers: Headers) -> ModuleShape:
    """Announce c; AdapterError if the tensor and `lora_bias` do not agree."""
    if not headers.config.flag("lora_bias"):
        if headers.has(B_BIAS):
            raise UnsupportedAdapterError(
                "the tensor is the bias of lora_B, but lora_bias is not set",
                where=Where(
                    file=headers.source.path, module=headers.module, tensor=headers.names[B_BIAS]
                ),
                hint="set lora_bias to true if it was trained so; PEFT leaves the tensor out else",
            )
        return shape
    if headers.dims(B_BIAS) != (shape.out_features,):
        headers.expect({B_BIAS: (shape.out_features or 0,)})
    return replace(shape, vectors=shape.vectors | {"c"})


def with_bias(lowered: Lowered, module: ModuleTensors) -> Lowered:
    """c `[out]`, float64."""
    if B_BIAS not in module:
        return lowered
    return replace(lowered, c=module.shape.scale * module[B_BIAS])
