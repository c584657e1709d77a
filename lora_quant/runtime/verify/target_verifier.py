"""What a verifier is: it runs what was built for one target, and collects what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.verification import TargetVerification


class TargetVerifier(Protocol):
    """One target of one pack. Its graph stays open from the first use case to the last."""

    @property
    def quantized(self) -> bool:
        """Whether outputs are judged by SQNR; else by what rounding of floats may change."""

    def check_base(self, feeds: Mapping[str, Array], plain: Mapping[str, Array]) -> None:
        """Run without adapters; `plain` are the outputs of the base graph for `feeds`."""

    def check(self, case: Case) -> None:
        """Run a use case. Raises VerificationError if it cannot be run."""

    def result(self) -> TargetVerification:
        """Everything that was found."""
