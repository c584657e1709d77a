"""One constant grid for every tensor of the qnn target's graph, over all use cases.

    a'       union of a / p                      p, q, ratio: see lora_quant.targets.qnn.factors
    m'       union of m * q, with 0 in the middle: alpha 0 is exact
    ratio    from 0 to the largest ratio of the module
    s        alpha's, since E is a mask; t = s * ratio from the ends of both
    h, y     one grid for both, and for what vectors make of h: zeros of a branch change no code
    others   union of what the use cases and the base say

Encodings are compiled into the graph of this device, so that no use case has its own. What makes
adapters differ most, their magnitude, is in the ratios and not in the grids. Grids are asymmetric:
the device has unsigned activations, and a symmetric grid is one of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity, NumberKind
from lora_quant.encodings.products import holding_one, times
from lora_quant.encodings.running_union import RunningUnion
from lora_quant.encodings.union import union
from lora_quant.errors import EncodingsError, Where
from lora_quant.findings import Finding
from lora_quant.graph.device.rank_ratios import RankRatio
from lora_quant.graph.records import Branch, BranchedGraph, Vector, VectorTensors
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.weight_ranges import WeightRanges
from lora_quant.passes.weight_values import shared_weights, use_case_weights
from lora_quant.targets.qnn.factors import RankMagnitudes, magnitudes, spare_range


@dataclass
class _Range:
    """What a tensor reaches over the use cases."""

    low: float = 0.0
    high: float = 0.0

    def add(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    @property
    def reach(self) -> float:
        return max(-self.low, self.high)


@dataclass
class _Module:
    """What is kept of one branch over the use cases: five numbers."""

    a: _Range = field(default_factory=_Range)
    m: _Range = field(default_factory=_Range)
    ratio: float = 0.0


class SharedGrids:
    """Filled by `take`, one use case after the other; `activations` is the result."""

    def __init__(self, compilation: Compilation, ratios: Sequence[RankRatio]) -> None:
        """Raises EncodingsError for a branch whose activations have no encoding."""
        branched: BranchedGraph = compilation.having("branched")
        self._compilation = compilation
        self._merged = compilation.having("merged")
        self._base: Mapping[str, Encoding] = self._merged.base.encodings
        self._ratios = {ratio.branch.attach.name: ratio for ratio in ratios}
        self._modules = {name: _Module() for name in self._ratios}
        self._unions: dict[str, RunningUnion] = {}
        self._with_scale = branched.scale is not None and branched.scale.expansion is not None
        self._own = {t for r in ratios for t in (r.branch.a, r.branch.m)}
        for ratio in ratios:
            for tensor in (ratio.branch.a, ratio.branch.m):
                self._known(self._base, tensor, ratio.branch)

    def take(self, use_case: str) -> tuple[Finding, ...]:
        """Read the weights and the encodings of one use case; returns what was noticed."""
        ranges, found = WeightRanges(), dict[str, RankMagnitudes]()
        for point in use_case_weights(self._compilation, use_case):
            ranges.observe(point)
            if point.branch is not None:
                found[point.point.name] = self.magnitudes(use_case, point.branch, point.values)
        for record, values in shared_weights(self._compilation, use_case):
            ranges.take(record.name, values)
        file, findings = self._merged.for_use_case(use_case, ranges)
        for name, seen in found.items():
            if not seen.is_empty:
                self._take_module(self._ratios[name].branch, seen, file.encodings)
        updatable = self._compilation.having("updatable")
        for tensor in updatable.activations - self._own:
            encoding = file.encodings.get(tensor)
            if encoding is not None:
                self._unite(tensor, encoding, use_case)
        return tuple(findings)

    def magnitudes(
        self, use_case: str, branch: Branch, values: Mapping[str, np.ndarray]
    ) -> RankMagnitudes:
        """Those of one branch with the floor that its grids can spare."""
        bits = self._known(self._base, branch.a, branch).bits
        return magnitudes(
            branch,
            values,
            self._compilation.having("slots").use_cases[use_case],
            floor=spare_range(bits, self._compilation.options.weight_bits),
            with_scale=self._with_scale,
        )

    def activations(self) -> dict[str, Encoding]:
        """The grid of every activation that is known, asymmetric."""
        found = {
            name: encoding
            for name, encoding in self._base.items()
            if encoding.granularity is Granularity.PER_TENSOR and encoding.bits <= 16
        }
        found.update((tensor, united.result()) for tensor, united in self._unions.items())
        strength = dict(self._strengths())
        found.update(strength)
        for name, module in self._modules.items():
            ratio = self._ratios[name]
            branch = ratio.branch
            bits = self._base[branch.a].bits
            found[branch.a] = from_range(module.a.low, module.a.high, bits=bits)
            found[branch.m] = centred(module.m.reach, bits=self._base[branch.m].bits)
            found[ratio.product] = times(
                self._strength_of(branch), 0.0, self.ratio(name).maximum.item()
            )
        return self._tied({name: unsigned(encoding) for name, encoding in found.items()})

    def ratio(self, name: str) -> Encoding:
        """The grid of the ratio of one attach point: as many bits as a has, from 0 on."""
        module = self._modules[name]
        bits = self._base[self._ratios[name].branch.a].bits
        largest = module.ratio or 1.0
        scale = np.float32(largest / (2**bits - 1))
        if float(scale) * (2**bits - 1) < largest:
            scale = np.nextafter(scale, np.float32(np.inf))
        return Encoding.per_tensor(float(scale), 0.0, bits=bits, symmetric=False)

    def vector(self, made: VectorTensors) -> Encoding:
        """The grid of g, h or c: the range of its encoding, in the bits of what it meets.

        Raises EncodingsError without an encoding.
        """
        known, met = self._base.get(made.weight.name), self._base.get(made.input)
        if known is None or known.scale is None:
            raise EncodingsError(
                "the weight has no encoding",
                where=Where(module=made.attach.name, tensor=made.weight.name),
                hint="give quant_overrides to the use cases that bring this vector",
            )
        bits = self._compilation.options.activation_bits if met is None else met.bits
        grid = from_range(float(known.minimum.min()), float(known.maximum.max()), bits=bits)
        return grid if made.vector is Vector.C else holding_one(grid)

    def _tied(self, found: dict[str, Encoding]) -> dict[str, Encoding]:
        """One grid for what an idle branch or vector gives on, so that no code of it changes."""
        branched: BranchedGraph = self._compilation.having("branched")
        pairs = [(branch.h, branch.y) for branch in branched.branches]
        pairs += [(made.input, made.output) for made in branched.vectors]
        groups: dict[str, list[str]] = {}
        for pair in pairs:
            one, other = (groups.setdefault(tensor, [tensor]) for tensor in pair)
            if one is not other:
                one += other
                groups.update((tensor, one) for tensor in other)
        for group in {id(group): group for group in groups.values()}.values():
            known = [found[tensor] for tensor in group if tensor in found]
            if known and all(encoding.scale is not None for encoding in known):
                shared = union(known)
                found.update((tensor, shared) for tensor in group)
        return found

    def _take_module(
        self, branch: Branch, seen: RankMagnitudes, encodings: Mapping[str, Encoding]
    ) -> None:
        module = self._modules[branch.attach.name]
        a, m = (self._known(encodings, t, branch) for t in (branch.a, branch.m))
        used = seen.ratio > 0
        weakest = float(seen.a[used].min())
        module.a.add(a.minimum.item() / weakest, a.maximum.item() / weakest)
        strongest = float(seen.b[used].max())
        low, high = m.minimum.item() * strongest, m.maximum.item() * strongest
        module.m.add(low, high)
        if (seen.scale[used] < 0).any():
            module.m.add(-high, -low)
        module.ratio = max(module.ratio, float(seen.ratio.max()))

    def _unite(self, tensor: str, encoding: Encoding, use_case: str) -> None:
        try:
            if tensor not in self._unions:
                self._unions[tensor] = RunningUnion()
                known = self._base.get(tensor)
                if known is not None:
                    self._unions[tensor].add(known)
            self._unions[tensor].add(encoding)
        except EncodingsError as error:
            raise EncodingsError(
                error.message, where=Where(use_case=use_case, tensor=tensor), hint=error.hint
            ) from error

    def _strengths(self) -> Iterator[tuple[str, Encoding]]:
        """alpha, the gate, and s in every form: E is a mask, so that s has the grid of alpha."""
        scale = self._compilation.having("branched").scale
        if scale is None:
            return
        alpha = self._base[scale.alpha.name]
        yield scale.alpha.name, alpha
        gated = alpha
        if scale.gate is not None:
            gate = self._base[scale.gate.name]
            yield scale.gate.name, gate
            gated = times(alpha, min(0.0, gate.minimum.item()), max(1.0, gate.maximum.item()))
        for tensor in scale.scales:
            yield tensor, gated if tensor in scale.gated else alpha

    def _strength_of(self, branch: Branch) -> Encoding:
        strengths = dict(self._strengths())
        scale = self._compilation.having("branched").scale
        is_gated = bool(branch.attach.gates)
        for tensor in reversed(scale.scales):
            if (tensor in scale.gated) == is_gated:
                return strengths[tensor]
        return strengths[scale.alpha.name]

    def _known(self, encodings: Mapping[str, Encoding], tensor: str, branch: Branch) -> Encoding:
        encoding = encodings.get(tensor)
        is_plain = encoding is not None and encoding.granularity is Granularity.PER_TENSOR
        if encoding is None or not is_plain or encoding.kind is NumberKind.FLOAT:
            what = "no encoding" if encoding is None else f"a {encoding.kind.value} encoding"
            raise EncodingsError(
                f"an activation of the branch has {what}, expected a per-tensor integer one",
                where=Where(module=branch.attach.name, tensor=tensor),
                hint="calibrate the use cases on the graph with branches, so that their "
                "quant_overrides tell the ranges of the branch",
            )
        return encoding


def centred(reach: float, *, bits: int) -> Encoding:
    """The unsigned grid whose middle code is 0, up to `reach` on both sides.

    The HTP multiplies around the middle code. It corrects for a zero that is elsewhere with a
    rounding of its own, so that a product of zeros is off by up to three steps.
    """
    grid = from_range(-reach, reach, bits=bits, symmetric=True)
    return unsigned(grid)


def unsigned(encoding: Encoding) -> Encoding:
    """The same grid, stored unsigned."""
    return replace(encoding, symmetric=False) if encoding.symmetric else encoding
