"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass

from lora_quant.runtime.approximation import LayerError
from lora_quant.runtime.comparison import OutputError


@dataclass(frozen=True)
class Unverified:
    """A use case that was not compared, and why: it counts as failed."""

    use_case: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """Result for every use case and output.

    base_exact: the graph without adapters is the base bit for bit; None for a merged pack, whose
    adapters cannot be switched off. `layers` are the modules that are approximated. `prompts` names
    use cases with a soft prompt. `without_effect` names use cases with adapters that change no
    output at all for these inputs: their errors say nothing about the adapters.
    """

    errors: tuple[OutputError, ...]
    base_exact: bool | None
    tolerance: float
    without_effect: tuple[str, ...] = ()
    layers: tuple[LayerError, ...] = ()
    prompts: tuple[str, ...] = ()
    unverified: tuple[Unverified, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything was compared and passed."""
        return (
            self.base_exact is not False
            and not self.unverified
            and all(e.ok for e in self.errors)
            and all(e.ok for e in self.layers)
        )
