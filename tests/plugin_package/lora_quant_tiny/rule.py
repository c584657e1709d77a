"""A lowering rule for an adapter kind `TINY`: plain LoRA under another name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_quant.adapters.kinds.lora import LoraRule


@dataclass(frozen=True)
class TinyRule(LoraRule):
    """Everything as for LoRA."""

    kind: ClassVar[str] = "TINY"
