"""Reading the encodings that a use case brings, in the names and the layout of our graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings import aimet_1_0_0
from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.convert import TensorFacts, convert
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import read_encodings
from lora_quant.errors import Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.factors import branch_factors, expansion_matrix
from lora_quant.passes.merging.alpha_range import other_alpha
from lora_quant.passes.merging.branch_encodings import BranchFitter, UseCaseEncodings
from lora_quant.passes.merging.contributions import Contribution, contributions
from lora_quant.passes.merging.tensor_names import TensorNames, Translation
from lora_quant.passes.merging.weight_ranges import WeightRanges, channel_axes


@dataclass(frozen=True, eq=False)
class EncodingsReader:
    """Reads use cases of one compilation; `alpha` is the encoding of the alpha input.

    `base_file` is the content of `base_path`, which is read once however many use cases name it.
    """

    compilation: Compilation
    names: TensorNames
    alpha: Encoding
    base_path: Path
    base_file: EncodingFile

    def read(self, use_case: UseCaseInputConfig, ranges: WeightRanges | None) -> UseCaseEncodings:
        """Encodings of every tensor that the use case has one for.

        `ranges` of its weights, if they were seen already; otherwise the weights are read here, but
        only if the file lacks an encoding for one of them.
        """
        branched: BranchedGraph = self.compilation.having("branched")
        file = self._file(use_case.encodings)
        translation = self.names.translate(file.encodings if file else ())
        encodings = (
            {tensor: file.encodings[name] for tensor, name in translation.names.items()}
            if file
            else {}
        )
        active = contributions(self.compilation, use_case.name)
        if file:
            encodings.update(_one_rank_weights(file, encodings, branched, active))
        result = UseCaseEncodings(findings=list(_reading_findings(use_case, file, translation)))
        alpha = encodings.get(branched.scale.alpha.name)
        result.findings.extend(other_alpha(use_case, alpha, self.alpha))
        added = self.names.added
        result.encodings.update((t, e) for t, e in encodings.items() if t not in added)
        result.given.update(result.encodings)
        fitter = BranchFitter(
            use_case=use_case.name,
            source=use_case.encodings,
            file=encodings,
            on_our_graph=any(translation.names.get(b.a) == b.a for b in branched.branches),
            weight_bits=self.compilation.options.weight_bits,
        )
        if ranges is None and any(
            fitter.needs_values(branched.branches[number], items)
            for number, items in active.items()
        ):
            ranges = WeightRanges()
            for factors in branch_factors(self.compilation, use_case.name):
                ranges.observe(factors)
        idle = [
            tensor
            for number, branch in enumerate(branched.branches)
            if number not in active
            for tensor in (branch.a_weight.name, branch.b_weight.name, branch.a, branch.m, branch.l)
            if tensor in encodings
        ]
        if idle:
            result.findings.append(_idle(use_case, idle))
        for number, items in active.items():
            fitter.fit(result, branched.branches[number], items, ranges)
        for branch in branched.branches:
            if branch.h in encodings:
                result.encodings[branch.h] = encodings[branch.h]
        self._scale(result, use_case)
        return result

    def _file(self, path: Path | None) -> EncodingFile | None:
        if path is None:
            return None
        return self.base_file if path == self.base_path else read_encodings(path)

    def _scale(self, result: UseCaseEncodings, use_case: UseCaseInputConfig) -> None:
        """E from its values, s and its re-layouts from the range of alpha times E.

        Each column of E has at most one entry, so a grid per column stores it exactly.
        """
        branched: BranchedGraph = self.compilation.having("branched")
        slots = self.compilation.having("slots").use_cases[use_case.name]
        record, options = branched.scale.expansion, self.compilation.options
        if record is None:
            for tensor in branched.scale.scales:
                result.encodings[tensor] = self.alpha
            return
        if not slots:
            return
        matrix = expansion_matrix(record, slots).astype(np.float64)
        result.encodings[record.name] = from_range(
            matrix.min(axis=0),
            matrix.max(axis=0),
            bits=options.weight_bits,
            symmetric=True,
            axis=1,
            single=True,
        )
        result.owned[record.name] = tuple(
            rank for slot in slots for rank in range(slot.start, slot.start + slot.rank)
        )
        ends = [
            float(bound) * slot.scale
            for slot in slots
            for bound in (self.alpha.minimum, self.alpha.maximum)
        ]
        strength = from_range(min(ends), max(ends), bits=options.activation_bits, symmetric=False)
        for tensor in branched.scale.scales:
            result.encodings[tensor] = strength


def _idle(use_case: UseCaseInputConfig, tensors: list[str]) -> Finding:
    return Finding(
        rule="encodings/idle-branch",
        severity=Severity.WARNING,
        message=f"{len(tensors)} encodings are for branches that the adapters of the use case "
        f"leave idle, and were left out: {some(tensors)}",
        where=Where(file=use_case.encodings, use_case=use_case.name),
        hint="the file may belong to another use case",
    )


def _one_rank_weights(
    file: EncodingFile,
    encodings: Mapping[str, Encoding],
    branched: BranchedGraph,
    active: Mapping[int, tuple[Contribution, ...]],
) -> Mapping[str, Encoding]:
    """A of rank 1, whose one entry 0.6.1 does not tell from per tensor, as its header means it."""
    facts = {}
    for number, items in active.items():
        record = branched.branches[number].a_weight
        if sum(item.rank for item in items) == 1 and record.name in encodings:
            axis = channel_axes(branched.branches[number])[0]
            shape = tuple(1 if i == axis else size for i, size in enumerate(record.shape))
            facts[record.name] = TensorFacts(shape, axis, 1 - axis)
    weights = {name: encodings[name] for name in facts}
    alone = EncodingFile(file.version, weights, frozenset(weights), file.header)
    return convert(alone, aimet_1_0_0.VERSION, facts).encodings


def _reading_findings(
    use_case: UseCaseInputConfig, file: EncodingFile | None, translation: Translation
) -> Iterator[Finding]:
    where = Where(file=use_case.encodings, use_case=use_case.name)
    yield from file.findings if file else ()
    if translation.unknown:
        yield Finding(
            rule="encodings/unknown-tensor",
            severity=Severity.WARNING,
            message=f"{len(translation.unknown)} encodings belong to no tensor of the graph and "
            f"were left out: {some(translation.unknown)}",
            where=where,
            hint="the encodings were made on another export, or on one with other adapters",
        )
    for tensor, names in translation.several.items():
        yield Finding(
            rule="encodings/ambiguous-tensor",
            severity=Severity.WARNING,
            message=f"{len(names)} encodings claim one tensor, none was taken: {', '.join(names)}",
            where=Where(file=use_case.encodings, use_case=use_case.name, tensor=tensor),
            hint="adapters that are chained in the use case's graph have no common grid here",
        )
