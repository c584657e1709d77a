"""Pass: the encodings of the final graph, and whether those of the use cases fit them.

base file, in our names          every tensor of the base; h a copy of y's
+ union over the use cases       every branch tensor
= base encodings                 what base_encodings.json holds

Each use case is read once here, to take its ranges into the union and to find what disagrees, and
once more when it is written; none is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings.convert import WRITABLE, TensorFacts, convert
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import read_encodings
from lora_quant.encodings.running_union import RunningUnion
from lora_quant.errors import EncodingsError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph
from lora_quant.graph.weight_layouts import branch_layouts, weight_layouts
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import ENCODINGS_MERGED, UPDATABLE_SELECTED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.merging.branch_encodings import UseCaseEncodings
from lora_quant.passes.merging.merged import MergedEncodings, check_structure
from lora_quant.passes.merging.tensor_names import TensorNames
from lora_quant.passes.merging.updatable_lists import updatable_findings
from lora_quant.passes.merging.use_case_encodings import (
    EncodingsReader,
    alpha_encoding,
    alpha_findings,
)
from lora_quant.passes.select_updatable import branch_activations, lora_weights
from lora_quant.passes.updatable import Mode, UpdatableTensors


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
        base = _in_our_names(file, names, branched)
        alpha = alpha_encoding(compilation, base.encodings.get(branched.scale.alpha.name))
        reader = EncodingsReader(compilation, names, alpha, source.encodings, file)
        compilation = compilation.with_findings(*alpha_findings(compilation, alpha))
        if source.adapter_names:
            compilation = compilation.with_findings(_no_base(source))
        scan = _Scan(reader, base, compilation.having("updatable"))
        for number, use_case in enumerate(compilation.config.use_cases):
            compilation.progress(
                f"encodings of {use_case.name}", number, len(compilation.config.use_cases)
            )
            compilation = compilation.with_findings(*scan.take(use_case))
        compilation = compilation.with_findings(*scan.conflicts(compilation))
        complete, lost = _complete(base, alpha, scan, compilation)
        merged = MergedEncodings(complete, reader, scan.updatable)
        return PassResult(replace(compilation.with_findings(*lost), merged=merged), changed=True)


class _Scan:
    """What has to be known of all use cases before the first is written."""

    def __init__(
        self, reader: EncodingsReader, base: EncodingFile, updatable: UpdatableTensors
    ) -> None:
        self.updatable = updatable
        self.unions: dict[str, RunningUnion] = defaultdict(RunningUnion)
        self._reader = reader
        self._base = base
        branched: BranchedGraph = reader.compilation.having("branched")
        self._branch_tensors = lora_weights(branched) | branch_activations(branched)
        self._conflicts: list[tuple[UseCaseInputConfig, str]] = []

    def take(self, use_case: UseCaseInputConfig) -> Iterator[Finding]:
        """Read one use case; what it brings goes into the unions, what disagrees is noted."""
        found = self._reader.read(use_case, None)
        yield from found.findings
        changes = {t: e for t, e in found.encodings.items() if t in self.updatable}
        check_structure(use_case, self._base.encodings, changes)
        for tensor, encoding in found.encodings.items():
            if tensor in self._branch_tensors:
                self._unite(use_case, tensor, encoding, found)
            elif tensor not in self.updatable:
                known = self._base.encodings.get(tensor)
                if known is not None and not known.same_grid(encoding):
                    self._conflicts.append((use_case, tensor))
        yield from updatable_findings(use_case, self._reader.names, found, self.updatable)

    def _unite(
        self,
        use_case: UseCaseInputConfig,
        tensor: str,
        encoding: Encoding,
        found: UseCaseEncodings,
    ) -> None:
        try:
            self.unions[tensor].add(encoding, found.owned.get(tensor))
        except EncodingsError as error:
            raise EncodingsError(
                error.message,
                where=Where(file=use_case.encodings, use_case=use_case.name, tensor=tensor),
                hint=error.hint,
            ) from error

    def conflicts(self, compilation: Compilation) -> Iterator[Finding]:
        """Disagreements on fixed tensors: raised or reported, as the options say."""
        options = compilation.options
        if self._conflicts and options.fixed_conflict == "error":
            raise _disagreement(self._conflicts, options.mode)
        for use_case, tensor in self._conflicts:
            yield Finding(
                rule="encodings/fixed-tensor-differs",
                severity=Severity.WARNING,
                message="the use case's encoding of a fixed tensor differs from the base's, which "
                "was kept",
                where=Where(file=use_case.encodings, use_case=use_case.name, tensor=tensor),
            )
        differing = sorted(t for t, u in self.unions.items() if u.differs)
        if self.updatable.mode is Mode.NONE and differing:
            if options.strict_none:
                raise EncodingsError(
                    f"{len(differing)} branch tensors have different encodings in different use "
                    f"cases: {_some(differing)}",
                    where=Where(tensor=differing[0]),
                    hint="calibrate the use cases with shared encodings, leave out --strict-none "
                    "to take the union of the ranges, or use --mode adapter_only",
                )
            yield Finding(
                rule="encodings/united",
                severity=Severity.NOTE,
                message=f"{len(differing)} branch tensors got the union of the ranges of all use "
                "cases, since mode none fixes them",
                hint="--mode adapter_only keeps the grid of each use case",
            )


def _base_use_case(compilation: Compilation) -> UseCaseInputConfig | None:
    """The use case whose encodings describe the base: one without adapters, else the first."""
    given = [u for u in compilation.config.use_cases if u.encodings is not None]
    return next((u for u in given if not u.adapter_names), given[0] if given else None)


def _in_our_names(file: EncodingFile, names: TensorNames, branched: BranchedGraph) -> EncodingFile:
    """The base's file with our tensor names, h as a copy of y.

    Branch tensors come from the unions instead.
    """
    translation = names.translate(file.encodings)
    ours = {name: tensor for tensor, name in translation.names.items()}
    params = frozenset(ours[n] for n in file.params or () if n in ours)
    kept = {ours[n]: e for n, e in file.encodings.items() if n in ours}
    alpha = branched.scale.alpha.name
    kept = {t: e for t, e in kept.items() if t not in names.added or t == alpha}
    kept.update({b.h: kept[b.y] for b in branched.branches if b.y in kept})
    return replace(file, encodings=kept, params=None if file.params is None else params & set(kept))


def _complete(
    base: EncodingFile, alpha: Encoding, scan: _Scan, compilation: Compilation
) -> tuple[EncodingFile, tuple[Finding, ...]]:
    """Base encodings with every branch tensor, in the version that is asked for."""
    branched: BranchedGraph = compilation.having("branched")
    added: dict[str, Encoding] = {branched.scale.alpha.name: alpha}
    for branch in branched.branches:
        x = base.encodings.get(branch.x)
        if x is not None:
            added.update((tensor, x) for tensor in branch.relayouts)
    added.update((tensor, union.result()) for tensor, union in sorted(scan.unions.items()))
    complete = base.updated(added, params=lora_weights(branched))
    version = compilation.options.encodings_version or complete.version
    if version not in WRITABLE:
        return complete, ()
    # The axes of the base's own tensors are known as far as its own version needs them.
    facts = _facts(compilation, branched) if version != complete.version else None
    converted = convert(complete, version, facts)
    return replace(converted, findings=()), converted.findings


def _facts(compilation: Compilation, branched: BranchedGraph) -> dict[str, TensorFacts]:
    """Shapes and axes of every weight that may have a grid per channel or block."""
    layouts = [*weight_layouts(compilation.base), *branch_layouts(branched)]
    return {w.name: TensorFacts(w.shape, w.channel_axis, w.block_axis) for w in layouts}


def _no_base(source: UseCaseInputConfig) -> Finding:
    return Finding(
        rule="encodings/no-base",
        severity=Severity.WARNING,
        message=f"no use case without adapters brings encodings; those of {source.name!r} stand "
        "for the base",
        where=Where(file=source.encodings, use_case=source.name),
        hint="add a use case with `adapter_names: []` and the base's encodings",
    )


def _disagreement(conflicts: list[tuple[UseCaseInputConfig, str]], mode: str) -> EncodingsError:
    use_case, tensor = conflicts[0]
    let_differ = "" if mode == "all" else ", or let activations differ with --mode all"
    return EncodingsError(
        f"{len(conflicts)} encodings of use cases disagree with the base's on tensors that mode "
        f"{mode!r} keeps fixed: {_some([t for _, t in conflicts])}",
        where=Where(file=use_case.encodings, use_case=use_case.name, tensor=tensor),
        hint="calibrate the use cases with the base's encodings frozen, or take the base's with "
        f"--fixed-conflict base{let_differ}",
    )


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(repr(n) for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
