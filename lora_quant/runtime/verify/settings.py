"""What a verification runs with, and what it allows.

SQNR of the adapters' effect, in dB: 10 log10(sum effect^2 / sum (effect - got)^2). What is wrong
with an adapter has a figure of its own, however well the graph is quantized:

    another adapter, of no less effect       below 0
    not applied, or with twice the strength  0
    half of the strength                     6.02
    one of n equal modules not applied       10 log10(n): 12.04 for 16
    a strength that is off by 25 %           12.04
    a strength that is off by 10 %           20

On two layers of a Llama 16-bit weights reach 89 dB, 8-bit ones 41, 4-bit ones 15 to 20, and a
graph whose base is quantized as well, to 8-bit weights and 16-bit activations, 26. The default of
15 dB leaves that as it is, and finds a strength that is off by 18 per cent; with 4-bit weights it
is 10 dB and 32 per cent. Packs of wider weights deserve more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_quant.engines.qnn import DEFAULT_ARCH
from lora_quant.errors import ConfigError, Where

DEFAULT_TOLERANCE = 1e-4
_MIN_SQNR = 15.0
_MIN_SQNR_OF_4_BITS = 10.0


@dataclass(frozen=True)
class Settings:
    """tolerance: of float graphs, relative to the effect of the adapters. min_sqnr: dB, of that
    effect in quantized graphs; None for the default. max_steps: how far the HTP may be from the
    CPU, in steps of the output's grid; None for what htp_bound.py makes of the graph. htp_arch: the
    architecture of the HTP.
    """

    tolerance: float = DEFAULT_TOLERANCE
    min_sqnr: float | None = None
    max_steps: float | None = None
    htp_arch: str = DEFAULT_ARCH

    def __post_init__(self) -> None:
        """ConfigError for a bound that is negative or not finite: nothing, or all, would pass."""
        for name in ("tolerance", "min_sqnr", "max_steps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(
                    f"{name} is {value}, expected a finite number from 0 on",
                    where=Where(field=name),
                )

    def least_sqnr(self, *, four_bits: bool = False) -> float:
        """min_sqnr, or its default for adapters whose weights have 4 bits or more."""
        if self.min_sqnr is not None:
            return self.min_sqnr
        return _MIN_SQNR_OF_4_BITS if four_bits else _MIN_SQNR
