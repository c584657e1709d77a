"""Reading every use case once: the union of its ranges, and where it disagrees with the base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.products import holding_one, holds_one, in_structure
from lora_quant.encodings.running_union import RunningUnion
from lora_quant.encodings.union import union
from lora_quant.errors import EncodingsError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.axes import base_facts, with_block_axes
from lora_quant.passes.merging.collected import UseCaseEncodings
from lora_quant.passes.merging.merged import check_structure
from lora_quant.passes.merging.named_encodings import names_of
from lora_quant.passes.merging.updatable_lists import updatable_findings
from lora_quant.passes.merging.use_case_encodings import EncodingsReader
from lora_quant.passes.merging.vector_encodings import neutral_ones
from lora_quant.passes.select_updatable import branch_activations, lora_weights
from lora_quant.passes.updatable import Mode, UpdatableTensors

_MOST_NAMES = 3


class UseCaseScan:
    """What has to be known of all use cases before the first is written."""

    def __init__(self, reader: EncodingsReader, updatable: UpdatableTensors) -> None:
        self.updatable = updatable
        self.unions: dict[str, RunningUnion] = defaultdict(RunningUnion)
        self._reader = reader
        self._base = reader.base
        branched: BranchedGraph = reader.compilation.having("branched")
        self._branch_tensors = lora_weights(branched) | branch_activations(branched)
        self._given_unions: dict[str, RunningUnion] = defaultdict(RunningUnion)
        self._neutral: dict[str, RunningUnion] = defaultdict(RunningUnion)
        self._conflicts: dict[str, _Conflict] = {}
        self._computed: set[str] = set()
        self._ones = frozenset(neutral_ones(branched))
        self._unite_base(branched)

    def take(self, use_case: UseCaseInputConfig) -> Iterator[Finding]:
        """Read one use case; what it brings goes into the unions, what disagrees is noted."""
        found = self._reader.read(use_case, None)
        yield from found.findings
        changes = {t: e for t, e in found.encodings.items() if t in self.updatable}
        check_structure(use_case, self._base.encodings, changes)
        for tensor, encoding in found.encodings.items():
            if tensor in self._own:
                continue
            if tensor in self._branch_tensors:
                self._unite(use_case, tensor, encoding, found)
            elif tensor not in self.updatable:
                self._compare(use_case, tensor, encoding)
        for tensor, encoding in found.unused.items():
            self._compare(use_case, tensor, encoding)
        for tensor, encoding in found.neutral.items():
            self._neutral[tensor].add(encoding)
        names = names_of(self._reader.compilation, self._reader.names, use_case.name)
        yield from updatable_findings(use_case, names, found, self.updatable, self._base.encodings)

    def _unite_base(self, branched: BranchedGraph) -> None:
        """A replaced parameter has values in the base as well, and a grid that fits them.

        Where use cases may have grids of their own, the base keeps that one.
        """
        replaced = [one.weight for one in branched.replaced]
        self._own = {record.name for record in replaced} & self.updatable.encodings
        facts = base_facts(self._reader.compilation.base) if replaced else {}
        for record in replaced:
            known = self._base.encodings.get(record.name)
            if known is not None and record.name not in self._own:
                self.unions[record.name].add(with_block_axes(known, record, facts))

    def _compare(self, use_case: UseCaseInputConfig, tensor: str, encoding: Encoding) -> None:
        """Note a tensor that is the base's in this use case, if its grid is not."""
        known = self._base.encodings.get(tensor)
        if known is not None and not known.same_grid(encoding):
            self._conflicts.setdefault(use_case.name, _Conflict(use_case)).add(tensor)

    def _unite(
        self,
        use_case: UseCaseInputConfig,
        tensor: str,
        encoding: Encoding,
        found: UseCaseEncodings,
    ) -> None:
        if tensor not in found.given:
            self._computed.add(tensor)
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
                f"cases: {some(given, most=_MOST_NAMES)}",
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

    @property
    def tensors(self) -> list[str]:
        """The tensors that `union` has an encoding for, sorted."""
        return sorted(self.unions.keys() | self._neutral.keys())

    def union(self, tensor: str) -> tuple[Encoding, Finding | None]:
        """The base's encoding of a branch tensor: the union, or any one where it may change.

        What use cases pass on unchanged counts as well, in the structure of the others.
        """
        if tensor not in self.unions:
            return self._neutral[tensor].result(), None
        collected = self.unions[tensor]
        try:
            united = collected.result()
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
        if tensor in self._neutral:
            united = union([united, in_structure(self._neutral[tensor].result(), united)])
        if tensor in self._ones:
            return self._with_one(tensor, united)
        return united, None

    def _with_one(self, tensor: str, united: Encoding) -> tuple[Encoding, Finding | None]:
        """The graph as it is initialised multiplies by 1, which must not change anything.

        A grid that all use cases share, and that their files give, is left to them.
        """
        if tensor in self.updatable or tensor in self._computed:
            return holding_one(united), None
        if holds_one(united):
            return united, None
        return united, Finding(
            rule="encodings/one-is-rounded",
            severity=Severity.WARNING,
            message="1 is not on the given grid: where no adapter scales, what is multiplied by 1 "
            "changes a little",
            where=Where(tensor=tensor),
            hint="give a scale of 1 / n, such as 1/127, or let each use case have its own grid "
            "with --mode adapter_only",
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
            f"kept: {some(self.names, total=self.count)}",
            where=Where(
                file=self.use_case.encodings,
                use_case=self.use_case.name,
                tensor=self.names[0] if self.count == 1 else None,
            ),
            hint="calibrate the use case with the base's encodings frozen",
        )


def _disagreement(conflicts: list[_Conflict], mode: str) -> EncodingsError:
    use_case, names = conflicts[0].use_case, conflicts[0].names
    count = sum(conflict.count for conflict in conflicts)
    let_differ = "" if mode == "all" else ", or let activations differ with --mode all"
    return EncodingsError(
        f"{count} encodings of use cases disagree with the base's on tensors that mode "
        f"{mode!r} keeps fixed: {some(names, total=count)}",
        where=Where(file=use_case.encodings, use_case=use_case.name, tensor=names[0]),
        hint="calibrate the use cases with the base's encodings frozen, or take the base's with "
        f"--fixed-conflict base{let_differ}",
    )
