"""Repeating runs of the CPU on the HTP: all of one graph in a process of its own.

Outputs are held against those of the CPU in steps of their grids, and against the reference by the
SQNR of what the adapters change on the HTP itself. The run without adapters has no soft prompt: for
a use case with one there is no such SQNR, and the steps stand alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import GraphProto

from lora_quant.engines.adapter_file import read_adapter
from lora_quant.engines.htp_processes import run_on_htp
from lora_quant.engines.onnxruntime import Array
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.comparison import equal
from lora_quant.runtime.verify.htp_bound import (
    has_functions,
    noise_bound,
    output_steps,
    product_bounds,
)
from lora_quant.runtime.verify.settings import Settings
from lora_quant.runtime.verify.sqnr import OutputSqnr, compare_sqnr
from lora_quant.runtime.verify.steps import OutputSteps, compare_steps
from lora_quant.runtime.verify.verification import SameBits

OFF = "(off)"


@dataclass(frozen=True, eq=False)
class HtpRun:
    """A run to repeat: its inputs, its adapter file, and its outputs on the CPU.

    case: None without adapters. wanted: outputs of the reference.
    """

    case: Case | None
    feeds: Mapping[str, Array]
    adapter: Path | None
    outputs: Mapping[str, Array]
    wanted: Mapping[str, Array]


class HtpRuns:
    """Collects runs of one graph, then runs all of them; the first is the one without adapters."""

    def __init__(self, path: Path, graph: GraphProto, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self._steps = output_steps(graph)
        self._bounds = product_bounds(graph, settings.htp_arch)
        self._has_functions = has_functions(graph)
        self._runs: list[HtpRun] = []
        self.steps: list[OutputSteps] = []
        self.ratios: list[OutputSqnr] = []
        self.same: list[SameBits] = []
        self.notes: list[str] = []

    def add(self, run: HtpRun) -> None:
        """Note a run."""
        self._runs.append(run)

    def run(self, context: Path | None) -> None:
        """Run on the HTP, also from a compiled context if there is one.

        Raises VerificationError if the HTP does not take the graph.
        """
        arch = self._settings.htp_arch
        found = run_on_htp(self._path, self._feeds(), htp_arch=arch)
        for run, got in zip(self._runs, found, strict=True):
            self._judge(run, got, found[0])
        for output in set(self._bounds) - set(self._steps):
            self.notes.append(f"output {output!r} is on no grid: HTP and CPU are not compared")
        if context is not None:
            again = run_on_htp(context, self._feeds(), htp_arch=arch)
            exact = all(equal(one, other) for one, other in zip(again, found, strict=True))
            self.same.append(SameBits("the compiled context against the graph on the HTP", exact))

    def _judge(self, run: HtpRun, got: Mapping[str, Array], off: Mapping[str, Array]) -> None:
        case = run.case
        name, gates = (OFF, "") if case is None else (case.use_case.name, case.gates)
        bounds = {output: self._bound(run, output) for output in self._steps}
        self.steps += compare_steps(name, got, run.outputs, self._steps, bounds, gates=gates)
        if case is None or case.use_case.prompt is not None:
            return
        limit = self._settings.least_sqnr()
        self.ratios += compare_sqnr(name, got, off, case.wanted, case.plain, limit, gates=gates)

    def _bound(self, run: HtpRun, output: str) -> float:
        if self._settings.max_steps is not None:
            return self._settings.max_steps
        if not self._has_functions:
            return self._bounds[output]
        noise = noise_bound(run.outputs[output], run.wanted[output], self._steps[output])
        return max(self._bounds[output], noise)

    def _feeds(self) -> Iterator[dict[str, Array]]:
        """Everything by name, the adapter's values included, one run at a time."""
        for run in self._runs:
            values: dict[str, Array] = {}
            if run.adapter is not None:
                file = read_adapter(run.adapter)
                values = {name: value.numpy() for name, value in file.values.items()}
            yield {**run.feeds, **values}
