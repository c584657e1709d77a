"""What a lowering rule must offer. One rule serves one PEFT kind; one file holds one family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

from lora_quant.adapters.checkpoint import Checkpoint
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.findings import Finding


@runtime_checkable
class LoweringRule(Protocol):
    """Lowers one adapter kind to the canonical form.

    `kind` is PEFT's `peft_type` and the name of the entry point in `lora_quant.lowering_rules`.
    """

    kind: ClassVar[str]

    def modules(
        self, checkpoint: Checkpoint
    ) -> tuple[Mapping[str, ModuleShape], tuple[Finding, ...]]:
        """Every adapted module with its shape, from the config and the tensor headers only.

        Accounts for every tensor of the file: an unknown key, a missing partner, a contradicted
        rank or a field that this rule does not serve raises AdapterError (or its subclass
        UnsupportedAdapterError) naming the field and the module.
        """

    def default_scale(self, checkpoint: Checkpoint) -> float:
        """The scale that the configuration gives to a module without settings of its own."""

    def lower(self, checkpoint: Checkpoint, shape: ModuleShape) -> Lowered:
        """Read the tensors of one module, as `modules` described it, and return its canonical form.

        Refuses NaN and Inf with an AdapterError that names the tensor.
        """
