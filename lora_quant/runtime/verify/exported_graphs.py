"""Holding the graphs that use cases were exported as against what the pack is verified by.

the use case's own graph, as it is    =    the base with what was read of the adapters, in floats

Nothing of the compiler is between the two but the taking apart: a rank of another adapter, or a
strength that was read wrongly, shows here. The bounds are those of every other float graph, and the
figures are no target's.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from lora_quant.adapters.adapter import Adapter
from lora_quant.engines.onnxruntime import Array, LoadedGraph, open_graph
from lora_quant.errors import VerificationError
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.exported.records import ExportedUseCase, ExportedUseCases
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.judge import Judge
from lora_quant.runtime.verify.own_strengths import own_strengths
from lora_quant.runtime.verify.roundings import rounds_activations
from lora_quant.runtime.verify.settings import Settings
from lora_quant.runtime.verify.verification import TargetVerification, Unverified

NAME = "own graphs"


class ExportedGraphsVerifier:
    """Runs the graph that each use case was exported as; one is open at a time."""

    def __init__(
        self,
        exported: ExportedUseCases,
        adapters: Mapping[str, Adapter],
        strengths: Mapping[str, Mapping[str, float]],
        base: ModelProto,
        settings: Settings,
    ) -> None:
        """`strengths`: use case -> adapter -> strength."""
        self._exported = exported
        self._adapters = adapters
        self._strengths = strengths
        self._outputs = [value.name for value in base.graph.output]
        self._judge = Judge(settings, quantized=rounds_activations(base.graph))

    @property
    def quantized(self) -> bool:
        """Whether the base rounds its activations, and so do the graphs."""
        return self._judge.quantized

    def check_base(self, feeds: Mapping[str, Array], plain: Mapping[str, Array]) -> None:
        """The graph of the base is the base."""

    def check(self, case: Case) -> None:
        """A use case that has a graph of its own; what cannot be run of it is noted."""
        use_case = self._exported.use_cases.get(case.use_case.name)
        if use_case is None:
            return
        try:
            got = self._run(use_case, case)
        except VerificationError as error:
            self._judge.unverified.append(Unverified(use_case.name, error.message))
            return
        self._judge.take(case, got, lambda: case.plain)

    def result(self) -> TargetVerification:
        """Everything that was found."""
        return TargetVerification(
            target=NAME,
            how="the graph that each use case was exported as, ONNX Runtime on the CPU, against "
            "the base graph with the adapters put into its weights",
            base="",
            base_exact=None,
            errors=tuple(self._judge.errors),
            ratios=tuple(self._judge.ratios),
            unverified=tuple(self._judge.unverified),
        )

    def _run(self, use_case: ExportedUseCase, case: Case) -> dict[str, Array]:
        """Outputs under the names that the base has for them."""
        graph = open_graph(use_case.model, optimization="basic")
        strengths = own_strengths(
            open_base(use_case.model),
            use_case,
            self._adapters,
            self._strengths[use_case.name],
        )
        got = graph.run({**_inputs(graph, use_case, case), **strengths})
        if set(got) == set(self._outputs):
            return got
        return dict(zip(self._outputs, got.values(), strict=True))


def _inputs(graph: LoadedGraph, use_case: ExportedUseCase, case: Case) -> dict[str, Array]:
    """The inputs of the base under the names that the graph has for them."""
    names = {value.name: use_case.base_names.get(value.name, value.name) for value in graph.inputs}
    return {name: case.feeds[partner] for name, partner in names.items() if partner in case.feeds}
