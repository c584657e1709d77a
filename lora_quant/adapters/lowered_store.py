"""Lowered modules that were costly to make, kept in a nameless temporary file.

A module that reads the base's weight, or is approximated, is lowered once; each use case then reads
the result back, one module at a time.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from lora_quant.adapters.files.spill_file import Place, SpillFile
from lora_quant.adapters.lowered import Lowered


class LoweredStore:
    """Writes once, reads often; not for several threads."""

    def __init__(self) -> None:
        self._spill = SpillFile()
        self._modules: dict[str, dict[str, Place]] = {}

    def __contains__(self, module: str) -> bool:
        return module in self._modules

    def put(self, module: str, lowered: Lowered) -> None:
        """Keep one module; PackError if the disk is full."""
        places = {}
        for field in fields(Lowered):
            values = getattr(lowered, field.name)
            if values is not None:
                # a factor in float64 carries no more than float32 does into any graph
                is_wide = values.dtype == np.float64 and field.name != "s"
                places[field.name] = self._spill.put(
                    values.astype(np.float32) if is_wide else values
                )
        self._modules[module] = places

    def get(self, module: str) -> Lowered:
        """One module as it was put, float64 factors rounded to float32."""
        return Lowered(**{name: self._spill.get(p) for name, p in self._modules[module].items()})
