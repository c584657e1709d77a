"""Encodings of a use case that has a graph of its own, which is the final graph but for values.

its file names the tensors of the graph   ->  taken as they are
a LoRA weight that it leaves out          ->  computed from the values, in the base's structure

In a graph that is neutral, a use case without adapters leaves its branches idle: what its file
says of them is of zeros, and the grids of the other use cases stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.convert import TensorFacts, resolve
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.kinds import BLOCKWISE, Granularity
from lora_quant.encodings.like import grid_like
from lora_quant.errors import EncodingsError, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import Branch, BranchedGraph
from lora_quant.passes.merging.axes import base_facts
from lora_quant.passes.merging.collected import Sources, UseCaseEncodings
from lora_quant.passes.merging.named_encodings import named_encodings
from lora_quant.passes.merging.strength_inputs import other_inputs
from lora_quant.passes.merging.tensor_names import TensorNames
from lora_quant.passes.merging.use_case_encodings import EncodingsReader
from lora_quant.passes.merging.weight_ranges import WeightRanges
from lora_quant.passes.weight_values import shared_weights


@dataclass(frozen=True, eq=False)
class FinalReader(EncodingsReader):
    """Reads the use cases of a final graph; adapters that are placed are read as ever."""

    def read(self, use_case: UseCaseInputConfig, ranges: WeightRanges | None) -> UseCaseEncodings:
        """Encodings of every tensor that the use case has one for."""
        given = self.compilation.having("given")
        if use_case.name not in given.stored:
            return super().read(use_case, ranges)
        file = self._file(use_case.encodings)
        result = UseCaseEncodings(use_case.name, use_case.encodings)
        encodings: Mapping[str, Encoding] = {}
        if file is not None:
            named = named_encodings(self.compilation, self.names, use_case, file, {})
            encodings = named.encodings
            result.findings.extend(named.findings)
        is_idle = given.is_neutral and not use_case.adapter_names
        own = self._of_base(encodings) if is_idle else encodings
        facts = base_facts(self.compilation.base)
        for tensor, encoding in own.items():
            if self.inputs is None or tensor not in self.inputs.encodings:
                result.take(tensor, _resolved(tensor, encoding, facts, result))
        if self.inputs is not None:
            result.findings.extend(other_inputs(use_case, encodings, self.inputs))
        if not is_idle:
            self._add_missing(result, encodings, ranges, facts)
        return result

    def _of_base(self, encodings: Mapping[str, Encoding]) -> Mapping[str, Encoding]:
        own = frozenset(self.names.base_side.values())
        return {
            tensor: encoding
            for tensor, encoding in encodings.items()
            if tensor in own or tensor not in self.names.added
        }

    def _add_missing(
        self,
        result: UseCaseEncodings,
        given: Mapping[str, Encoding],
        ranges: WeightRanges | None,
        facts: Mapping[str, TensorFacts],
    ) -> None:
        """The weights that the file leaves out, from their values; activations are named."""
        branched: BranchedGraph = self.compilation.having("branched")
        sources = Sources(
            compilation=self.compilation,
            use_case=result.use_case,
            file=given,
            on_our_graph=True,
            base=self.base.encodings,
            known=ranges,
        )
        known = self.base_file.encodings
        computed: list[str] = []
        for branch in branched.branches:
            axes = branch.channel_axes
            for record, axis in zip((branch.a_weight, branch.b_weight), axes, strict=True):
                if record.name not in given:
                    grid = self._from_values(sources, record.name, axis, known.get(record.name))
                    result.encodings[record.name] = grid
                    computed.append(record.name)
            for tensor, what in _activations(branch).items():
                if tensor not in given and tensor not in known:
                    result.missing_activation(tensor, what)
        scale = branched.scale
        if scale is not None and scale.expansion is not None and scale.expansion.name not in given:
            self._add_expansion(result, scale.expansion.name, known, facts)
        if computed and given:
            result.findings.append(_computed(result, computed))

    def _from_values(
        self, sources: Sources, weight: str, axis: int, known: Encoding | None
    ) -> Encoding:
        low, high = sources.ranges.low[weight], sources.ranges.high[weight]
        bits, symmetric, is_whole = self.compilation.options.weight_bits, True, False
        if known is not None and known.scale is not None and known.granularity not in BLOCKWISE:
            bits, symmetric = known.bits, known.symmetric
            is_whole = known.granularity is Granularity.PER_TENSOR
        if is_whole:
            return from_range(low.min(), high.max(), bits=bits, symmetric=symmetric, single=True)
        return from_range(low, high, bits=bits, symmetric=symmetric, axis=axis, single=True)

    def _add_expansion(
        self,
        result: UseCaseEncodings,
        name: str,
        known: Mapping[str, Encoding],
        facts: Mapping[str, TensorFacts],
    ) -> None:
        """The matrix that expands strengths: a grid per column, or in the structure of the base."""
        values = next(
            values
            for record, values in shared_weights(self.compilation, result.use_case)
            if record.name == name
        )
        if name in known:
            structure = _resolved(name, known[name], facts, result)
            result.encodings[name] = grid_like(structure, values)
            return
        bits = self.compilation.options.weight_bits
        result.encodings[name] = from_range(
            values.min(axis=0), values.max(axis=0), bits=bits, symmetric=True, axis=1, single=True
        )


def with_base_outputs(base: EncodingFile, file: EncodingFile, names: TensorNames) -> EncodingFile:
    """What the file has for the base's own outputs, which are tensors of a final graph."""
    outputs = names.base_side.values()
    return base.updated({own: file.encodings[own] for own in outputs if own in file.encodings})


def with_branches(base: EncodingFile, file: EncodingFile, names: TensorNames) -> EncodingFile:
    """The base's encodings, with those that its own file has for the branches of the graph."""
    kept = {tensor: file.encodings[tensor] for tensor in names.added if tensor in file.encodings}
    order = {tensor: number for number, tensor in enumerate(file.encodings)}
    merged = {**kept, **base.encodings}
    ordered = sorted(merged, key=lambda tensor: order.get(tensor, len(order)))
    params = None
    if base.params is not None and file.params is not None:
        params = base.params | (file.params & kept.keys())
    return replace(base, encodings={tensor: merged[tensor] for tensor in ordered}, params=params)


def _resolved(
    tensor: str, encoding: Encoding, facts: Mapping[str, TensorFacts], result: UseCaseEncodings
) -> Encoding:
    """A weight's grid with its axes; EncodingsError, naming the tensor, if it does not fit."""
    own = facts.get(tensor)
    if own is None or encoding.granularity is Granularity.PER_TENSOR or encoding.scale is None:
        return encoding
    try:
        return resolve(encoding, own)
    except EncodingsError as error:
        raise EncodingsError(error.message, where=result.where(tensor), hint=error.hint) from error


def _activations(branch: Branch) -> dict[str, str]:
    return {branch.l: "l = B m", branch.m: "m = s * a", branch.a: "a = A x"}


def _computed(result: UseCaseEncodings, weights: list[str]) -> Finding:
    return Finding(
        rule="encodings/computed-weight",
        severity=Severity.NOTE,
        message=f"the file has no encoding for {len(weights)} LoRA weights, which were computed "
        f"from the values: {some(weights)}",
        where=result.where(weights[0]),
    )
