"""Reading the encodings that a use case brings, in the names and the layout of our graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings import aimet_1_0_0
from lora_quant.encodings.convert import TensorFacts, convert
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import read_encodings
from lora_quant.errors import Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.branch_encodings import BranchFitter
from lora_quant.passes.merging.collected import Sources, UseCaseEncodings
from lora_quant.passes.merging.contributions import Contribution, active_vectors, contributions
from lora_quant.passes.merging.replaced_encodings import add_replaced
from lora_quant.passes.merging.router_encodings import add_router
from lora_quant.passes.merging.scale_encodings import add_scale
from lora_quant.passes.merging.strength_inputs import StrengthInputs, other_inputs
from lora_quant.passes.merging.tensor_names import TensorNames, Translation
from lora_quant.passes.merging.vector_encodings import VectorFitter
from lora_quant.passes.merging.weight_ranges import WeightRanges, channel_axes


@dataclass(frozen=True, eq=False)
class EncodingsReader:
    """Reads use cases of one compilation.

    `base` are the base's encodings in our names, `inputs` those of the strengths (None in a graph
    without branches). `base_file` is the content of `base_path`, which is read once however many
    use cases name it.
    """

    compilation: Compilation
    names: TensorNames
    base: EncodingFile
    inputs: StrengthInputs | None
    base_path: Path
    base_file: EncodingFile

    def read(self, use_case: UseCaseInputConfig, ranges: WeightRanges | None) -> UseCaseEncodings:
        """Encodings of every tensor that the use case has one for.

        `ranges` of its weights, if they were seen already; otherwise the weights are read here, but
        only if the file lacks an encoding that follows from their values.
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
        vectors = active_vectors(self.compilation, use_case.name)
        if file:
            encodings.update(_one_rank_weights(file, encodings, branched, active))
        sources = Sources(
            compilation=self.compilation,
            use_case=use_case.name,
            file=encodings,
            on_our_graph=self.names.is_ours(translation.names.values()),
            base=self.base.encodings,
            known=ranges,
        )
        result = UseCaseEncodings(use_case.name, use_case.encodings)
        result.findings.extend(_reading_findings(use_case, file, translation))
        self._base_tensors(result, encodings, branched)
        strength = None
        if self.inputs is not None:
            result.findings.extend(other_inputs(use_case, encodings, self.inputs))
            strength = add_scale(result, self.compilation, self.inputs)
        idle = [] if sources.on_our_graph else _idle_tensors(branched, active, encodings)
        if idle:
            result.findings.append(_idle(use_case, idle))
        for branch in branched.branches:
            x = sources.grid_of(branch.x, result)
            if x is not None:
                result.neutral.update(dict.fromkeys(branch.relayouts, x))
            items = active.get(branch.attach.name)
            if items is not None:
                BranchFitter(sources).fit(result, branch, items)
                if branch.router is not None and any(item.experts for item in items):
                    add_router(result, sources, branch.router, strength)
        VectorFitter(sources, vectors).fit(result, branched.vectors)
        add_replaced(result, sources)
        return result

    def _file(self, path: Path | None) -> EncodingFile | None:
        if path is None:
            return None
        return self.base_file if path == self.base_path else read_encodings(path)

    def _base_tensors(
        self, result: UseCaseEncodings, given: Mapping[str, Encoding], branched: BranchedGraph
    ) -> None:
        """What the file says of the base's own tensors, those that got another name included."""
        own = frozenset(self.names.base_side.values())
        replaced = {one.weight.name for one in branched.replaced}
        for tensor, encoding in given.items():
            if tensor in own or (tensor not in self.names.added and tensor not in replaced):
                result.take(tensor, encoding)


def _idle_tensors(
    branched: BranchedGraph,
    active: Mapping[str, tuple[Contribution, ...]],
    given: Mapping[str, Encoding],
) -> list[str]:
    """Branch tensors that the file has encodings for and the adapters leave idle."""
    return [
        tensor
        for branch in branched.branches
        if branch.attach.name not in active
        for tensor in (branch.a_weight.name, branch.b_weight.name, branch.a, branch.m, branch.l)
        if tensor in given
    ]


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
    active: Mapping[str, tuple[Contribution, ...]],
) -> Mapping[str, Encoding]:
    """A of rank 1, whose one entry 0.6.1 does not tell from per tensor, as its header means it."""
    facts = {}
    for branch in branched.branches:
        record, items = branch.a_weight, active.get(branch.attach.name, ())
        given = encodings.get(record.name)
        # With more entries it tells the padded weight's channels, and cannot be taken for another.
        has_one = given is not None and given.step_scale.size == 1
        if has_one and sum(item.rank for item in items) == 1:
            axis = channel_axes(branch)[0]
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
