"""Whether an adapter's modules are in the base graph, said of all of them at once.

q_proj, v_proj  ->  found: 2 modules, rank 4       or   3 of 14 modules do not fit: ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_quant.adapters.adapter import Adapter
from lora_quant.errors import AttachPointError, GraphError, LoraQuantError, some
from lora_quant.findings import Finding, Severity
from lora_quant.graph.attach.resolver import ModuleRequest, Resolver
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.passes.module_requests import module_request


@dataclass(frozen=True, eq=False)
class Fitting:
    """Holds adapters against one base, with or without an attach point mapping."""

    base: BaseGraph
    mapping: Mapping[str, list[str]] | None = None
    mapping_file: Path | None = None

    def problems(self, adapter: Adapter) -> Iterator[Finding]:
        """One finding for the modules that find no node, with the reason of the first."""
        requests = [
            module_request(shape, adapter.name, low_rank=shape.rank > 0 or shape.dense)
            for shape in adapter.shapes.values()
        ]
        resolver = Resolver(
            self.base.catalog,
            self.base.index,
            graph_file=self.base.path,
            mapping=self.mapping,
            mapping_file=self.mapping_file,
        )
        if _refusal(resolver, requests) is None:
            return
        refused = {r.module: e for r in requests if (e := _refusal(resolver, [r])) is not None}
        if not refused:  # each fits alone, and not beside the others
            error = _refusal(resolver, requests)
            assert error is not None, "it was refused a moment ago"
            yield error_finding(error)
            return
        first = next(iter(refused.values()))
        yield Finding(
            rule=f"error/{first.code}",
            severity=Severity.ERROR,
            message=f"{len(refused)} of {len(requests)} modules of adapter {adapter.name!r} do "
            f"not fit the base: {some(list(refused), most=3)}; of the first: {first.message}",
            where=first.where,
            hint=first.hint,
        )


def error_finding(error: LoraQuantError) -> Finding:
    """An error as a finding among others."""
    return Finding(f"error/{error.code}", Severity.ERROR, error.message, error.where, error.hint)


def _refusal(resolver: Resolver, requests: list[ModuleRequest]) -> GraphError | None:
    try:
        resolver.resolve(requests)
    except (AttachPointError, GraphError) as error:
        return error
    return None
