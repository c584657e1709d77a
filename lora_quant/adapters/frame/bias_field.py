"""The field `bias`: which biases of the base were trained beside the adapter.

none            no bias
all             every bias of the model
<kind>_only     those of the adapted modules: `lora_only`, `boft_only`

PEFT takes any name that ends in `_only`. Here it has to be that of the adapter's own kind, so that
a configuration of another kind is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.errors import AdapterError, short

# as PEFT's configurations spell them, where that is not the kind's name
_SPELLED: Mapping[str, tuple[str, ...]] = {
    "ADALORA": ("lora_only",),
    "FOURIERFT": ("fourier_only", "fourierft_only"),
    "MISS": ("MiSS_only", "miss_only"),
    "WAVEFT": ("waveft_only", "fourier_only"),
}


def check_bias(config: PeftConfig, kind: str) -> None:
    """Raise AdapterError for a value of `bias` that an adapter of `kind` does not have."""
    accepted = ("none", "all", *_SPELLED.get(kind, (f"{kind.lower()}_only",)))
    bias = config.fields.get("bias")
    if bias is not None and bias not in accepted:
        raise AdapterError(
            f"bias is {short(bias)}, expected one of {', '.join(accepted)}",
            where=config.where("bias"),
            hint="save the adapter again with PEFT, or correct the field",
        )
