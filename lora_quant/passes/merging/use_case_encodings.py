"""Reading the encodings that a use case brings, in the names and the layout of our graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.lora_config import UseCaseInputConfig
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
from lora_quant.passes.merging.named_encodings import NamedEncodings, named_encodings
from lora_quant.passes.merging.replaced_encodings import add_replaced
from lora_quant.passes.merging.router_encodings import add_router
from lora_quant.passes.merging.scale_encodings import add_scale
from lora_quant.passes.merging.strength_inputs import StrengthInputs, other_inputs
from lora_quant.passes.merging.tensor_names import TensorNames
from lora_quant.passes.merging.vector_encodings import VectorFitter
from lora_quant.passes.merging.weight_ranges import WeightRanges


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
        active = contributions(self.compilation, use_case.name)
        named = NamedEncodings({}, False, ())
        if file is not None:
            named = named_encodings(self.compilation, self.names, use_case, file, active)
        encodings = named.encodings
        vectors = active_vectors(self.compilation, use_case.name)
        sources = Sources(
            compilation=self.compilation,
            use_case=use_case.name,
            file=encodings,
            on_our_graph=named.on_our_graph,
            base=self.base.encodings,
            known=ranges,
        )
        result = UseCaseEncodings(use_case.name, use_case.encodings)
        result.findings.extend(named.findings)
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
