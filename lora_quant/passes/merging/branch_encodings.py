"""Encodings of one branch in one use case, brought into the layout of our graph.

    A per channel    the file's r scales move to the ranks of the slots, the others are filled
    B                as it is, scaled by what was folded into B
    a, l             as they are
    m = s * a        as it is, divided by what was folded into B

That holds for a file made on a graph with the trained A and B. One made on our graph tells of our
values and is taken as it is. Where neither is so, because a kind's A and B are computed, s differs
from rank to rank or B carries a g, weights are computed from their values and m from a.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity
from lora_quant.encodings.products import times
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import Branch, Form
from lora_quant.passes.merging.collected import Sources, UseCaseEncodings
from lora_quant.passes.merging.contributions import Contribution
from lora_quant.passes.merging.factor_grids import fitted, ranks_of, scaled_unless_one


@dataclass(frozen=True, eq=False)
class BranchFitter:
    """Fits what the sources of one use case tell to the branches that its adapters fill."""

    sources: Sources

    def fit(
        self, result: UseCaseEncodings, branch: Branch, items: tuple[Contribution, ...]
    ) -> None:
        """Add the encodings of one active branch to `result`."""
        self._weight(result, branch, items, is_a=True)
        self._weight(result, branch, items, is_a=False)
        self._a(result, branch)
        self._m(result, branch, items)
        is_theirs = any(item.is_gained for item in items) and not self.sources.on_our_graph
        if branch.l in self.sources.file and not is_theirs:
            result.take(branch.l, self.sources.file[branch.l])
        else:
            result.missing_activation(branch.l, "l = B m")

    def _weight(
        self,
        result: UseCaseEncodings,
        branch: Branch,
        items: tuple[Contribution, ...],
        *,
        is_a: bool,
    ) -> None:
        record = branch.a_weight if is_a else branch.b_weight
        given = self.sources.file.get(record.name)
        own = None
        if given is not None:
            own = fitted(given, branch, items, result, self.sources.on_our_graph, is_a=is_a)
            if own is not None:
                result.take(record.name, own)
            else:
                result.findings.append(_computed(result, record.name))
        if own is None:
            result.encodings[record.name] = self._from_values(branch, given, is_a=is_a)
        if is_a:
            result.owned[record.name] = ranks_of(items)

    def _from_values(self, branch: Branch, given: Encoding | None, *, is_a: bool) -> Encoding:
        """The min-max grid of a factor, in the structure that the file has for it.

        Without one it is per channel; the table of an embedding per tensor, since what is looked up
        has no channels.
        """
        name = (branch.a_weight if is_a else branch.b_weight).name
        low, high = self.sources.ranges.low[name], self.sources.ranges.high[name]
        axis: int | None = branch.channel_axes[0 if is_a else 1]
        bits, is_symmetric = self.sources.compilation.options.weight_bits, True
        is_whole = is_a and branch.attach.linear.form is Form.EMBEDDING
        if given is not None and given.scale is not None and given.block_size is None:
            bits, is_symmetric = given.bits, given.symmetric
            is_whole = given.granularity is Granularity.PER_TENSOR
        if is_whole:
            return from_range(low.min(), high.max(), bits=bits, symmetric=is_symmetric, single=True)
        return from_range(low, high, bits=bits, symmetric=is_symmetric, axis=axis, single=True)

    def _a(self, result: UseCaseEncodings, branch: Branch) -> None:
        """a as given; rows of a table cannot leave the table's range."""
        given = self.sources.file.get(branch.a)
        if given is not None:
            result.take(branch.a, given)
        elif branch.attach.linear.form is Form.EMBEDDING:
            bits = self.sources.compilation.options.activation_bits
            ends = self.sources.range_of(branch.a_weight.name)
            result.encodings[branch.a] = from_range(*ends, bits=bits)
            result.computed_activation(branch.a, "a, rows of A,", "the values of A")
        else:
            result.missing_activation(branch.a, "a = A x")

    def _m(self, result: UseCaseEncodings, branch: Branch, items: tuple[Contribution, ...]) -> None:
        """m as given, else from the grid of a: exact for one strength > 0, else covering all.

        Graphs that scale behind B (A -> B -> Mul) have no such tensor.
        """
        given, a = self.sources.file.get(branch.m), result.encodings.get(branch.a)
        if given is not None and self.sources.on_our_graph:
            result.take(branch.m, given)
            return
        ratios = [abs(item.ratio) for item in items if item.ratio is not None]
        is_usable = len(ratios) == len(items) and (min(ratios) > 0 or a is None)
        if given is not None and is_usable:
            result.take(branch.m, scaled_unless_one(given, 1.0 / (min(ratios) or 1.0)))
        elif a is not None:
            strengths = [item.strength for item in items]
            result.encodings[branch.m] = times(a, min(strengths), max(strengths))
            source = "that of a and the strength"
            result.computed_activation(branch.m, "m = s * a", source)
        else:
            result.missing_activation(branch.m, "m = s * a")


def _computed(result: UseCaseEncodings, tensor: str) -> Finding:
    return Finding(
        rule="encodings/computed-weight",
        severity=Severity.NOTE,
        message="the given encoding does not fit the weight as it is compiled, and was computed "
        "from the values: adapters with different scales, or scales that differ from rank to rank, "
        "are folded into B, the kind's factors are computed, or several adapters share a fused "
        "projection",
        where=result.where(tensor),
    )
