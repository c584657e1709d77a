"""A lowering rule for an adapter kind `TINY`: LoRA of linear modules, and twice as strong."""

from __future__ import annotations

from typing import ClassVar

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape


class TinyRule(KindRule):
    """ΔW = s B A, s = 2 lora_alpha / r."""

    kind: ClassVar[str] = "TINY"
    required = ("lora_A.weight", "lora_B.weight")
    rank_field = ("r", 8)
    alpha_field = ("lora_alpha", 8.0)
    neutral = frozenset({"init_lora_weights", "lora_dropout", "megatron_core", "qalora_group_size"})

    def scale(self, config: PeftConfig, alpha: float, rank: int) -> float:
        """Twice that of LoRA."""
        return 2 * super().scale(config, alpha, rank)

    def shape(self, headers: Headers) -> ModuleShape:
        """From the sizes of A and B, which have to agree."""
        rank, inputs = headers.dims("lora_A.weight", 2)
        out, _ = headers.dims("lora_B.weight", 2)
        headers.expect({"lora_B.weight": (out, rank)})
        headers.expect_rank("lora_A.weight", rank)
        return ModuleShape(headers.module, rank, inputs, out, scale=headers.scale)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A and B as they are stored."""
        return Lowered(module.stored("lora_A.weight"), module.stored("lora_B.weight"), module.s)
