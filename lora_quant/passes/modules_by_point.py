"""The modules that the adapters of one use case bring to each attach point."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.lowered import Dense, Lowered, ModuleShape
from lora_quant.errors import Where
from lora_quant.graph.attach.resolver import Resolution
from lora_quant.passes.base_modules import base_modules
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.slots import Slot


@dataclass(frozen=True, eq=False)
class UseCaseModule:
    """One module of one adapter of a use case, and the part of the attach point that it is."""

    slot: Slot
    part: int
    shape: ModuleShape
    where: Where
    adapter: Adapter
    base: BaseModules

    def lower(self) -> Lowered | Dense:
        """Its update; raises what the adapter's rule raises."""
        return self.adapter.lower(self.shape.module, self.base)


class ModulesByPoint:
    """Found once for a use case; nothing is lowered here."""

    def __init__(self, compilation: Compilation, use_case: str) -> None:
        adapters: Mapping[str, Adapter] = compilation.having("adapters")
        resolution: Resolution = compilation.having("resolution")
        self._modules: dict[int, list[UseCaseModule]] = defaultdict(list)
        for slot in compilation.having("slots").use_cases[use_case]:
            adapter = adapters[slot.adapter]
            base = base_modules(compilation, adapter)
            for module, shape in adapter.shapes.items():
                at = resolution.placements[module]
                where = Where(use_case=use_case, adapter=adapter.name, module=module)
                self._modules[at.point].append(
                    UseCaseModule(slot, at.part, shape, where, adapter, base)
                )

    def at(self, number: int) -> Sequence[UseCaseModule]:
        """The modules of one attach point, in the order in which the adapters act."""
        return self._modules.get(number, ())
