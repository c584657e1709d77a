"""Encodings of one use case, brought into the layout of our graph.

    A per channel    the file's r scales move to the ranks of the slots, the others are filled
    B                as it is, scaled by what was folded into B
    a, l             as they are
    m = s * a        as it is, divided by what was folded into B
    s = alpha @ E    from the range of the alpha input and the values of E

What the file does not bring is computed for weights, and reported for activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lora_quant.encodings.algebra import scaled, scatter_channels
from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity
from lora_quant.errors import EncodingsError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import Branch
from lora_quant.passes.contributions import Contribution
from lora_quant.passes.weight_ranges import WeightRanges, channel_axes


@dataclass
class UseCaseEncodings:
    """Encodings by our tensor names.

    owned: for per-channel weights, the channels that an adapter fills; the others hold filler.
    given: tensors whose encoding came from the file.
    """

    encodings: dict[str, Encoding] = field(default_factory=dict)
    owned: dict[str, tuple[int, ...]] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class BranchFitter:
    """Fits the encodings of one use case's file to the branches.

    `file` maps our tensor names to what the file says; `on_our_graph`: the file was made on a graph
    of ours, so that its A already has all R ranks in their slots.
    """

    use_case: str
    source: Path | None
    file: Mapping[str, Encoding]
    on_our_graph: bool
    weight_bits: int

    def fit(
        self,
        result: UseCaseEncodings,
        branch: Branch,
        items: tuple[Contribution, ...],
        ranges: WeightRanges | None,
    ) -> None:
        """Add the encodings of one active branch to `result`."""
        self._weight(result, branch, items, ranges, is_a=True)
        self._weight(result, branch, items, ranges, is_a=False)
        self._activation(result, branch.a, "a = A x")
        self._activation(result, branch.m, "m = s * a", 1.0 / min(abs(i.ratio) for i in items))
        self._activation(result, branch.l, "l = B m")

    def lacks_weights(self, branch: Branch) -> bool:
        """Whether the values of a branch are needed, since the file does not bring both weights."""
        return not {branch.a_weight.name, branch.b_weight.name} <= set(self.file)

    def _weight(
        self,
        result: UseCaseEncodings,
        branch: Branch,
        items: tuple[Contribution, ...],
        ranges: WeightRanges | None,
        *,
        is_a: bool,
    ) -> None:
        name = (branch.a_weight if is_a else branch.b_weight).name
        given = self.file.get(name)
        if given is not None:
            fitted = (
                self._fit_a(given, branch, items) if is_a else self._fit_b(given, branch, items)
            )
            if fitted is not None:
                result.encodings[name] = fitted
                result.given.add(name)
            else:
                result.findings.append(self._folded(name))
        if name not in result.encodings and ranges is not None:
            axis = channel_axes(branch)[0 if is_a else 1]
            result.encodings[name] = from_range(
                ranges.low[name],
                ranges.high[name],
                bits=self.weight_bits,
                symmetric=True,
                axis=axis,
            )
        if is_a and name in result.encodings:
            result.owned[name] = _ranks(items)

    def _fit_a(self, given: Encoding, branch: Branch, items: tuple[Contribution, ...]) -> Encoding:
        """Move the scales of the file's ranks to the slots; per tensor there is nothing to move."""
        if given.granularity is Granularity.PER_TENSOR or given.scale is None:
            return given
        total = branch.a_weight.shape[channel_axes(branch)[0]]
        ranks = _ranks(items)
        count = given.channels or 0
        if self.on_our_graph and count == total:
            return given
        padded_at_the_tail = count > len(ranks) and ranks == tuple(range(len(ranks)))
        if count != len(ranks) and not padded_at_the_tail:
            raise EncodingsError(
                f"lora_A has {count} scales per channel; the adapters of use case "
                f"{self.use_case!r} have {len(ranks)} ranks here",
                where=Where(file=self.source, use_case=self.use_case, tensor=branch.a_weight.name),
                hint="the encodings belong to other adapters, or their graph pads the ranks in a "
                "way that cannot be told from names alone",
            )
        return scatter_channels(given, ranks, total)

    def _fit_b(
        self, given: Encoding, branch: Branch, items: tuple[Contribution, ...]
    ) -> Encoding | None:
        """Scale by what was folded into B; None if adapters were folded with different factors."""
        channels = branch.b_weight.shape[channel_axes(branch)[1]]
        if given.channels not in (None, channels):
            raise EncodingsError(
                f"lora_B has {given.channels} scales per channel, the module has {channels} "
                "output features",
                where=Where(file=self.source, use_case=self.use_case, tensor=branch.b_weight.name),
                hint="the encodings belong to another graph",
            )
        factors = {item.ratio * branch.attach.linear.gain for item in items}
        if len(factors) > 1:
            return None
        factor = abs(factors.pop())
        return given if factor == 1.0 else scaled(given, factor)

    def _activation(
        self, result: UseCaseEncodings, tensor: str, what: str, factor: float = 1.0
    ) -> None:
        given = self.file.get(tensor)
        if given is None:
            result.findings.append(
                Finding(
                    rule="encodings/missing-activation",
                    severity=Severity.WARNING,
                    message=f"no encoding for the activation {what}",
                    where=Where(file=self.source, use_case=self.use_case, tensor=tensor),
                    hint="calibrate the use case with its branches; without it the converter "
                    "leaves the tensor in float or guesses",
                )
            )
            return
        result.encodings[tensor] = given if factor == 1.0 else scaled(given, factor)
        result.given.add(tensor)

    def _folded(self, tensor: str) -> Finding:
        return Finding(
            rule="encodings/computed-weight",
            severity=Severity.NOTE,
            message="the encoding of lora_B was computed from its values: its adapters scale this "
            "module differently from the others, which is folded into B",
            where=Where(file=self.source, use_case=self.use_case, tensor=tensor),
        )


def _ranks(items: tuple[Contribution, ...]) -> tuple[int, ...]:
    return tuple(int(r) for i in items for r in np.arange(i.start, i.start + i.rank))
