"""What the headers of a checkpoint tell: which modules, parameters or inputs it adapts, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lora_quant.adapters.lowered import ModuleShape
from lora_quant.findings import Finding


@dataclass(frozen=True)
class ParameterShape:
    """A parameter of the base that the adapter brings anew: the weight of a norm, a whole head.

    `parameter` is its path (`model.norm.weight`), `tensor` its name in the file. `rows` are the
    rows that `tensor` holds, None if it holds them all. `with_ties`: parameters that share the
    values of this one in the base change with it.
    """

    parameter: str
    tensor: str
    shape: tuple[int, ...]
    rows: tuple[int, ...] | None = None
    with_ties: bool = False


@dataclass(frozen=True)
class PromptShape:
    """A soft prompt: inputs that the adapter brings instead of changing a weight.

    prefix_embeds: `[virtual tokens, dim]`, put before the embedded tokens.
    past_key_values: `[2 * layers, heads, virtual tokens, head dim]`; the key of layer l is at 2 l,
    its value at 2 l + 1.
    """

    form: Literal["prefix_embeds", "past_key_values"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """Everything that a checkpoint adapts. One of the first three is not empty."""

    shapes: Mapping[str, ModuleShape] = field(default_factory=dict)
    parameters: Mapping[str, ParameterShape] = field(default_factory=dict)
    prompt: PromptShape | None = None
    findings: tuple[Finding, ...] = ()
