"""What the file of a use case says, by our tensor names.

encodings of a graph of its own    by the structure of that graph
encodings of any other graph       by the spelling of names, or as a file of our own graph
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings import aimet_1_0_0
from lora_quant.encodings.convert import TensorFacts, convert
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.errors import EncodingsError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.contributions import Contribution
from lora_quant.passes.merging.exported_grids import ExportedGrids
from lora_quant.passes.merging.exported_names import ExportedNames
from lora_quant.passes.merging.tensor_names import TensorNames, Translation

_Active = Mapping[str, tuple[Contribution, ...]]


@dataclass(frozen=True, eq=False)
class NamedEncodings:
    """`on_our_graph`: the file was made on a graph of ours, so that it tells of our values."""

    encodings: Mapping[str, Encoding]
    on_our_graph: bool
    findings: tuple[Finding, ...]


def names_of(
    compilation: Compilation, names: TensorNames, use_case: str
) -> TensorNames | ExportedNames:
    """What translates the names of a use case's files: `names` unless it has its own graph."""
    exported = compilation.exported.use_cases.get(use_case) if compilation.exported else None
    return names if exported is None else ExportedNames(exported, compilation, names)


def named_encodings(
    compilation: Compilation,
    names: TensorNames,
    use_case: UseCaseInputConfig,
    file: EncodingFile,
    active: _Active,
) -> NamedEncodings:
    """The content of `file`; `active` is what the use case contributes to each attach point.

    Raises EncodingsError, naming the tensor, for grids that do not fit the use case's graph, and
    for a file that knows another graph's branches alone.
    """
    branched: BranchedGraph = compilation.having("branched")
    where = Where(file=use_case.encodings, use_case=use_case.name)
    own = names_of(compilation, names, use_case.name)
    translation = own.translate(file.encodings)
    encodings = {tensor: file.encodings[name] for tensor, name in translation.names.items()}
    findings = [*file.findings, *_reading_findings(translation, where)]
    if isinstance(own, TensorNames):
        encodings.update(_one_rank_weights(file, encodings, branched, active))
        is_ours = own.is_ours(translation.names.values())
        return NamedEncodings(encodings, is_ours, tuple(findings))
    grids = ExportedGrids(file, where, own.as_read)
    packed = grids.packed(branched, own.pieces, active)
    if own.pieces and not packed and translation.unknown:
        raise _of_another_graph(translation, where)
    for branch in branched.branches:
        for tensor in (branch.a_weight.name, branch.b_weight.name, branch.a, branch.m, branch.l):
            encodings.pop(tensor, None)
    encodings.update(packed)
    findings += [*grids.findings(), *_other_strengths(file, own, where)]
    return NamedEncodings(encodings, False, tuple(findings))


def _one_rank_weights(
    file: EncodingFile,
    encodings: Mapping[str, Encoding],
    branched: BranchedGraph,
    active: _Active,
) -> Mapping[str, Encoding]:
    """A of rank 1, whose one entry 0.6.1 does not tell from per tensor, as its header means it."""
    facts = {}
    for branch in branched.branches:
        record, items = branch.a_weight, active.get(branch.attach.name, ())
        given = encodings.get(record.name)
        # With more entries it tells the padded weight's channels, and cannot be taken for another.
        has_one = given is not None and given.step_scale.size == 1
        if has_one and sum(item.rank for item in items) == 1:
            axis = branch.channel_axes[0]
            shape = tuple(1 if i == axis else size for i, size in enumerate(record.shape))
            facts[record.name] = TensorFacts(shape, axis, 1 - axis)
    weights = {name: encodings[name] for name in facts}
    alone = EncodingFile(file.version, weights, frozenset(weights), file.header)
    return convert(alone, aimet_1_0_0.VERSION, facts).encodings


def _reading_findings(translation: Translation, where: Where) -> Iterator[Finding]:
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
            where=Where(file=where.file, use_case=where.use_case, tensor=tensor),
            hint="adapters that are chained in the use case's graph have no common grid here; "
            "name that graph as the use case's `model_name`",
        )


def _of_another_graph(translation: Translation, where: Where) -> EncodingsError:
    return EncodingsError(
        "no branch of the use case's graph has an encoding in its file, and "
        f"{len(translation.unknown)} of the file's entries belong to no tensor of that graph: "
        f"{some(translation.unknown)}",
        where=where,
        hint="give the encodings that were calibrated on this graph; are the files of two use "
        "cases exchanged?",
    )


def _other_strengths(file: EncodingFile, names: ExportedNames, where: Where) -> Iterator[Finding]:
    found = sorted(names.other_strengths & file.encodings.keys())
    if found:
        yield Finding(
            rule="encodings/other-strength",
            severity=Severity.NOTE,
            message=f"{len(found)} encodings of inputs were left out, since one of that graph and "
            f"ours carries lora_alpha / r as well as the strength: {some(found)}",
            where=where,
            hint="give the range of the strengths in the base's encodings, under the name of the "
            "alpha input",
        )
