"""The field `bias` of every kind: its values and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.frame.bias_field import check_bias
from lora_quant.adapters.kinds.loha import LohaRule
from lora_quant.adapters.kinds.vera import VeraRule
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import checkpoint

# as the configuration classes of PEFT 0.21.2 document them
DOCUMENTED = {
    "ADALORA": "lora_only",
    "BOFT": "boft_only",
    "C3A": "c3a_only",
    "DEFT": "deft_only",
    "DELORA": "delora_only",
    "FOURIERFT": "fourier_only",
    "FROD": "frod_only",
    "GRALORA": "gralora_only",
    "HRA": "hra_only",
    "LORA": "lora_only",
    "MISS": "MiSS_only",
    "OFT": "oft_only",
    "RANDLORA": "randlora_only",
    "TINYLORA": "tinylora_only",
    "UNILORA": "unilora_only",
    "VBLORA": "vblora_only",
    "VERA": "vera_only",
    "WAVEFT": "waveft_only",
}


@pytest.mark.parametrize(("kind", "own"), DOCUMENTED.items())
def test_the_values_that_peft_documents_are_accepted(kind: str, own: str) -> None:
    for bias in (None, "none", "all", own):
        check_bias(checkpoint(kind, {}, bias=bias).config, kind)


@pytest.mark.parametrize("bias", ["nonex", "", "only", "lora_only", ["all"], True, 1])
def test_other_values_are_refused(bias: Any) -> None:
    message = "bias is .*, expected one of none, all, vera_only"
    with pytest.raises(AdapterError, match=message) as caught:
        VeraRule().describe(checkpoint("VERA", {"a.b": np.ones(1)}, bias=bias))
    assert caught.value.where.field == "bias"
    assert caught.value.hint


def test_a_kind_without_the_field_refuses_other_values_too() -> None:
    with pytest.raises(AdapterError, match="bias is 'nonex', expected one of none, all, loha_only"):
        LohaRule().describe(checkpoint("LOHA", {"a.b": np.ones(1)}, bias="nonex"))
