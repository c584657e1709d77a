"""Parameters of the base that a checkpoint brings anew, and whether its configuration says so.

modules_to_save            every parameter of the modules that it names
bias = "all"               every bias of the model
bias = "lora_only", ...    the biases of the adapted modules
a wrapped embedding        PEFT saves the base's own table beside the adapter
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lora_quant.adapters.description import ParameterShape
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.safetensors_file import FLOAT_DTYPES
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.errors import UnsupportedAdapterError, Where


def replaced_parameters(
    others: Mapping[str, str],
    config: PeftConfig,
    source: TensorSource,
    modules: Collection[str],
) -> dict[str, ParameterShape]:
    """Parameter path -> what replaces it, for the tensors that are no adapter tensors.

    Raises UnsupportedAdapterError for a tensor that the configuration does not account for.
    """
    bias = config.names("bias") or "none"
    saved = config.names("modules_to_save") or ()
    saved = (saved,) if isinstance(saved, str) else saved
    found = {}
    for parameter, tensor in others.items():
        module, _, leaf = parameter.rpartition(".")
        is_bias = leaf == "bias" and (bias == "all" or (bias != "none" and module in modules))
        is_table = leaf == "weight" and module in modules
        if not (is_bias or is_table or any(_is_saved(entry, module) for entry in saved)):
            raise UnsupportedAdapterError(
                "the tensor is not part of the adapter, and the configuration does not say that "
                "it replaces one of the base",
                where=Where(file=source.path, module=module or None, tensor=tensor),
                hint="modules_to_save and bias say what is replaced; save the adapter again with "
                "the configuration that it was trained with",
            )
        found[parameter] = parameter_shape(parameter, tensor, source)
    return found


def parameter_shape(parameter: str, tensor: str, source: TensorSource) -> ParameterShape:
    """A whole parameter from its tensor's header; UnsupportedAdapterError if it is no float."""
    info = source.info(tensor)
    if info.dtype not in FLOAT_DTYPES:
        raise UnsupportedAdapterError(
            f"the tensor is {info.dtype}, expected one of {', '.join(FLOAT_DTYPES)}",
            where=Where(file=source.path, tensor=tensor),
            hint="a quantized or integer parameter cannot be replaced: export a base that holds it",
        )
    return ParameterShape(parameter, tensor, tuple(info.shape))


def _is_saved(entry: str, module: str) -> bool:
    """Whether `modules_to_save` means a module, or one around it.

    PEFT compares the ends of the names, not their parts: `norm` is `final_layernorm` too.
    """
    while module:
        if module.endswith(entry):
            return True
        module = module.rpartition(".")[0]
    return False
