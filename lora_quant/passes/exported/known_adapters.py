"""What is known of every adapter while one use case's graph is read after the other.

The law of its scale narrows down from module to module; its factors and its modules are those of
the first graph that holds it, or of its own files, and every other graph must have the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.spill_file import SpillFile
from lora_quant.adapters.files.spilled_tensors import SpilledTensors
from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.errors import AdapterError, Where, some
from lora_quant.findings import Finding
from lora_quant.passes.exported.descriptions import DeclaredDescribed, Described, Setting
from lora_quant.passes.exported.factors import (
    CheckpointFactors,
    Factors,
    GraphFactors,
    KnownFactors,
    WeightsDescribed,
    same,
)
from lora_quant.passes.exported.rank_fit import Fit
from lora_quant.passes.exported.readings import Law, Owner
from lora_quant.passes.exported.remarks import law_note, never_on_note


class KnownAdapters:
    """`described` has every adapter of the use cases that are read."""

    def __init__(self, described: Mapping[str, Described]) -> None:
        self._described = described
        self._factors: dict[str, KnownFactors] = {}
        self._laws: dict[str, frozenset[Law]] = {}
        self._on: set[str] = set()
        self._fresh: dict[str, GraphFactors] = {}
        self._spill = SpillFile()

    def begin(
        self, use_case: UseCaseInputConfig, modules: Sequence[str]
    ) -> dict[str, Mapping[str, Setting]]:
        """What the descriptions say of the modules that a use case's graph has branches at.

        Raises AdapterError for a checkpoint that adapts others as well.
        """
        self._fresh = {}
        for name in use_case.adapter_names:
            described = self._described[name]
            if name in self._factors or not isinstance(described, WeightsDescribed):
                continue
            names = described.names(modules)
            missing = [m for m in described.adapter.shapes if m not in names.values()]
            if missing:
                raise AdapterError(
                    f"adapter {name!r} adapts {missing[0]!r}, and the graph of use case "
                    f"{use_case.name!r} has no branch there",
                    where=Where(file=use_case.model, adapter=name, module=missing[0]),
                    hint="the graph was exported without it, or from another checkpoint",
                )
            self._factors[name] = CheckpointFactors(described.adapter, names)
        return {name: self._described[name].settings(modules) for name in use_case.adapter_names}

    def owners(
        self,
        use_case: UseCaseInputConfig,
        settings: Mapping[str, Mapping[str, Setting]],
        module: str,
    ) -> list[Owner]:
        """The adapters that can have ranks at a module, in the order of the use case."""
        owners = []
        for slot, name in enumerate(use_case.adapter_names):
            setting = settings[name].get(module)
            known = self._factors.get(name)
            if setting is None or (known is not None and module not in known.modules):
                continue
            possible = self._laws.get(name, frozenset(setting.laws))
            laws = {law: scale for law, scale in setting.laws.items() if law in possible}
            strength = float(use_case.adapter_alphas[slot])
            is_known = known is not None
            owners.append(Owner(name, setting.rank, laws, strength, slot, is_known))
        return owners

    def holds(self, adapter: str, module: str, part: Factors) -> bool:
        """Whether these can be an adapter's factors: they are the known ones, or none are known."""
        known = self._factors.get(adapter)
        if known is None:
            return True
        expected = known.factors(module, part)
        return same(part.a, expected.a) and same(part.b, expected.b)

    def factors(self, adapter: str) -> KnownFactors:
        """Those of an adapter that is known."""
        return self._factors[adapter]

    def narrow(self, fit: Fit) -> None:
        """Keep the laws by which the scales of one more module can be read."""
        for adapter, laws in fit.laws.items():
            self._laws[adapter] = self._laws.get(adapter, laws) & laws

    def take(
        self,
        use_case: UseCaseInputConfig,
        adapter: str,
        module: str,
        part: Factors,
        *,
        is_embedding: bool,
    ) -> None:
        """Put the factors of one module aside, unless they are known."""
        if adapter in self._factors:
            return
        if adapter not in self._fresh:
            tensors = SpilledTensors(self._spill, use_case.model)
            self._fresh[adapter] = GraphFactors(use_case.name, tensors)
        self._fresh[adapter].put(module, part, is_embedding=is_embedding)

    def finish(self, use_case: UseCaseInputConfig, met: Mapping[str, Collection[str]]) -> None:
        """`met`: adapter -> its modules in the use case; AdapterError if not all are there."""
        for name in use_case.adapter_names:
            modules = met.get(name, ())
            known = self._factors.get(name)
            absent = [m for m in known.modules if m not in modules] if known is not None else []
            if known is not None and absent:
                raise AdapterError(
                    f"adapter {name!r} has module {absent[0]!r} in {known.source}, and not in the "
                    f"graph of use case {use_case.name!r} ({some(absent)} in all)",
                    where=Where(
                        file=use_case.model,
                        use_case=use_case.name,
                        adapter=name,
                        module=absent[0],
                    ),
                    hint="export both from one checkpoint, or name them as two adapters",
                )
            if not modules:
                raise AdapterError(
                    f"the graph of use case {use_case.name!r} has no ranks of adapter {name!r}",
                    where=self._described[name].where,
                    hint="export the graph with this adapter, or take it out of adapter_names",
                )
            if use_case.adapter_alphas[use_case.adapter_names.index(name)] != 0:
                self._on.add(name)
        self._factors.update(self._fresh)

    def checkpoints(self) -> tuple[dict[str, Checkpoint], tuple[Finding, ...]]:
        """What was put aside of each adapter, as a PEFT checkpoint, and what to say of it."""
        made: dict[str, Checkpoint] = {}
        findings = []
        for name, known in self._factors.items():
            if not isinstance(known, GraphFactors):
                continue
            described, laws = self._described[name], self._laws[name]
            if name not in self._on:
                findings.append(never_on_note(name, described.where))
            law = Law.LORA if Law.LORA in laws else Law.RSLORA
            if law is Law.RSLORA and isinstance(described, DeclaredDescribed):
                findings.append(law_note(name, described.where))
            config = described.config(tuple(known.modules), law)
            made[name] = Checkpoint(config, known.tensors, "onnx")
        return made, tuple(findings)
