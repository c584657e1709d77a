"""The frame of kinds without adapted modules: prompts, replaced parameters, refusals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NoReturn

from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.description import Description
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import AdapterError


class WithoutModules(ABC):
    """A rule that describes no modules, so that none is ever lowered."""

    kind: ClassVar[str]

    @abstractmethod
    def describe(self, checkpoint: Checkpoint) -> Description:
        """See LoweringRule."""

    def default_scale(self, checkpoint: Checkpoint) -> float:
        """1: there is nothing to scale."""
        del checkpoint
        return 1.0

    def lower(
        self, checkpoint: Checkpoint, shape: ModuleShape, base: BaseModules | None
    ) -> NoReturn:
        """There is no module to lower; raises AdapterError."""
        del base
        raise AdapterError(
            f"{self.kind} does not adapt the module {shape.module!r}, or any other",
            where=checkpoint.config.where("peft_type"),
            hint="lower only the modules that the adapter describes",
        )
