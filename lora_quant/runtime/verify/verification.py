"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass

from lora_quant.runtime.verify.approximation import LayerError
from lora_quant.runtime.verify.comparison import OutputError
from lora_quant.runtime.verify.settings import Settings
from lora_quant.runtime.verify.sqnr import OutputSqnr
from lora_quant.runtime.verify.steps import OutputSteps


@dataclass(frozen=True)
class Unverified:
    """A use case that was not compared, and why: it counts as failed."""

    use_case: str
    reason: str


@dataclass(frozen=True)
class SameBits:
    """Whether two ways to the same numbers gave them bit for bit; `what` names both ways."""

    what: str
    ok: bool


@dataclass(frozen=True)
class TargetVerification:
    """What was found of one target.

    how: what was run, and against what. errors: outputs against the reference, of float graphs;
    ratios: of quantized ones. steps, device_ratios: the device against the CPU, and against the
    reference. base_exact: without adapters the graph is `base`, bit for bit; None for a merged
    graph, whose adapters cannot be switched off. same: other numbers that have to be equal. notes:
    what was not looked at, and why.
    """

    target: str
    how: str
    base: str
    base_exact: bool | None
    errors: tuple[OutputError, ...] = ()
    ratios: tuple[OutputSqnr, ...] = ()
    steps: tuple[OutputSteps, ...] = ()
    device_ratios: tuple[OutputSqnr, ...] = ()
    same: tuple[SameBits, ...] = ()
    unverified: tuple[Unverified, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything was compared and passed."""
        figures = [f.ok for f in self.errors] + [f.ok for f in self.ratios]
        figures += [f.ok for f in self.steps] + [f.ok for f in self.device_ratios]
        figures += [f.ok for f in self.same]
        return self.base_exact is not False and not self.unverified and all(figures)


@dataclass(frozen=True)
class Verification:
    """Result for every target, use case and output.

    `own_graphs`: the graphs that use cases were exported as, against the same reference; None for a
    pack without any.

    `layers` are the modules that are approximated. `prompts` names use cases with a soft prompt.
    `without_effect` names use cases with adapters that change no output at all for these inputs:
    their errors say nothing about the adapters. `unverified` are use cases that no target could be
    held against. `notes` name targets that were not verified, and why.
    """

    targets: tuple[TargetVerification, ...]
    settings: Settings
    own_graphs: TargetVerification | None = None
    without_effect: tuple[str, ...] = ()
    layers: tuple[LayerError, ...] = ()
    prompts: tuple[str, ...] = ()
    unverified: tuple[Unverified, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything was compared and passed."""
        return (
            bool(self.targets)
            and not self.unverified
            and all(one.ok for one in self.targets)
            and (self.own_graphs is None or self.own_graphs.ok)
            and all(one.ok for one in self.layers)
        )

    def target(self, name: str) -> TargetVerification:
        """What was found of one of the targets; KeyError if it was not verified."""
        return {one.target: one for one in self.targets}[name]

    @property
    def errors(self) -> tuple[OutputError, ...]:
        """Those of all targets with float graphs."""
        return tuple(error for one in self.targets for error in one.errors)

    @property
    def base_exact(self) -> bool | None:
        """Whether every graph is its base without adapters; None if none can be without them."""
        found = {one.base_exact for one in self.targets} - {None}
        return None if not found else False not in found
