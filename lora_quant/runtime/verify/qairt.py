"""Verifying the target `qairt`: the graph with the weights of every use case in its initializers.

What a device does with the encodings is not run here: the graph is as exact as the base, and has to
be what the reference is, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.comparison import equal
from lora_quant.runtime.verify.compiled import CompiledGraph
from lora_quant.runtime.verify.judge import Judge
from lora_quant.runtime.verify.own_graphs import zero_weights
from lora_quant.runtime.verify.pack import Pack
from lora_quant.runtime.verify.roundings import rounds_activations
from lora_quant.runtime.verify.settings import Settings
from lora_quant.runtime.verify.verification import TargetVerification


class QairtVerifier:
    """Feeds weights files; for a merged pack there are none, and nothing to switch off."""

    def __init__(self, pack: Pack, settings: Settings) -> None:
        proto, path = pack.graph("qairt")
        self._pack = pack
        self._is_merged = pack.manifest.merged is not None
        self._judge = Judge(settings, quantized=rounds_activations(proto.graph))
        self._compiled = CompiledGraph(proto, path, pack.manifest)
        self._base_exact: bool | None = None
        self._reference = "the base graph with the adapters put into its weights"
        if not pack.manifest.use_cases:
            self._reference = "the graphs that the use cases brought"
        self._off = zero_weights(pack.manifest) if pack.manifest.given_graph else {}

    @property
    def quantized(self) -> bool:
        """Whether the graph rounds its activations, as only a base that does so can make it."""
        return self._judge.quantized

    def check_base(self, feeds: Mapping[str, Array], plain: Mapping[str, Array]) -> None:
        """As initialised, with alpha 0; a final graph with zeros for its weights."""
        if not self._is_merged:
            self._base_exact = equal(self._compiled.run({**feeds, **self._off}, None, None), plain)

    def check(self, case: Case) -> None:
        """With the weights file of the use case, and its compiled strengths."""
        weights = None
        if not self._is_merged:
            weights = self._pack.file("qairt", "weights", case.use_case.name)
        feeds = self._pack.with_prompt("qairt", case.use_case, case.feeds)
        got = self._compiled.run(feeds, case.use_case, weights, case.gate)
        self._judge.take(
            case, got, lambda: self._compiled.run({**case.blank, **self._off}, None, None)
        )

    def result(self) -> TargetVerification:
        """Everything that was found."""
        return TargetVerification(
            target="qairt",
            how="weights in the place of the initializers, ONNX Runtime on the CPU, against "
            + self._reference,
            base="the base graph",
            base_exact=self._base_exact,
            errors=tuple(self._judge.errors),
            ratios=tuple(self._judge.ratios),
            unverified=tuple(self._judge.unverified),
        )
