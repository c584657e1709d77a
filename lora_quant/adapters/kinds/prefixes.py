"""Soft prompts that are keys and values of every layer, as if tokens had been read before.

    prompt_embeddings [n, 2 * layers * token_dim]     token_dim = heads * head dim, of keys

becomes `past_key_values [2 * layers, heads, n, head dim]`: the key of layer l is at 2 l, its value
at 2 l + 1. The keys are already rotated to their positions; the first token of the text follows at
position n. What computed them in training (a projection, frozen tokens) is not needed.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_quant.adapters.description import PromptShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.kinds.prompt_rule import PROMPT, PromptKindRule, expect, given, read
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import AdapterError


class PrefixTuningRule(PromptKindRule):
    """The keys and values as they are stored, in the order of a cache."""

    kind: ClassVar[str] = "PREFIX_TUNING"
    neutral = frozenset({"encoder_hidden_size", "init_weights", "prefix_projection"})

    def prompt_shape(self, checkpoint: Checkpoint) -> PromptShape:
        """`[2 * num_layers, heads, num_virtual_tokens, token_dim / heads]`."""
        config = checkpoint.config
        tokens, dim = given(config, "num_virtual_tokens"), given(config, "token_dim")
        layers, heads = given(config, "num_layers"), given(config, "num_attention_heads")
        if dim % heads:
            raise AdapterError(
                f"token_dim is {dim}, expected a multiple of num_attention_heads = {heads}",
                where=config.where("token_dim"),
                hint="PEFT writes the number of key heads and their total size; save it again",
            )
        expect(checkpoint, PROMPT, (tokens, 2 * layers * dim))
        return PromptShape("past_key_values", (2 * layers, heads, tokens, dim // heads))

    def prompt(self, checkpoint: Checkpoint, shape: PromptShape) -> FloatArray:
        """See PromptRule."""
        parts, heads, tokens, size = shape.shape
        stored = read(checkpoint, PROMPT).reshape(tokens, parts, heads, size)
        return np.ascontiguousarray(stored.transpose(1, 2, 0, 3))


class CartridgeRule(PrefixTuningRule):
    """A prefix that was distilled from a text; some of its tokens did not train."""

    kind: ClassVar[str] = "CARTRIDGE"
    neutral = frozenset({"num_frozen_tokens"})
