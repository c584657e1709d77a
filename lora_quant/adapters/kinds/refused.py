"""Kinds that cannot be compiled from their files, and what to do instead.

They are known by name, so that they are refused with a reason instead of as unknown.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn

from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.frame.fields import Refusal
from lora_quant.adapters.kinds.without_modules import WithoutModules
from lora_quant.errors import UnsupportedAdapterError


class RefusedRule(WithoutModules):
    """Refuses every checkpoint of its kind."""

    refusal: ClassVar[Refusal]

    def describe(self, checkpoint: Checkpoint) -> NoReturn:
        """Raises UnsupportedAdapterError with the kind's reason."""
        raise UnsupportedAdapterError(
            f"{self.kind} is not compiled: {self.refusal.reason}",
            where=checkpoint.config.where("peft_type"),
            hint=self.refusal.hint,
        )


class XloraRule(RefusedRule):
    """A mixture of adapters, chosen token by token."""

    kind: ClassVar[str] = "XLORA"
    refusal = Refusal(
        "it mixes several adapters for every token by what a first pass over the whole model sees",
        "compile the adapters that its field `adapters` names, each or as use cases with fixed "
        "strengths; note that PEFT 0.21 saves X-LoRA's own weights as an empty file",
    )


class ShadowRule(RefusedRule):
    """A second network beside the base."""

    kind: ClassVar[str] = "SHADOW"
    refusal = Refusal(
        "a second network with layers of its own runs beside the base and exchanges states with it",
        "export the base and that network as one graph, or train LoRA instead",
    )


class PsoftRule(RefusedRule):
    """A rotation within the base's largest singular vectors."""

    kind: ClassVar[str] = "PSOFT"
    refusal = Refusal(
        "its rotation is trained in singular vectors of the base's weight, whose signs depend on "
        "the machine that computed them and are not in the file",
        "merge it into the base with PEFT (merge_and_unload) where it was trained and export that, "
        "or train LoRA instead",
    )


class AdamssRule(RefusedRule):
    """Small updates of clusters of the base's rows."""

    kind: ClassVar[str] = "ADAMSS"
    refusal = Refusal(
        "which rows of the base's weight an update belongs to was found by clustering in training, "
        "and is not in the file",
        "merge it into the base with PEFT (merge_and_unload) where it was trained and export that, "
        "or train LoRA instead",
    )


class AdaptionPromptRule(RefusedRule):
    """A gated attention to prompt tokens."""

    kind: ClassVar[str] = "ADAPTION_PROMPT"
    refusal = Refusal(
        "it adds a second, gated attention to the attention blocks of its layers, which is neither "
        "an update of a weight nor an input",
        "train PREFIX_TUNING or LoRA instead, or export the base with the adapter in it",
    )
