"""LORA: y = W x + s * B (A x), plain low rank, for linear modules and convolutions.

    s = lora_alpha / r          s = lora_alpha / sqrt(r) with use_rslora

Per module, r and lora_alpha may come from `rank_pattern` and `alpha_pattern`. A and B are stored
in logical order whatever `fan_in_fan_out` says of the base's weight. Everything that PEFT offers
beside this and that changes the result is refused by name: see `lora_refusals`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lora_quant.adapters.checkpoint import Checkpoint
from lora_quant.adapters.finite import read_finite
from lora_quant.adapters.kinds.lora_pairs import find_pairs, pair_shape
from lora_quant.adapters.kinds.lora_refusals import refuse_fields
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.adapters.module_match import check_targets, read_targets
from lora_quant.adapters.patterns import Matched, match_patterns
from lora_quant.adapters.peft_config import PeftConfig
from lora_quant.errors import AdapterError
from lora_quant.findings import Finding

_DEFAULT_RANK = 8
_DEFAULT_ALPHA = 8.0


@dataclass(frozen=True)
class LoraRule:
    """Lowers plain LoRA; see the module's text for the formula."""

    kind: ClassVar[str] = "LORA"

    def modules(
        self, checkpoint: Checkpoint
    ) -> tuple[Mapping[str, ModuleShape], tuple[Finding, ...]]:
        """Every adapted module with rank, sizes and scale, from config and headers only."""
        config, tensors = checkpoint.config, checkpoint.tensors
        refuse_fields(config)
        targets = read_targets(config)
        pairs = find_pairs(tensors)
        findings = check_targets(targets, config, pairs)
        ranks, rank_findings = match_patterns(
            config, "rank_pattern", config.positive_patterns("rank_pattern"), _rank(config), pairs
        )
        alphas, alpha_findings = match_patterns(
            config, "alpha_pattern", config.number_patterns("alpha_pattern"), _alpha(config), pairs
        )
        shapes = {}
        for module, pair in pairs.items():
            shape = pair_shape(module, pair, tensors)
            _check_rank(config, shape, ranks[module])
            shapes[module] = replace(shape, scale=_scale(config, alphas[module].value, shape.rank))
        return shapes, findings + rank_findings + alpha_findings

    def default_scale(self, checkpoint: Checkpoint) -> float:
        """The scale of a module that no pattern matches: lora_alpha over r or its root."""
        config = checkpoint.config
        return _scale(config, _alpha(config), _rank(config))

    def lower(self, checkpoint: Checkpoint, shape: ModuleShape) -> Lowered:
        """A `[rank, in, *kernel]` and B `[out, rank]` as stored, s `[rank]` filled with the scale.

        Raises AdapterError for NaN and Inf, naming the tensor.
        """
        tensors = checkpoint.tensors
        name_a, name_b = shape.tensors
        b = read_finite(tensors, name_b, shape.module)
        return Lowered(
            A=read_finite(tensors, name_a, shape.module),
            B=b.reshape(b.shape[:2]),
            s=np.full(shape.rank, shape.scale),
        )


def _rank(config: PeftConfig) -> int:
    return config.positive("r", _DEFAULT_RANK)


def _alpha(config: PeftConfig) -> float:
    return config.number("lora_alpha", _DEFAULT_ALPHA)


def _scale(config: PeftConfig, alpha: float, rank: int) -> float:
    return alpha / (math.sqrt(rank) if config.flag("use_rslora") else rank)


def _check_rank(config: PeftConfig, shape: ModuleShape, expected: Matched[int]) -> None:
    if shape.rank == expected.value:
        return
    field = "r" if expected.key is None else "rank_pattern"
    source = "r" if expected.key is None else f"rank_pattern[{expected.key!r}]"
    raise AdapterError(
        f"module {shape.module!r} has rank {shape.rank} in the weights, expected "
        f"{expected.value} from {source}",
        where=replace(config.where(field), module=shape.module),
        hint="the configuration is not the one that the weights were saved with, and their scale "
        "depends on it",
    )
