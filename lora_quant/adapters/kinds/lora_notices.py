"""What a LORA configuration asks of the graph or of the application, as findings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.kinds.lora_attention import doubled
from lora_quant.adapters.kinds.lora_tokens import row_notices
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.findings import Finding, Severity

_QUANTIZED = re.compile(
    r"(?i)(?<![a-z0-9])(bnb|nf4|fp4|[48]-?bit|int[48]|gptq|awq|aqlm|eetq|hqq)(?![a-z0-9])"
)


def notices(checkpoint: Checkpoint, shapes: Mapping[str, ModuleShape]) -> tuple[Finding, ...]:
    """All findings of one adapter that its fields and names give."""
    config, names = checkpoint.config, checkpoint.tensors.names
    return (
        *_replication(config),
        *_invocation(config, shapes),
        *_quantized_base(config),
        *_suspicious_scale(config),
        *doubled(config, names),
        *row_notices(config, names),
    )


def _replication(config: PeftConfig) -> tuple[Finding, ...]:
    if config.is_neutral("layer_replication"):
        return ()
    ranges = config.fields["layer_replication"]
    return (
        Finding(
            rule="adapter/layer-replication",
            severity=Severity.NOTE,
            message=f"layer_replication is {ranges}: the modules are counted in the stack of "
            "repeated layers",
            where=config.where("layer_replication"),
            hint="export the base graph from the model with its layers repeated",
        ),
    )


def _invocation(config: PeftConfig, shapes: Mapping[str, ModuleShape]) -> tuple[Finding, ...]:
    if not any(shape.gated for shape in shapes.values()):
        return ()
    tokens = ", ".join(map(str, config.indices("alora_invocation_tokens")))
    return (
        Finding(
            rule="adapter/invocation-tokens",
            severity=Severity.NOTE,
            message=f"the adapter is active from the start of the last occurrence of the tokens "
            f"[{tokens}] on, and nowhere in an input without them",
            where=config.where("alora_invocation_tokens"),
            hint="feed its gate: 1 for every token from there on, 0 before",
        ),
    )


def _quantized_base(config: PeftConfig) -> tuple[Finding, ...]:
    name = config.fields.get("base_model_name_or_path")
    found = _QUANTIZED.search(name) if isinstance(name, str) else None
    if found is None and config.is_neutral("use_qalora"):
        return ()
    field = "use_qalora" if found is None else "base_model_name_or_path"
    return (
        Finding(
            rule="adapter/quantized-base",
            severity=Severity.NOTE,
            message=f"{field} is {config.fields[field]!r}: the adapter was trained on a quantized "
            "base",
            where=config.where(field),
            hint="export the base graph with the dequantized weights of that base",
        ),
    )


def _suspicious_scale(config: PeftConfig) -> tuple[Finding, ...]:
    """The mark of add_weighted_adapter on rsLoRA: alpha = r, which sqrt(r) then does not undo.

    Training with lora_alpha = r and use_rslora leaves the same fields, so it is only a suspicion.
    """
    rank = config.positive("r", 8)
    if (
        not config.flag("use_rslora")
        or rank == 1
        or config.number("lora_alpha", 8.0) != rank
        or not config.is_neutral("rank_pattern")
        or not config.is_neutral("alpha_pattern")
    ):
        return ()
    return (
        Finding(
            rule="adapter/rslora-of-a-mix",
            severity=Severity.WARNING,
            message=f"use_rslora is set, lora_alpha equals r ({rank}) and there are no patterns: "
            "add_weighted_adapter writes so for weights that hold every scale already, and they "
            f"are scaled by sqrt(r) = {math.sqrt(rank):.4g} once more, as PEFT does on loading; a "
            "training with these settings writes the same",
            where=config.where("use_rslora"),
            hint="if it was made by add_weighted_adapter, set use_rslora to false; if it was "
            "trained so, there is nothing to do",
        ),
    )
