"""Pass: the encodings of the final graph, and whether those of the use cases fit them.

base file, in our names          every tensor of the base; its own output a copy of y's
+ union over the use cases       every tensor that was added
= base encodings                 what base_encodings.json holds

Each use case is read once here, to take its ranges into the union and to find what disagrees, and
once more when it is written; none is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings.convert import WRITABLE, TensorFacts, convert
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import read_encodings
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph
from lora_quant.graph.values.weight_layouts import branch_layouts
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import ENCODINGS_MERGED, UPDATABLE_SELECTED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.final.encodings import (
    FinalReader,
    with_base_outputs,
    with_branches,
)
from lora_quant.passes.merging.axes import base_facts, facts_by_size
from lora_quant.passes.merging.merged import MergedEncodings
from lora_quant.passes.merging.named_encodings import names_of
from lora_quant.passes.merging.strength_inputs import (
    StrengthInputs,
    strength_findings,
    strength_inputs,
)
from lora_quant.passes.merging.tensor_names import TensorNames, Translation
from lora_quant.passes.merging.use_case_encodings import EncodingsReader
from lora_quant.passes.merging.use_case_scan import UseCaseScan
from lora_quant.passes.select_updatable import lora_weights
from lora_quant.passes.select_updatable import strength_inputs as input_names


@dataclass(frozen=True)
class MergeEncodings:
    """A build whose use cases bring no encodings at all is a float build: nothing to merge."""

    name: ClassVar[str] = "merge-encodings"
    requires: ClassVar[tuple[Condition, ...]] = (UPDATABLE_SELECTED,)
    ensures: ClassVar[tuple[Condition, ...]] = (ENCODINGS_MERGED,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises EncodingsError for files that cannot be merged, or disagree on fixed tensors."""
        source = _base_use_case(compilation)
        if source is None or source.encodings is None or compilation.merged is not None:
            return PassResult(compilation, changed=False)
        branched: BranchedGraph = compilation.having("branched")
        names = TensorNames(branched, compilation.base.index.names, compilation.having("adapters"))
        file = read_encodings(source.encodings)
        translation = names_of(compilation, names, source.name).translate(file.encodings)
        base = _in_our_names(file, translation, names, branched)
        if compilation.given is not None:
            base = with_base_outputs(base, file, names)
        inputs = strength_inputs(compilation, base.encodings)
        reader = _reader(compilation, names, base, inputs, source.encodings, file)
        if inputs is not None:
            compilation = compilation.with_findings(*strength_findings(compilation, inputs))
        if source.adapter_names:
            compilation = compilation.with_findings(_no_base(source))
        scan = UseCaseScan(reader, compilation.having("updatable"))
        for number, use_case in enumerate(compilation.config.use_cases):
            compilation.progress(
                f"encodings of {use_case.name}", number, len(compilation.config.use_cases)
            )
            compilation = compilation.with_findings(*scan.take(use_case))
        compilation = compilation.with_findings(*scan.conflicts(compilation))
        started = base if compilation.given is None else with_branches(base, file, names)
        complete, lost = _complete(started, inputs, scan, compilation)
        merged = MergedEncodings(complete, reader, scan.updatable)
        return PassResult(replace(compilation.with_findings(*lost), merged=merged), changed=True)


def _reader(
    compilation: Compilation,
    names: TensorNames,
    base: EncodingFile,
    inputs: StrengthInputs | None,
    path: Path,
    file: EncodingFile,
) -> EncodingsReader:
    made = EncodingsReader if compilation.given is None else FinalReader
    return made(compilation, names, base, inputs, path, file)


def _base_use_case(compilation: Compilation) -> UseCaseInputConfig | None:
    """The use case whose encodings describe the base: one without adapters, else the first."""
    given = [u for u in compilation.config.use_cases if u.encodings is not None]
    return next((u for u in given if not u.adapter_names), given[0] if given else None)


def _in_our_names(
    file: EncodingFile, translation: Translation, names: TensorNames, branched: BranchedGraph
) -> EncodingFile:
    """The base's file with our tensor names; the base's own output has y's wherever it is renamed.

    Branch tensors come from the unions instead.
    """
    ours = {name: tensor for tensor, name in translation.names.items()}
    params = frozenset(ours[n] for n in file.params or () if n in ours)
    kept = {ours[n]: e for n, e in file.encodings.items() if n in ours}
    inputs = input_names(branched)
    kept = {t: e for t, e in kept.items() if t not in names.added or t in inputs}
    kept.update({own: kept[y] for y, own in names.base_side.items() if y in kept})
    return replace(file, encodings=kept, params=None if file.params is None else params & set(kept))


def _complete(
    base: EncodingFile,
    inputs: StrengthInputs | None,
    scan: UseCaseScan,
    compilation: Compilation,
) -> tuple[EncodingFile, tuple[Finding, ...]]:
    """Base encodings with every branch tensor, in the version that is asked for."""
    branched: BranchedGraph = compilation.having("branched")
    added: dict[str, Encoding] = {} if inputs is None else dict(inputs.encodings)
    findings: list[Finding] = []
    for tensor in scan.tensors:
        added[tensor], finding = scan.union(tensor)
        findings += [finding] if finding is not None else []
    complete = base.updated(added, params=lora_weights(branched))
    version = compilation.options.encodings_version or complete.version
    if version not in WRITABLE:
        return complete, tuple(findings)
    # The axes of the base's own tensors are known as far as its own version needs them.
    facts = _facts(compilation, branched, complete) if version != complete.version else None
    converted = convert(complete, version, facts)
    return replace(converted, findings=()), (*findings, *converted.findings)


def _facts(
    compilation: Compilation, branched: BranchedGraph, complete: EncodingFile
) -> dict[str, TensorFacts]:
    """Shapes and axes of every weight that may have a grid per channel or block."""
    own = {**facts_by_size(compilation.base, complete.encodings), **base_facts(compilation.base)}
    if compilation.given is not None:
        return own  # its branches are nodes of the graph as all others
    added = branch_layouts(branched)
    return own | {w.name: TensorFacts(w.shape, w.channel_axis, w.block_axis) for w in added}


def _no_base(source: UseCaseInputConfig) -> Finding:
    return Finding(
        rule="encodings/no-base",
        severity=Severity.WARNING,
        message=f"no use case without adapters brings encodings; those of {source.name!r} stand "
        "for the base",
        where=Where(file=source.encodings, use_case=source.name),
        hint="add a use case with `adapter_names: []` and the base's encodings",
    )
