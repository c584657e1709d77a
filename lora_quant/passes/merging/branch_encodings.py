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
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lora_quant.encodings.algebra import scaled, scatter_channels
from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.convert import TensorFacts, resolve
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity
from lora_quant.errors import EncodingsError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import Branch
from lora_quant.passes.merging.block_placement import placed_blocks, resolved_blocks
from lora_quant.passes.merging.contributions import Contribution
from lora_quant.passes.merging.weight_ranges import WeightRanges, channel_axes


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
        smallest = min(abs(i.ratio) for i in items)
        if branch.a in self.file and (branch.m not in self.file or smallest == 0):
            self._scaled_activation(result, branch, items)
        else:
            self._activation(result, branch.m, "m = s * a", 1.0 / (smallest or 1.0))
        self._activation(result, branch.l, "l = B m")

    def needs_values(self, branch: Branch, items: tuple[Contribution, ...]) -> bool:
        """Whether an encoding has to be computed, since the file's does not serve or is missing."""
        given_a = self.file.get(branch.a_weight.name)
        given_b = self.file.get(branch.b_weight.name)
        if given_a is None or given_b is None:
            return True
        return not _order_is_known(given_a, items) or _common_factor(given_b, branch, items) is None

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
            fitted = self._fitted(given, branch, items, is_a=is_a)
            if fitted is not None:
                result.encodings[name] = fitted
                result.given.add(name)
            else:
                result.findings.append(self._computed(name))
        if name not in result.encodings and ranges is not None:
            axis = channel_axes(branch)[0 if is_a else 1]
            result.encodings[name] = from_range(
                ranges.low[name],
                ranges.high[name],
                bits=self.weight_bits,
                symmetric=True,
                axis=axis,
                single=True,
            )
        if is_a and name in result.encodings:
            result.owned[name] = _ranks(items)

    def _fitted(
        self, given: Encoding, branch: Branch, items: tuple[Contribution, ...], *, is_a: bool
    ) -> Encoding | None:
        """A given grid in the layout and with the axes of our graph; None if it does not serve.

        The file's axes are those of another layout, or are not told. Every error names the tensor.
        """
        record = branch.a_weight if is_a else branch.b_weight
        axis = channel_axes(branch)[0 if is_a else 1]
        fit = self._fit_a if is_a else self._fit_b
        try:
            fitted = fit(given, branch, items)
            if fitted is None:
                return None
            if fitted.granularity is Granularity.PER_CHANNEL:
                fitted = replace(fitted, axis=None)
            return resolve(fitted, TensorFacts(record.shape, axis, 1 - axis))
        except EncodingsError as error:
            raise EncodingsError(
                error.message,
                where=Where(file=self.source, use_case=self.use_case, tensor=record.name),
                hint=error.hint,
            ) from error

    def _fit_a(
        self, given: Encoding, branch: Branch, items: tuple[Contribution, ...]
    ) -> Encoding | None:
        """Move the scales of the file's ranks to the slots; per tensor there is nothing to move.

        None where the file's order of ranks is not known: several adapters on a fused projection.
        """
        if not _order_is_known(given, items):
            return None
        if given.granularity is Granularity.PER_TENSOR or given.scale is None:
            return given
        axis = channel_axes(branch)[0]
        total = branch.a_weight.shape[axis]
        ranks = _ranks(items)
        if given.block_size is not None and given.channels is None:
            given = self._unfolded(given, branch, axis)
        count = given.channels or 0
        if self.on_our_graph and count == total:
            return given
        if count == total and ranks == tuple(range(len(ranks))):
            return given  # padded at the tail to the same max rank
        if count != len(ranks):
            raise EncodingsError(
                f"lora_A has {count} scales per channel; the adapters of use case "
                f"{self.use_case!r} have {len(_ranks(items))} ranks here",
                hint="the encodings belong to other adapters, or their graph pads the ranks in a "
                "way that cannot be told from names alone",
            )
        return scatter_channels(given, ranks, total)

    def _unfolded(self, given: Encoding, branch: Branch, axis: int) -> Encoding:
        """A's blocks, which 1.0.0 stores flat, by rank; the file's own number of ranks is kept."""
        size, inputs = given.block_size or 1, branch.attach.linear.in_features
        blocks = inputs // size
        if blocks == 0 or inputs % size or given.step_scale.size % blocks:
            raise EncodingsError(
                f"lora_A has {given.step_scale.size} blocks of {size}; expected a multiple of the "
                f"blocks in {inputs} inputs",
                hint="the encodings belong to another graph",
            )
        return resolved_blocks(given, branch.a_weight, axis, given.step_scale.size // blocks)

    def _fit_b(
        self, given: Encoding, branch: Branch, items: tuple[Contribution, ...]
    ) -> Encoding | None:
        """Scale by what was folded into B.

        None if adapters were folded with different factors, or a module is off: then B is not the
        one that the file speaks of.
        """
        channels = branch.b_weight.shape[channel_axes(branch)[1]]
        if given.channels not in (None, channels):
            raise EncodingsError(
                f"lora_B has {given.channels} scales per channel, the module has {channels} "
                "output features",
                hint="the encodings belong to another graph",
            )
        factor = _common_factor(given, branch, items)
        if factor is None:
            return None
        fitted = given if factor == 1.0 else scaled(given, factor)
        return fitted if given.block_size is None else placed_blocks(fitted, branch, items)

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
                    hint="calibrate the use case with its branches; without it the tensor keeps "
                    "the range of the other use cases, or stays without one if none has it",
                )
            )
            return
        result.encodings[tensor] = given if factor == 1.0 else scaled(given, factor)
        result.given.add(tensor)

    def _scaled_activation(
        self, result: UseCaseEncodings, branch: Branch, items: tuple[Contribution, ...]
    ) -> None:
        """m = s * a from the grid of a: exact for one strength > 0, else a range that covers all.

        Graphs that scale behind B (A -> B -> Mul) have no such tensor.
        """
        result.encodings[branch.m] = _times(self.file[branch.a], {item.strength for item in items})
        result.findings.append(
            Finding(
                rule="encodings/computed-activation",
                severity=Severity.NOTE,
                message="the encoding of m = s * a was computed from that of a and the strength",
                where=Where(file=self.source, use_case=self.use_case, tensor=branch.m),
            )
        )

    def _computed(self, tensor: str) -> Finding:
        return Finding(
            rule="encodings/computed-weight",
            severity=Severity.NOTE,
            message="the given encoding does not fit the weight as it is compiled, and was "
            "computed from the values: adapters with different scales are folded into B, or "
            "several adapters share a fused projection",
            where=Where(file=self.source, use_case=self.use_case, tensor=tensor),
        )


def _times(given: Encoding, strengths: set[float]) -> Encoding:
    """The grid of the values of a per-tensor grid times any of the strengths."""
    if given.scale is None:
        return given
    if len(strengths) == 1 and min(strengths) > 0:
        return scaled(given, min(strengths))
    ends = [float(end) * s for end in (given.minimum, given.maximum) for s in strengths]
    return from_range(min(ends), max(ends), bits=given.bits, symmetric=given.symmetric)


def _common_factor(
    given: Encoding, branch: Branch, items: tuple[Contribution, ...]
) -> float | None:
    """What B was scaled by, if it was the same for all adapters and none is switched off.

    A negative factor mirrors the values, which only a symmetric grid takes.
    """
    factors = {item.ratio * branch.attach.linear.gain for item in items}
    if len(factors) > 1 or 0.0 in factors or (min(factors) < 0 and not given.symmetric):
        return None
    return abs(factors.pop())


def _order_is_known(given: Encoding, items: tuple[Contribution, ...]) -> bool:
    is_per_tensor = given.granularity is Granularity.PER_TENSOR
    return is_per_tensor or len({i.slot for i in items}) == 1 or len({i.part for i in items}) == 1


def _ranks(items: tuple[Contribution, ...]) -> tuple[int, ...]:
    return tuple(int(r) for i in items for r in np.arange(i.start, i.start + i.rank))
