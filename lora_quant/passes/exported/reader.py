"""Reading one use case's graph after the other: branches, modules, ranks, factors.

graph  ->  its branches (the rest is the base)  ->  module by module: whose ranks, which scale
                                                `-> factors of each adapter, put aside

Use cases of one adapter come first: they leave nothing to decide, and what they tell decides for
the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.errors import GraphError, Where
from lora_quant.findings import Finding
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.exported.compare import compare_with_base
from lora_quant.graph.exported.comparison.trunk import trunk_of
from lora_quant.graph.exported.factors_as_read import factors_as_read
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import Correspondence, ExportedGraph, NearBranch
from lora_quant.graph.records import Form
from lora_quant.passes.compilation import Progress
from lora_quant.passes.exported.cut import cut_module
from lora_quant.passes.exported.descriptions import Described
from lora_quant.passes.exported.known_adapters import KnownAdapters
from lora_quant.passes.exported.module_names import ModuleNames
from lora_quant.passes.exported.near_branches import near_hint, near_problem
from lora_quant.passes.exported.records import ExportedBranch, ExportedUseCase, ExportedUseCases
from lora_quant.passes.exported.refusals import Place
from lora_quant.passes.exported.remarks import Remarks


class ExportedReader:
    """Reads the graphs of use cases against one base; `described` has every adapter of them.

    What is nearly a branch in the base as well (`near_in_base`) is a part of the base.
    """

    def __init__(
        self,
        base: BaseGraph,
        described: Mapping[str, Described],
        names: ModuleNames,
        near_in_base: Sequence[NearBranch],
    ) -> None:
        self._base = trunk_of(base, {})
        self._described = described
        self._names = names
        self._near_base = {one.node for one in near_in_base}
        self._adapters = KnownAdapters(described)
        self._findings: list[Finding] = []

    def read_all(
        self, use_cases: Sequence[UseCaseInputConfig], progress: Progress
    ) -> tuple[ExportedUseCases, tuple[Finding, ...]]:
        """All of them, and what a person should know; raises what `read` does."""
        read = {}
        for number, use_case in enumerate(sorted(use_cases, key=lambda u: len(u.adapter_names))):
            progress(f"graph of {use_case.name}", number, len(use_cases))
            read[use_case.name] = self.read(use_case)
        checkpoints, noticed = self._adapters.checkpoints()
        exported = ExportedUseCases(
            use_cases={one.name: read[one.name] for one in use_cases},
            checkpoints=checkpoints,
            modules=self._names.nodes,
            descriptions={name: self._described[name].files for name in checkpoints},
        )
        return exported, (*self._findings, *noticed)

    def read(self, use_case: UseCaseInputConfig) -> ExportedUseCase:
        """Open, compare, cut and forget the graph of one use case.

        Raises GraphError for a graph that is not the base with branches, AdapterError for ranks,
        scales or values that contradict the descriptions or another graph.
        """
        exported = recognise_branches(open_base(use_case.model))
        near = [one for one in exported.near if one.node not in self._near_base]
        correspondence = self._compare(exported, near, use_case)
        modules = [
            self._names.module_of(exported, correspondence, point) for point in exported.points
        ]
        self._refuse_near(near, use_case, modules)
        settings = self._adapters.begin(use_case, modules)
        remarks = Remarks(use_case, near)
        branches: list[ExportedBranch] = []
        met: dict[str, set[str]] = defaultdict(set)
        for module, point in zip(modules, exported.points, strict=True):
            place = Place(use_case.model, use_case.name, module)
            owners = self._adapters.owners(use_case, settings, module)
            cut = cut_module(place, exported.graph, point, owners, self._adapters)
            self._adapters.narrow(cut.decision.fit)
            remarks.add(module, point.branches, cut.decision, owners)
            for adapter, part in cut.parts():
                met[adapter].add(module)
                is_embedding = point.linear.form is Form.EMBEDDING
                self._adapters.take(use_case, adapter, module, part, is_embedding=is_embedding)
            branches += [
                ExportedBranch(module, found, ranks)
                for found, ranks in zip(point.branches, cut.decision.fit.ranks, strict=True)
            ]
        self._adapters.finish(use_case, met)
        self._findings += remarks.findings()
        return ExportedUseCase(
            name=use_case.name,
            model=use_case.model,
            branches=tuple(branches),
            base_names=correspondence.tensors,
            same_names=correspondence.same,
            other_names=correspondence.left_out,
            h={m: point.h for m, point in zip(modules, exported.points, strict=True)},
            y={m: point.y for m, point in zip(modules, exported.points, strict=True)},
            as_read=factors_as_read(exported),
            data_files=exported.graph.model.data_files,
        )

    def _compare(
        self, exported: ExportedGraph, near: Sequence[NearBranch], use_case: UseCaseInputConfig
    ) -> Correspondence:
        try:
            correspondence = compare_with_base(self._base, exported)
        except GraphError as error:
            error.where = replace(error.where, use_case=use_case.name)
            error.hint = near_hint(near, error.hint)
            raise
        if not exported.points:
            raise GraphError(
                f"the graph of use case {use_case.name!r} has no branches",
                where=Where(file=use_case.model, use_case=use_case.name),
                hint=near_hint(near, "export the model with its adapters, not merged into it"),
            )
        return correspondence

    def _refuse_near(
        self, near: Sequence[NearBranch], use_case: UseCaseInputConfig, modules: Sequence[str]
    ) -> None:
        described = {name: self._described[name] for name in use_case.adapter_names}
        for one in near:
            problem = near_problem(one, use_case, described, modules)
            if problem is not None:
                raise problem
