"""Whether our own Session gives what the engine gives with its own way to switch adapters.

It hands over the adapter's tensors as inputs, one by one, where AdapterRuns leaves all to the
engine. Both compute with the same optimizations, so that every bit has to be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import LoraQuantError
from lora_quant.runtime.session.session import Session
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.comparison import equal
from lora_quant.runtime.verify.verification import SameBits

_WHAT = "lora_quant.runtime.Session against the engine's own way to switch adapters"


class SessionCheck:
    """One session of a target, opened for the first use case; `differing` says what is wrong."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        self._target = target
        self._session: Session | None = None
        self.differing: list[str] = []

    def check(self, case: Case, got: Mapping[str, Array]) -> None:
        """Hold the session against the outputs `got` of the same case."""
        name = case.use_case.name
        try:
            if self._session is None:
                # The files were hashed when they were opened for the comparison.
                self._session = Session(self._folder, target=self._target, integrity="quick")
            same = equal(self._session.run(case.feeds, name, gate=case.gate), got)
        except LoraQuantError as error:
            self._differ(f"Session refuses use case {name!r}: {error.message}")
            return
        if not same:
            self._differ(f"Session gives other numbers for use case {name!r}")

    def result(self) -> SameBits:
        """Whether all were the same."""
        return SameBits(_WHAT, not self.differing)

    def _differ(self, text: str) -> None:
        if text not in self.differing:
            self.differing.append(text)
