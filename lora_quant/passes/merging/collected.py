"""What is found of the encodings of one use case, in our names, and what it is taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.weight_ranges import WeightRanges
from lora_quant.passes.updatable import UpdatableTensors
from lora_quant.passes.weight_values import use_case_weights


@dataclass
class UseCaseEncodings:
    """Encodings by our tensor names.

    owned: for per-channel weights, the channels that an adapter fills; the others hold filler.
    given: tensors whose encoding came from the file. neutral: tensors that pass on what another one
    holds (an idle vector's, a re-layout's), with the grid of that one; bits and symmetry are those
    of the other use cases.
    unused: what the file says of parameters of the base that the use case leaves as they are.
    """

    use_case: str
    source: Path | None
    encodings: dict[str, Encoding] = field(default_factory=dict)
    owned: dict[str, tuple[int, ...]] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    neutral: dict[str, Encoding] = field(default_factory=dict)
    unused: dict[str, Encoding] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def where(self, tensor: str) -> Where:
        """The place of one tensor for errors and findings."""
        return Where(file=self.source, use_case=self.use_case, tensor=tensor)

    def take(self, tensor: str, encoding: Encoding) -> None:
        """What the file says, in the layout of our graph."""
        self.encodings[tensor] = encoding
        self.given.add(tensor)

    def missing_activation(self, tensor: str, what: str) -> None:
        """An activation whose range nothing tells."""
        self.findings.append(
            Finding(
                rule="encodings/missing-activation",
                severity=Severity.WARNING,
                message=f"no encoding for the activation {what}",
                where=self.where(tensor),
                hint="calibrate the use case with its branches; without it the tensor keeps "
                "the range of the other use cases, or stays without one if none has it",
            )
        )

    def computed_activation(self, tensor: str, what: str, source: str) -> None:
        """An activation whose range follows from that of another tensor."""
        self.findings.append(
            Finding(
                rule="encodings/computed-activation",
                severity=Severity.NOTE,
                message=f"the encoding of {what} was computed from {source}",
                where=self.where(tensor),
            )
        )


@dataclass(frozen=True, eq=False)
class Sources:
    """Where the encodings of one use case are taken from.

    `file` maps our tensor names to what the use case's file says; `on_our_graph`: it was made on a
    graph of ours, so that it tells of our values. `base` holds the base's encodings, `known` the
    ranges of the use case's weights if they were seen already; otherwise the weights are read, but
    only if somebody asks for their ranges.
    """

    compilation: Compilation
    use_case: str
    file: Mapping[str, Encoding]
    on_our_graph: bool
    base: Mapping[str, Encoding]
    known: WeightRanges | None

    @cached_property
    def ranges(self) -> WeightRanges:
        """The ranges of every weight of the use case."""
        if self.known is not None:
            return self.known
        ranges = WeightRanges()
        for point in use_case_weights(self.compilation, self.use_case):
            ranges.observe(point)
        return ranges

    def range_of(self, weight: str) -> tuple[float, float]:
        """Smallest and largest value of a weight."""
        return float(self.ranges.low[weight].min()), float(self.ranges.high[weight].max())

    def grid_of(self, tensor: str, found: UseCaseEncodings) -> Encoding | None:
        """The grid that a tensor has in the use case: the base's, where that is fixed."""
        updatable: UpdatableTensors = self.compilation.having("updatable")
        fixed = self.base.get(tensor)
        if fixed is not None and tensor not in updatable:
            return fixed
        return found.encodings.get(tensor, found.neutral.get(tensor, fixed))
