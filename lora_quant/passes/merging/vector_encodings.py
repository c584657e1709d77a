"""Encodings of the vectors of an attach point, and of what they give.

    hx = x * h         x's range times that of h
    gh = y_base * g    y_base's range times that of g
    gc = gh + c        gh's range moved by that of c

Weights are per tensor and symmetric: as given by a file that was made on our graph, else computed
from the values. A vector that a use case leaves idle (ones, zeros) passes its input on: what it
gives has the grid of its input, and its weight keeps the base's, on which 1 is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.convert import TensorFacts
from lora_quant.encodings.products import holding_one, plus, times
from lora_quant.errors import Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph, Form, Vector, VectorTensors
from lora_quant.passes.merging.axes import resolved
from lora_quant.passes.merging.collected import Sources, UseCaseEncodings

_WHAT = {
    Vector.H: "hx = x * h",
    Vector.G: "gh = y_base * g",
    Vector.C: "gc = gh + c",
}


@dataclass(frozen=True, eq=False)
class VectorFitter:
    """Fits what the sources of one use case tell to the vectors of all attach points.

    `active` tells, per attach point and vector, the parts whose modules bring it.
    """

    sources: Sources
    active: Mapping[tuple[str, Vector], frozenset[int]]

    def fit(self, result: UseCaseEncodings, vectors: tuple[VectorTensors, ...]) -> None:
        """Add the encodings of every vector to `result`; those of one point are in their order."""
        fixed: list[str] = []
        for made in vectors:
            parts = self.active.get((made.attach.name, made.vector), frozenset())
            if parts:
                self._weight(result, made, parts)
            if made.output != made.attach.output:
                self._output(result, made, is_active=bool(parts))
            elif parts and self._y_may_differ(made):
                # The last vector of a point without low rank gives y.
                self._output(result, made, is_active=True)
            if parts and made.vector is Vector.G and self._leaves_y(made):
                fixed.append(made.attach.output)
        if fixed:
            result.findings.append(_fixed_outputs(result, fixed))

    def _y_may_differ(self, made: VectorTensors) -> bool:
        return made.attach.output in self.sources.compilation.having("updatable")

    def _leaves_y(self, made: VectorTensors) -> bool:
        """Whether g can take y out of the grid of the base, which y keeps."""
        y = made.attach.output
        if self._y_may_differ(made) or y in self.sources.file or y not in self.sources.base:
            return False
        return max(map(abs, self.sources.range_of(made.weight.name))) > 1.0

    def _weight(self, result: UseCaseEncodings, made: VectorTensors, parts: frozenset[int]) -> None:
        given = self.sources.file.get(made.weight.name)
        if given is not None:
            # Every other axis of a vector has size 1.
            axis = 1 if made.attach.linear.form is Form.CONV else 0
            facts = TensorFacts(made.weight.shape, axis)
            result.take(made.weight.name, resolved(given, facts, result.where(made.weight.name)))
            return
        computed = from_range(
            *self.sources.range_of(made.weight.name),
            bits=self.sources.compilation.options.weight_bits,
            symmetric=True,
            single=True,
        )
        # The rows of a fused projection that no adapter scales are multiplied by 1.
        rows = sum(made.attach.parts[part].size for part in parts)
        has_ones = made.vector is Vector.G and rows < made.attach.linear.out_features
        result.encodings[made.weight.name] = holding_one(computed) if has_ones else computed

    def _output(self, result: UseCaseEncodings, made: VectorTensors, *, is_active: bool) -> None:
        given = self.sources.file.get(made.output)
        source = self.sources.grid_of(made.input, result)
        if is_active and given is not None:
            result.take(made.output, given)
        elif source is None:
            if is_active:
                result.missing_activation(made.output, _WHAT[made.vector])
        elif not is_active:
            result.neutral[made.output] = source
        else:
            compute = plus if made.vector is Vector.C else times
            result.encodings[made.output] = compute(
                source, *self.sources.range_of(made.weight.name)
            )
            told = f"that of {made.input!r} and the values of {made.vector.value}"
            result.computed_activation(made.output, _WHAT[made.vector], told)


def neutral_ones(branched: BranchedGraph) -> Iterator[str]:
    """The weights that are ones where no adapter acts: g and h."""
    return (made.weight.name for made in branched.vectors if made.vector is not Vector.C)


def _fixed_outputs(result: UseCaseEncodings, tensors: list[str]) -> Finding:
    return Finding(
        rule="encodings/output-may-clip",
        severity=Severity.NOTE,
        message=f"{len(tensors)} outputs that an adapter scales up keep the range of the base, "
        f"which the mode fixes: {some(tensors)}",
        where=Where(file=result.source, use_case=result.use_case),
        hint="let the range of outputs change with --mode all, or calibrate the base with a range "
        "that serves all use cases",
    )
