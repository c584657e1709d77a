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
from dataclasses import dataclass, field, replace
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

_MOST_NAMES = 3


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
        self._given_unions: dict[str, RunningUnion] = defaultdict(RunningUnion)
        self._conflicts: dict[str, _Conflict] = {}

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
                    self._conflicts.setdefault(use_case.name, _Conflict(use_case)).add(tensor)
        yield from updatable_findings(
            use_case, self._reader.names, found, self.updatable, self._base.encodings
        )

    def _unite(
        self,
        use_case: UseCaseInputConfig,
        tensor: str,
        encoding: Encoding,
        found: UseCaseEncodings,
    ) -> None:
        try:
            self.unions[tensor].add(encoding, found.owned.get(tensor))
            if self._reader.compilation.options.strict_none and tensor in found.given:
                self._given_unions[tensor].add(encoding, found.owned.get(tensor))
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
            raise _disagreement(list(self._conflicts.values()), options.mode)
        for conflict in self._conflicts.values():
            yield conflict.finding()
        if self.updatable.mode is not Mode.NONE:
            return
        given = sorted(t for t, u in self._given_unions.items() if u.differs)
        if given:
            raise EncodingsError(
                f"{len(given)} branch tensors are given different encodings by different use "
                f"cases: {_some(given)}",
                where=Where(tensor=given[0]),
                hint="calibrate the use cases with shared encodings (lora_A per tensor, since its "
                "ranks move with the slot of their adapter), leave out --strict-none to take the "
                "union of the ranges, or use --mode adapter_only",
            )
        differing = sorted(t for t, u in self.unions.items() if u.differs)
        if differing:
            yield Finding(
                rule="encodings/united",
                severity=Severity.NOTE,
                message=f"{len(differing)} branch tensors got the union of the ranges of all use "
                "cases, since mode none fixes them",
                hint="--mode adapter_only keeps the grid of each use case",
            )

    def union(self, tensor: str) -> tuple[Encoding, Finding | None]:
        """The base's encoding of a branch tensor: the union, or any one where it may change."""
        collected = self.unions[tensor]
        try:
            return collected.result(), None
        except EncodingsError as error:
            if tensor not in self.updatable:
                raise EncodingsError(
                    error.message, where=Where(tensor=tensor), hint=error.hint
                ) from error
            return collected.first, Finding(
                rule="encodings/no-union",
                severity=Severity.NOTE,
                message="the base encodings hold the grid of the first use case, since the grids "
                "have no union; each use case has its own",
                where=Where(tensor=tensor),
            )


@dataclass
class _Conflict:
    """Fixed tensors on which one use case disagrees with the base."""

    use_case: UseCaseInputConfig
    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, tensor: str) -> None:
        self.count += 1
        if len(self.names) < _MOST_NAMES:
            self.names.append(tensor)

    def finding(self) -> Finding:
        return Finding(
            rule="encodings/fixed-tensor-differs",
            severity=Severity.WARNING,
            message=f"{self.count} encodings of fixed tensors differ from the base's, which were "
            f"kept: {_some(self.names, self.count)}",
            where=Where(
                file=self.use_case.encodings,
                use_case=self.use_case.name,
                tensor=self.names[0] if self.count == 1 else None,
            ),
            hint="calibrate the use case with the base's encodings frozen",
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
    findings: list[Finding] = []
    for tensor in sorted(scan.unions):
        added[tensor], finding = scan.union(tensor)
        findings += [finding] if finding is not None else []
    complete = base.updated(added, params=lora_weights(branched))
    version = compilation.options.encodings_version or complete.version
    if version not in WRITABLE:
        return complete, tuple(findings)
    # The axes of the base's own tensors are known as far as its own version needs them.
    facts = _facts(compilation, branched) if version != complete.version else None
    converted = convert(complete, version, facts)
    return replace(converted, findings=()), (*findings, *converted.findings)


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


def _disagreement(conflicts: list[_Conflict], mode: str) -> EncodingsError:
    use_case, names = conflicts[0].use_case, conflicts[0].names
    count = sum(conflict.count for conflict in conflicts)
    let_differ = "" if mode == "all" else ", or let activations differ with --mode all"
    return EncodingsError(
        f"{count} encodings of use cases disagree with the base's on tensors that mode "
        f"{mode!r} keeps fixed: {_some(names, count)}",
        where=Where(file=use_case.encodings, use_case=use_case.name, tensor=names[0]),
        hint="calibrate the use cases with the base's encodings frozen, or take the base's with "
        f"--fixed-conflict base{let_differ}",
    )


def _some(names: list[str], count: int | None = None) -> str:
    """The first names of `count` that there are in all."""
    more = (count or len(names)) - len(names[:_MOST_NAMES])
    shown = ", ".join(repr(n) for n in names[:_MOST_NAMES])
    return shown + (f" and {more} more" if more > 0 else "")
