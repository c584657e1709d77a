"""LORA: y = W x + s B (A x), and every variant that PEFT trains under this name.

    s = lora_alpha / r          s = lora_alpha / sqrt(r) with use_rslora

A module is described and lowered in steps, in the order in which PEFT applies them:

    lora_pairs     A and B as stored, also of convolutions, embeddings and in blocks
    lora_bias      c = s b_B
    lora_starts    PiSSA, OLoRA: minus the product that the base lost before training
    lora_kasa      KaSA: a diagonal between A and B, minus what the base lost
    lora_dora      DoRA: every row of the sum has a trained norm

Beside modules, `lora_experts` lowers parameters, `lora_attention` the two projections of a
MultiheadAttention, `lora_tokens` rows of embeddings. What is refused is in `lora_refusals`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

from lora_quant.adapters.description import ParameterShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.key_table import KeyTable
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_match import check_targets, read_targets
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.replaced_parameters import replaced_parameters
from lora_quant.adapters.kinds import lora_attention, lora_experts, lora_ties, lora_tokens
from lora_quant.adapters.kinds.lora_bias import B_BIAS, bias_shape, with_bias
from lora_quant.adapters.kinds.lora_dora import (
    MAGNITUDE,
    beside_biases,
    dora_shape,
    with_magnitude,
)
from lora_quant.adapters.kinds.lora_kasa import DIAGONAL, kasa_shape, with_diagonal
from lora_quant.adapters.kinds.lora_notices import notices
from lora_quant.adapters.kinds.lora_pairs import PAIRS, pair_shape, stored_pair
from lora_quant.adapters.kinds.lora_refusals import (
    NEUTRAL,
    REFUSED,
    USED,
    check_config,
    refuse_foreign,
    without_training_state,
)
from lora_quant.adapters.kinds.lora_starts import start_shape, without_start
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.findings import Finding


class LoraRule(KindRule):
    """Lowers LoRA; see the module's text for the steps."""

    kind: ClassVar[str] = "LORA"
    form = "ΔW = s B A, s = lora_alpha / r"
    rank = "r; 2 r for PiSSA, OLoRA, KaSA"
    optional = (*(name for pair in PAIRS for name in pair), B_BIAS, *MAGNITUDE, DIAGONAL)
    rank_field = ("r", 8)
    alpha_field = ("lora_alpha", 8.0)
    patterns = True
    used = USED
    neutral = NEUTRAL
    refused = REFUSED

    def scale(self, config: PeftConfig, alpha: float, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) with use_rslora."""
        return alpha / (math.sqrt(rank) if config.flag("use_rslora") else rank)

    def check(self, config: PeftConfig) -> None:
        """Refuse values and combinations that PEFT does not train, or that cannot be exact."""
        check_config(config)

    def arrange(self, keys: KeyTable, checkpoint: Checkpoint) -> KeyTable:
        """Name the parameters that adapters belong to, and put biases beside their modules."""
        others = without_training_state(keys.others, checkpoint.config)
        refuse_foreign(others, checkpoint.tensors.path)
        modules = lora_experts.named_parameters(keys.modules, checkpoint)
        return replace(keys, modules=beside_biases(modules, others), others=others)

    def check_targets(self, keys: KeyTable, checkpoint: Checkpoint) -> tuple[Finding, ...]:
        """Modules against target_modules, parameters against target_parameters."""
        config = checkpoint.config
        parameters = lora_experts.parameter_modules(keys.modules)
        tied = lora_ties.tied_modules(keys.modules, checkpoint)
        modules = [lora_attention.owner(m) for m in keys.modules if m not in parameters | tied]
        targets = lora_experts.without_parameters(read_targets(config), config)
        findings = check_targets(targets, config, dict.fromkeys(modules))
        return (*findings, *lora_experts.check_parameters(config, parameters))

    def setting_name(self, module: str) -> str:
        """PEFT gives the output projection of an attention the settings of the attention."""
        return lora_attention.owner(module)

    def shapes(self, headers: Headers) -> Iterable[ModuleShape]:
        """One module, or one for every expert of a parameter."""
        if lora_experts.is_parameter(headers.names):
            return lora_experts.expert_shapes(headers)
        return (self.shape(headers),)

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank, sizes and vectors of one module, step by step."""
        shape = pair_shape(headers)
        shape = bias_shape(shape, headers)
        shape = start_shape(shape, headers)
        shape = kasa_shape(shape, headers)
        shape = dora_shape(shape, headers)
        return lora_attention.attention_shape(shape, headers)

    def formula(self, module: ModuleTensors) -> Lowered:
        """y = W x + s B (A x), changed by each step that the module has tensors or settings for."""
        if lora_experts.is_parameter(module.shape.tensors):
            return lora_experts.expert(module)
        lowered = stored_pair(module)
        lowered = with_bias(lowered, module)
        lowered = without_start(lowered, module)
        lowered = with_diagonal(lowered, module)
        return with_magnitude(lowered, module)

    def parameters(
        self, keys: KeyTable, checkpoint: Checkpoint, shapes: Mapping[str, ModuleShape]
    ) -> dict[str, ParameterShape]:
        """Whole parameters and rows of tables."""
        config, source = checkpoint.config, checkpoint.tensors
        rows = lora_tokens.token_rows(keys.others, config, source)
        others = lora_tokens.without_rows(keys.others)
        tied = lora_ties.tied_parameters(others, config, source)
        whole = {name: tensor for name, tensor in others.items() if name not in tied}
        return {**replaced_parameters(whole, config, source, shapes), **tied, **rows}

    def notices(
        self, checkpoint: Checkpoint, shapes: Mapping[str, ModuleShape]
    ) -> tuple[Finding, ...]:
        """What the configuration asks of the graph or of the application."""
        return notices(checkpoint, shapes)
