"""Holding the outputs of one target against what they have to be, by the rule for its graph.

float graph        max|y - y_ref|  <=  tolerance * max|y_ref - y_base|  +  floor
                   see lora_quant.runtime.verify.comparison
quantized graph    SQNR of the effect  >=  min_sqnr
                   see lora_quant.runtime.verify.sqnr

Outputs of integers and booleans have to be equal in a float graph. In a quantized one no bound can
be given for them; they are left out, and a use case that has no others is not verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.comparison import OutputError, compare
from lora_quant.runtime.verify.settings import Settings
from lora_quant.runtime.verify.sqnr import OutputSqnr, compare_sqnr
from lora_quant.runtime.verify.verification import Unverified


class Judge:
    """Collects the figures of one target."""

    def __init__(self, settings: Settings, *, quantized: bool, four_bits: bool = False) -> None:
        """`four_bits`: the weights of the adapters have no more."""
        self.quantized = quantized
        self.errors: list[OutputError] = []
        self.ratios: list[OutputSqnr] = []
        self.unverified: list[Unverified] = []
        self._tolerance = settings.tolerance
        self._least_sqnr = settings.least_sqnr(four_bits=four_bits)

    def take(
        self, case: Case, got: Mapping[str, Array], off: Callable[[], Mapping[str, Array]]
    ) -> None:
        """`got` are the outputs of the target for a case, `off` those without adapters.

        Raises VerificationError if there is nothing to compare.
        """
        name = case.use_case.name
        if not self.quantized:
            self.errors += compare(
                name,
                got,
                case.wanted,
                case.plain,
                self._tolerance,
                case.floors,
                gates=case.gates,
                without_loss=case.exact,
            )
            return
        found = compare_sqnr(
            name, got, off(), case.wanted, case.plain, self._least_sqnr, gates=case.gates
        )
        self.ratios += found
        if not found:
            reason = "the graph is quantized and has no output of floats that could be compared"
            self.unverified.append(Unverified(name, reason))
