"""The grids of the graph inputs that carry strengths, which no mode lets change: alpha, the gate.

Strengths that these grids cannot hold, and use cases that have other grids for them, are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation


@dataclass(frozen=True, eq=False)
class StrengthInputs:
    """Encodings by the names of the inputs; a graph without any branch has neither.

    gate is None in a graph without gated adapters.
    """

    alpha_name: str
    alpha: Encoding
    gate_name: str | None = None
    gate: Encoding | None = None

    @property
    def encodings(self) -> dict[str, Encoding]:
        """Those that there are, by name."""
        found = {self.alpha_name: self.alpha}
        if self.gate_name is not None and self.gate is not None:
            found[self.gate_name] = self.gate
        return found

    @property
    def gate_range(self) -> tuple[float, float]:
        """What a gate can multiply alpha with: from 0 to 1, or more where its grid has more."""
        if self.gate is None or self.gate.scale is None:
            return 0.0, 1.0
        return min(0.0, float(self.gate.minimum)), max(1.0, float(self.gate.maximum))


def strength_inputs(
    compilation: Compilation, given: Mapping[str, Encoding]
) -> StrengthInputs | None:
    """The fixed grids: as given in the base's file, else computed; None without any branch.

    Alpha goes from 0 to 1 and over all strengths, a gate from 0 to 1. In the rank layout the alpha
    input is s, whose range is that of strength times scale.
    """
    branched: BranchedGraph = compilation.having("branched")
    if branched.scale is None:
        return None
    alpha, gate = branched.scale.alpha.name, branched.scale.gate
    return StrengthInputs(
        alpha_name=alpha,
        alpha=given[alpha] if alpha in given else _alpha(compilation),
        gate_name=gate.name if gate is not None else None,
        gate=None if gate is None else given.get(gate.name, _gate(compilation)),
    )


def other_inputs(
    use_case: UseCaseInputConfig, given: Mapping[str, Encoding], used: StrengthInputs
) -> Iterator[Finding]:
    """A use case's own grid of an input, where it is not the one of the whole graph."""
    for name, kept in used.encodings.items():
        own = given.get(name)
        if own is None or own.same_grid(kept) or own.scale is None or kept.scale is None:
            continue
        what = "alpha" if name == used.alpha_name else "gate"
        yield Finding(
            rule=f"encodings/{what}-differs",
            severity=Severity.WARNING,
            message=f"the use case's encoding of the {what} input goes from "
            f"{own.minimum.min():g} to {own.maximum.max():g}; the input is fixed, and "
            f"{float(kept.minimum):g} to {float(kept.maximum):g} was kept",
            where=Where(file=use_case.encodings, use_case=use_case.name),
            hint=f"put the encoding of the {what} input into the base's file",
        )


def strength_findings(compilation: Compilation, used: StrengthInputs) -> Iterator[Finding]:
    """Strengths that the alpha input's grid, or a 1 that the gate's, cannot hold: they clip."""
    yield from _clipped_gate(used)
    if compilation.alpha_layout == "rank" or used.alpha.scale is None:
        return
    low, high, slack = _ends(used.alpha)
    for name, slots in compilation.having("slots").use_cases.items():
        for slot in slots:
            if slot.rank and not low - slack <= slot.alpha <= high + slack:
                yield Finding(
                    rule="encodings/alpha-clips",
                    severity=Severity.WARNING,
                    message=f"strength {slot.alpha:g} of adapter {slot.adapter!r} is outside the "
                    f"range [{low:g}, {high:g}] of the alpha input and would clip",
                    where=Where(use_case=name, adapter=slot.adapter),
                    hint="widen the encoding of the alpha input in the base's encodings",
                )


def _clipped_gate(used: StrengthInputs) -> Iterator[Finding]:
    if used.gate is None or used.gate.scale is None:
        return
    low, high, slack = _ends(used.gate)
    if high + slack < 1.0:
        yield Finding(
            rule="encodings/gate-clips",
            severity=Severity.WARNING,
            message=f"an open gate is 1, outside the range [{low:g}, {high:g}] of the gate input, "
            "and would clip",
            where=Where(tensor=used.gate_name),
            hint="widen the encoding of the gate input in the base's encodings",
        )


def _ends(grid: Encoding) -> tuple[float, float, float]:
    """Both ends of a per-tensor grid, and one step."""
    low, high = float(grid.minimum), float(grid.maximum)
    return low, high, (high - low) / grid.steps


def _alpha(compilation: Compilation) -> Encoding:
    ends = [0.0, 1.0]
    for slots in compilation.having("slots").use_cases.values():
        for slot in slots:
            is_rank = compilation.alpha_layout == "rank"
            factor = slot.scale if is_rank else 1.0
            ends += [factor, slot.alpha * factor]
    bits = compilation.options.activation_bits
    return from_range(min(ends), max(ends), bits=bits, symmetric=False)


def _gate(compilation: Compilation) -> Encoding:
    return from_range(0.0, 1.0, bits=compilation.options.activation_bits, symmetric=False)
