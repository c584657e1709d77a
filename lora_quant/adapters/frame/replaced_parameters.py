"""Parameters of the base that a checkpoint brings anew, held against its configuration both ways.

modules_to_save            every parameter of the modules that it names
bias = "all"               every bias of the model
bias = "lora_only", ...    the biases of the adapted modules
a wrapped embedding        PEFT saves the base's own table beside the adapter

A tensor that no field accounts for is refused, and so is an entry of modules_to_save that no tensor
stands for: the base's own module would go without its training. Of biases, which a model may not
have, a person is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lora_quant.adapters.description import ParameterShape
from lora_quant.adapters.files.dtypes import FLOAT_DTYPES
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.routing import any_number
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, some
from lora_quant.findings import Finding, Severity

_BIAS = ".bias"
# PEFT adds the usual names of a head, of which a model has one or none
_ADDED_FOR_TASKS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def replaced_parameters(
    others: Mapping[str, str],
    config: PeftConfig,
    source: TensorSource,
    modules: Collection[str],
) -> dict[str, ParameterShape]:
    """Parameter path -> what replaces it, for the tensors that are no adapter tensors.

    Raises UnsupportedAdapterError for a tensor that the configuration does not account for,
    AdapterError for an entry of modules_to_save without a tensor.
    """
    bias = config.names("bias") or "none"
    saved = _saved(config)
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
    _require_saved(saved, found, config, source)
    return found


def bias_notices(
    config: PeftConfig, parameters: Collection[str], modules: Collection[str]
) -> tuple[Finding, ...]:
    """Warnings for biases that are said to be trained and are not among the replaced `parameters`.

    Where one of the adapted `modules` has its bias, so should its like in the other layers.
    """
    bias = config.names("bias") or "none"
    if bias == "none":
        return ()
    saved = _saved(config)
    owners = {
        name.removesuffix(_BIAS)
        for name in parameters
        if name.endswith(_BIAS)
        and not any(_is_saved(entry, name.removesuffix(_BIAS)) for entry in saved)
    }
    if not owners:
        message = f"bias is {bias!r}, and the checkpoint has no bias that was trained"
        return (_bias_notice(config, message),)
    places = {any_number(owner) for owner in owners}
    without = [m for m in modules if m not in owners and any_number(m) in places]
    if not without:
        return ()
    message = (
        f"bias is {bias!r}, and the checkpoint has no bias of {some(without)}, while it has those "
        "of the same modules in other layers"
    )
    return (_bias_notice(config, message),)


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


def _saved(config: PeftConfig) -> tuple[str, ...]:
    saved = config.names("modules_to_save") or ()
    return (saved,) if isinstance(saved, str) else saved


def _require_saved(
    saved: Collection[str], found: Collection[str], config: PeftConfig, source: TensorSource
) -> None:
    """Every entry has a tensor; of the names that PEFT adds for a task, one entry of all has."""
    modules = {parameter.rpartition(".")[0] for parameter in found}
    missing = [e for e in saved if not any(_is_saved(e, module) for module in modules)]
    added = _ADDED_FOR_TASKS.get(str(config.fields.get("task_type")), ())
    unexplained = [entry for entry in missing if entry not in added]
    if len(missing) == len(saved):
        unexplained = missing
    if unexplained:
        raise AdapterError(
            f"modules_to_save names {some([*dict.fromkeys(unexplained)])}, expected tensors of it, "
            f"and {source.path.name} has none",
            where=config.where("modules_to_save"),
            hint="the checkpoint is incomplete: save or download it again; an entry that was not "
            "trained does not belong in modules_to_save",
        )


def _bias_notice(config: PeftConfig, message: str) -> Finding:
    return Finding(
        rule="adapter/bias-without-tensors",
        severity=Severity.WARNING,
        message=message,
        where=config.where("bias"),
        hint="check that the checkpoint is complete; a bias of the base is used unchanged there, "
        "and a module without one has nothing to train",
    )


def _is_saved(entry: str, module: str) -> bool:
    """Whether `modules_to_save` means a module, or one around it.

    PEFT compares the ends of the names, not their parts: `norm` is `final_layernorm` too.
    """
    while module:
        if module.endswith(entry):
            return True
        module = module.rpartition(".")[0]
    return False
