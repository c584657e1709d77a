"""What a lowering rule must offer. One rule serves one PEFT kind; one file holds one family."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.description import Description, PromptShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.lowered import Dense, FloatArray, Lowered, ModuleShape


@runtime_checkable
class LoweringRule(Protocol):
    """Lowers one adapter kind to the canonical form.

    `kind` is PEFT's `peft_type` and the name of the entry point in `lora_quant.lowering_rules`.
    """

    kind: ClassVar[str]

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Everything that is adapted with its shapes, from the config and the headers only.

        Accounts for every tensor of the file: an unknown key, a missing partner, a contradicted
        rank or a field that this rule does not serve raises AdapterError (or its subclass
        UnsupportedAdapterError) naming the field and the module.
        """

    def default_scale(self, checkpoint: Checkpoint) -> float:
        """The scale that the configuration gives to a module without settings of its own."""

    def lower(
        self, checkpoint: Checkpoint, shape: ModuleShape, base: BaseModules | None
    ) -> Lowered | Dense:
        """Read the tensors of one module, as `describe` told it, and return its canonical form.

        A module that is `dense` gives a Dense. `base` is there if the shape's `need` asks for it.
        Refuses NaN and Inf with an AdapterError that names the tensor.
        """


@runtime_checkable
class PromptRule(LoweringRule, Protocol):
    """A rule for a kind whose description has a prompt."""

    def prompt(self, checkpoint: Checkpoint, shape: PromptShape) -> FloatArray:
        """The values of the soft prompt, float32, in the shape that was described."""
