"""Verifying the target `qnn`: its Q/DQ graph on the CPU, and on the HTP where that can be run.

    CPU against the reference in floats       SQNR of the effect of the adapters
    CPU without adapters                      the same graph with the branches cut out, bit for bit
    our own Session on the CPU                the same bits
    HTP against CPU                           steps of the output's grid
    HTP against the reference                 SQNR of the effect of the adapters
    compiled context, if the pack has one     what the HTP gives for the graph, bit for bit

The HTP is a device, or its emulation on x86-64; every node has to run there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_quant.engines.onnxruntime import Array
from lora_quant.engines.qnn import unavailable_reason
from lora_quant.errors import VerificationError
from lora_quant.runtime.reference.engine import Engine
from lora_quant.runtime.verify.adapter_runs import AdapterRuns
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.comparison import equal
from lora_quant.runtime.verify.cut_branches import without_branches
from lora_quant.runtime.verify.htp_runs import HtpRun, HtpRuns
from lora_quant.runtime.verify.judge import Judge
from lora_quant.runtime.verify.pack import Pack
from lora_quant.runtime.verify.session_check import SessionCheck
from lora_quant.runtime.verify.settings import Settings
from lora_quant.runtime.verify.sqnr import decibels_of
from lora_quant.runtime.verify.verification import TargetVerification, Unverified

TARGET = "qnn"


class QnnVerifier:
    """Runs OUT/qnn/model.onnx."""

    quantized = True

    def __init__(self, pack: Pack, settings: Settings) -> None:
        self._pack = pack
        self._settings = settings
        self._proto, self._path = pack.graph(TARGET)
        self._judge = Judge(settings, quantized=True)
        self._runs = AdapterRuns(pack, TARGET, self._proto, self._path)
        self._htp = HtpRuns(self._path, self._proto.graph, settings)
        self._check = SessionCheck(pack.folder, TARGET)
        self._missing = unavailable_reason()
        self._base_exact: bool | None = None
        self._notes: list[str] = []

    def check_base(self, feeds: Mapping[str, Array], plain: Mapping[str, Array]) -> None:
        """Without any adapter file."""
        fed = {**feeds, **self._runs.gate(None)}
        points = self._pack.manifest.attach_points
        cut = without_branches(self._proto, self._path, points)
        engine = Engine(cut, self._path.parent, self._path)
        self._base_exact = equal(self._runs.off_unfused(feeds), engine.run(fed))
        off = self._runs.off(feeds)
        for name, values in plain.items():
            if values.dtype.kind == "f" and values.size:
                self._notes.append(
                    f"without adapters, output {name!r} has {decibels_of(values, off[name]):.1f} "
                    "dB against the float base"
                )
        if self._missing is None:
            self._htp.add(HtpRun(None, fed, None, off, plain))

    def check(self, case: Case) -> None:
        """With the adapter file of the use case, on the CPU; what to run on the HTP is noted."""
        got = self._runs.on(case)
        self._judge.take(case, got, lambda: self._runs.off(case.blank))
        self._check.check(case, got)
        if self._missing is not None:
            return
        feeds, adapter = self._runs.feeds(case), self._runs.adapter(case)
        self._htp.add(HtpRun(case, feeds, adapter, got, case.wanted))

    def result(self) -> TargetVerification:
        """Everything that was found; this is where the HTP runs."""
        unverified = list(self._judge.unverified)
        if self._missing is not None:
            self._notes.append(f"not run on the HTP: {self._missing}")
        else:
            try:
                self._htp.run(self._context())
            except VerificationError as error:
                unverified.append(Unverified("", f"not run on the HTP: {error.message}"))
        return TargetVerification(
            target=TARGET,
            how="the Q/DQ graph on the CPU with the adapter file of each use case, against the "
            "float base graph with the adapters put into its weights",
            base="the same Q/DQ graph with the branches cut out",
            base_exact=self._base_exact,
            ratios=tuple(self._judge.ratios),
            steps=tuple(self._htp.steps),
            device_ratios=tuple(self._htp.ratios),
            same=(self._check.result(), *self._htp.same),
            unverified=tuple(unverified),
            notes=(*self._check.differing, *self._notes, *self._htp.notes),
        )

    def _context(self) -> Path | None:
        """The compiled context, unchanged since the build; None if there is none to be run."""
        manifest = self._pack.manifest
        if not manifest.files(TARGET, role="context"):
            return None
        compiled = self._pack.target(TARGET).htp_arch
        if compiled != self._settings.htp_arch:
            self._notes.append(
                f"the compiled context is for the HTP architecture {compiled}, and was not run on "
                f"{self._settings.htp_arch}"
            )
            return None
        for data in manifest.files(TARGET, role="context-data"):
            self._pack.checked(data)
        return self._pack.file(TARGET, "context")
