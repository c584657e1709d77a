"""Verifying the target `onnxruntime`: the graph as any application runs it.

One session opened from the file, with the optimizations that the engine chooses, one adapter file
per use case in RunOptions, nothing of ours in between. The same goes through our own Session, which
has to give the same bits.

float weights        held against the reference to rounding, as for qairt
quantized weights    by SQNR; also float ones on a base that rounds its activations
no adapter file      the base graph, bit for bit, both without fusions
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.verify.adapter_runs import AdapterRuns
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.comparison import equal
from lora_quant.runtime.verify.judge import Judge
from lora_quant.runtime.verify.pack import Pack
from lora_quant.runtime.verify.roundings import (
    has_four_bit_weights,
    has_quantized_weights,
    rounds_activations,
)
from lora_quant.runtime.verify.session_check import SessionCheck
from lora_quant.runtime.verify.settings import Settings
from lora_quant.runtime.verify.verification import TargetVerification

TARGET = "onnxruntime"


class OnnxruntimeVerifier:
    """Runs OUT/onnxruntime/model.onnx."""

    def __init__(self, pack: Pack, settings: Settings) -> None:
        proto, path = pack.graph(TARGET)
        inputs = pack.target(TARGET).inputs
        quantized = has_quantized_weights(inputs) or rounds_activations(proto.graph)
        self._is_merged = pack.manifest.merged is not None
        four_bits = has_four_bit_weights(proto.graph, inputs)
        self._judge = Judge(settings, quantized=quantized, four_bits=four_bits)
        self._runs = AdapterRuns(pack, TARGET, proto, path)
        self._base_exact: bool | None = None
        self._check = SessionCheck(pack.folder, TARGET)

    @property
    def quantized(self) -> bool:
        """Whether LoRA weights or activations are quantized."""
        return self._judge.quantized

    def check_base(self, feeds: Mapping[str, Array], plain: Mapping[str, Array]) -> None:
        """Without any adapter file."""
        if not self._is_merged:
            self._base_exact = equal(self._runs.off_unfused(feeds), plain)

    def check(self, case: Case) -> None:
        """With the adapter file of the use case."""
        got = self._runs.on(case)
        self._judge.take(case, got, lambda: self._runs.off(case.blank))
        self._check.check(case, got)

    def result(self) -> TargetVerification:
        """Everything that was found."""
        return TargetVerification(
            target=TARGET,
            how="ONNX Runtime on the CPU with the adapter file of each use case, against the base "
            "graph with the adapters put into its weights",
            base="the base graph",
            base_exact=self._base_exact,
            errors=tuple(self._judge.errors),
            ratios=tuple(self._judge.ratios),
            same=(self._check.result(),),
            unverified=tuple(self._judge.unverified),
            notes=tuple(self._check.differing),
        )
