"""What a person should know of how the graphs of use cases were read, once per use case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings.files import read_encodings
from lora_quant.errors import AdapterError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.exported.records import FoundBranch, NearBranch
from lora_quant.passes.exported.branch_scales import run_time_inputs
from lora_quant.passes.exported.decide import Decision, Remark
from lora_quant.passes.exported.readings import Law, Owner

_REMARKS = {
    Remark.ORDER_ASSUMED: (
        "ranks of adapters that look alike (equal rank, and scale where the graph tells it) were "
        "taken in the order of adapter_names, as PEFT puts them",
        "a use case with one of the adapters alone, and a graph of its own, would confirm it",
    ),
    Remark.OTHER_ORDER: (
        "the ranks fit the adapters only in another order than that of adapter_names",
        "check that ranks and alphas in the descriptions are right",
    ),
    Remark.NOT_ALL: (
        "not every adapter whose target_modules name the module has ranks there",
        "they stay without effect there; name whole paths in target_modules to say so",
    ),
}


class Remarks:
    """Collects what was noticed of one use case, module by module."""

    def __init__(self, use_case: UseCaseInputConfig, near: Sequence[NearBranch]) -> None:
        self._use_case = use_case
        self._near = near
        self._by_remark: dict[Remark, list[str]] = defaultdict(list)
        self._untold: list[str] = []
        self._inputs: dict[str, None] = {}
        self._grids: dict[str, float] | None = None

    def add(
        self,
        module: str,
        branches: Sequence[FoundBranch],
        decision: Decision,
        owners: Sequence[Owner],
    ) -> None:
        """One module that was decided; AdapterError if the input's grid excludes its factor."""
        if decision.remark is not None:
            self._by_remark[decision.remark].append(module)
        placed = set(decision.fit.order)
        if decision.is_told or _is_plain(owners, placed):
            return
        self._untold.append(module)
        for tensor in run_time_inputs(branches):
            self._inputs[tensor] = None
            for owner in owners:
                if owner.adapter in placed:
                    self._check_grid(tensor, module, owner)

    def findings(self) -> tuple[Finding, ...]:
        """All of it, in the order of importance."""
        use_case = self._use_case
        where = Where(file=use_case.model, use_case=use_case.name)
        found = [
            Finding(
                rule="exported/near-branch",
                severity=Severity.WARNING,
                message=f"{one.node!r} looks like a branch and was not taken as one: {one.reason}",
                where=Where(file=use_case.model, use_case=use_case.name, node=one.node),
            )
            for one in self._near
        ]
        if self._untold:
            found.append(
                Finding(
                    rule="exported/scale-at-run-time",
                    severity=Severity.WARNING,
                    message=f"the scale of {len(self._untold)} modules comes from the input "
                    f"{some(tuple(self._inputs))} alone: that lora_alpha / r is part of what it "
                    f"carries is known from the descriptions only: {some(self._untold)}",
                    where=where,
                    hint="if lora_alpha / r is in the weights instead, set alpha to the rank",
                )
            )
        for remark in Remark:
            modules = self._by_remark[remark]
            if modules:
                message, hint = _REMARKS[remark]
                found.append(
                    Finding(
                        rule=f"exported/{remark.value}",
                        # An order that nothing confirms may be wrong.
                        severity=Severity.WARNING
                        if remark is Remark.ORDER_ASSUMED
                        else Severity.NOTE,
                        message=f"{message}: {some(modules)}",
                        where=where,
                        hint=hint,
                    )
                )
        return tuple(found)

    def _check_grid(self, tensor: str, module: str, owner: Owner) -> None:
        """A grid of the input that ends below the factor shows that it never carries it."""
        factor = abs(min(owner.laws.values(), key=abs) * owner.strength)
        end = self._grid_ends().get(tensor)
        if end is None or factor <= end:
            return
        raise AdapterError(
            f"lora_alpha / r times the strength of adapter {owner.adapter!r} is {factor:g} at "
            f"module {module!r}, and the encoding of the input {tensor!r} ends at {end:g}: "
            "lora_alpha / r seems to be in the weights",
            where=Where(
                file=self._use_case.encodings,
                use_case=self._use_case.name,
                adapter=owner.adapter,
                module=module,
                tensor=tensor,
            ),
            hint="set alpha to the rank in the description of the adapter, if it is; or correct "
            "the encoding of the input",
        )

    def _grid_ends(self) -> dict[str, float]:
        """The largest magnitude of each tensor's grid, with one step for rounding."""
        if self._grids is None:
            path = self._use_case.encodings
            known = {} if path is None else read_encodings(path).encodings
            self._grids = {
                name: float(max(abs(one.maximum).max(), abs(one.minimum).max()) + one.scale.max())
                for name, one in known.items()
                if one.scale is not None and one.scale.size == 1
            }
        return self._grids


def _is_plain(owners: Sequence[Owner], placed: Set[str]) -> bool:
    """Whether no adapter has a factor of its own that the graph could have told."""
    return all(set(o.laws.values()) == {1.0} for o in owners if o.adapter in placed)


def law_note(adapter: str, where: Where) -> Finding:
    """A description that cannot tell rsLoRA, and graphs that can be read in no other way."""
    return Finding(
        rule="exported/read-as-rslora",
        severity=Severity.NOTE,
        message=f"the scales of adapter {adapter!r} are {Law.RSLORA.value} in all graphs: it was "
        "taken as rsLoRA, which its description cannot tell",
        where=where,
        hint="a PEFT adapter_config.json with use_rslora says it; if the adapter is plain LoRA, "
        "alpha or adapter_alphas are off by sqrt(r)",
    )


def never_on_note(adapter: str, where: Where) -> Finding:
    """A strength of 0 makes any scale 0: the graphs confirm nothing."""
    return Finding(
        rule="exported/never-on",
        severity=Severity.NOTE,
        message=f"adapter {adapter!r} has the strength 0 in all use cases with graphs of their "
        "own: its lora_alpha / r is known from its description only, and its ranks, where several "
        "adapters share a branch, from their places",
        where=where,
        hint="a use case with another strength, and a graph of its own, would confirm both",
    )
