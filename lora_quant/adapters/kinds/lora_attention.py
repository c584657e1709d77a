"""torch.nn.MultiheadAttention: PEFT adapts both of its projections.

    mha.lora_A                        the input projection, module `mha`, B [3 * dim, r]
    mha.base_layer.out_proj.lora_A    the output projection, module `mha.out_proj`

PEFT (0.21.2) adds the update of the output projection twice, in the wrapper of the attention and in
that of the projection, when it runs and when it merges. What was trained so needs it twice: s is
doubled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.module_tensors import Headers
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import UnsupportedAdapterError, Where
from lora_quant.findings import Finding, Severity

_WRAPPED = ".base_layer.out_proj"
_TIMES = 2.0
_NOT_SUPPORTED = (
    "alora_invocation_tokens",
    "kasa_config",
    "lora_bias",
    "monteclora_config",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)


_TRANSPOSED = "fan_in_fan_out"


def owner(module: str) -> str:
    """The attention that an output projection belongs to; any other module as it is."""
    return module.removesuffix(_WRAPPED)


def attention_shape(shape: ModuleShape, headers: Headers) -> ModuleShape:
    """An output projection under the base's name and with twice the scale; others as they are."""
    if owner(shape.module) == shape.module:
        return shape
    for field in _NOT_SUPPORTED:
        if not headers.config.is_neutral(field):
            raise UnsupportedAdapterError(
                f"{field} is set, and the module belongs to a MultiheadAttention, which PEFT "
                "adapts with plain LoRA only",
                where=Where(file=headers.source.path, module=owner(shape.module)),
                hint="leave the attention out of target_modules",
            )
    if headers.config.flag(_TRANSPOSED):
        raise UnsupportedAdapterError(
            f"{_TRANSPOSED} is set, and the module belongs to a MultiheadAttention: PEFT adds the "
            "update of its out_proj transposed, although the weight is not",
            where=Where(file=headers.source.path, module=owner(shape.module)),
            hint=f"train with {_TRANSPOSED} = false, or leave the attention out of target_modules",
        )
    module = f"{owner(shape.module)}.out_proj"
    return replace(shape, module=module, scale=shape.scale * _TIMES)


def doubled(config: PeftConfig, tensors: Collection[str]) -> tuple[Finding, ...]:
    """A warning if the file has output projections of attentions."""
    if not any(f"{_WRAPPED}.lora_A" in name for name in tensors):
        return ()
    version = config.fields.get("peft_version") or "not given"
    return (
        Finding(
            rule="adapter/out-proj-twice",
            severity=Severity.WARNING,
            message="PEFT adds the update of a MultiheadAttention's out_proj twice, so its scale "
            f"is doubled here; seen in 0.21.2, and the adapter's peft_version is {version}",
            where=config.where("peft_version"),
            hint="compare with the model that was trained if it was another version",
        ),
    )
