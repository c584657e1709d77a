"""What is told of an adapter: its kind, every module, and what lowering it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.description import ParameterShape, PromptShape
from lora_quant.adapters.lowered import ModuleShape, Need
from lora_quant.adapters.plain.plain_limits import find_obstacle
from lora_quant.findings import Finding

AdapterClass = Literal["low-rank", "scaled", "dense", "prompt", "parameters"]


@dataclass(frozen=True)
class ModuleReport:
    """One adapted module.

    Sizes are None where neither the files nor a base tell them; `kernel` is None where it may be
    part of `in_features`. `rank` is 0 without low rank. `vectors` holds the letters of h, g and c
    that there are. `need` is what writing A and B asks of the base, its sizes where the files do
    not tell them. `error` is the relative Frobenius
    error of an approximation, None for what is exact or has not been lowered.
    """

    module: str
    rank: int
    in_features: int | None
    out_features: int | None
    kernel: tuple[int, ...] | None
    groups: int
    scale: float
    vectors: tuple[str, ...]
    need: Need
    dense: bool
    gated: bool
    experts: int
    is_embedding: bool
    error: float | None = None


@dataclass(frozen=True, eq=False)
class AdapterReport:
    """One adapter. `output` is the folder that it was lowered to, None if it was not.

    `adapter_class`: low-rank (A, B and maybe a bias), scaled (also scales inputs or outputs of the
    base), dense (no low rank in some module), prompt, or parameters (replaces them and no more).
    `obstacle` is the reason why plain LoRA cannot hold it exactly, None if it can.
    """

    name: str
    path: Path
    format: str
    kind: str
    adapter_class: AdapterClass
    modules: tuple[ModuleReport, ...]
    parameters: tuple[ParameterShape, ...]
    prompt: PromptShape | None
    findings: tuple[Finding, ...]
    obstacle: str | None
    output: Path | None = None

    @property
    def needs(self) -> Need:
        """The most that any module asks of the base."""
        order = list(Need)
        return max((m.need for m in self.modules), key=order.index, default=Need.NOTHING)

    @property
    def max_error(self) -> float | None:
        """The largest error of a module; None if every one is exact."""
        return max((m.error for m in self.modules if m.error is not None), default=None)


def report_of(adapter: Adapter, path: Path, base: BaseModules | None = None) -> AdapterReport:
    """What the headers tell of an adapter, with the sizes of `base` where it is given.

    Raises what `base` raises for a module that it does not have.
    """
    obstacle = find_obstacle(adapter)
    return AdapterReport(
        name=adapter.name,
        path=path,
        format=adapter.checkpoint.format,
        kind=adapter.checkpoint.config.peft_type,
        adapter_class=_class_of(adapter),
        modules=tuple(_module(shape, base) for shape in adapter.shapes.values()),
        parameters=tuple(adapter.parameters.values()),
        prompt=adapter.description.prompt,
        findings=adapter.findings,
        obstacle=None if obstacle is None else obstacle.reason,
    )


def with_errors(report: AdapterReport, ranks: Mapping[str, tuple[int, float]]) -> AdapterReport:
    """The report with the rank and the error of every module that was approximated."""
    modules = [
        replace(m, rank=ranks[m.module][0], error=ranks[m.module][1]) if m.module in ranks else m
        for m in report.modules
    ]
    return replace(report, modules=tuple(modules))


def _class_of(adapter: Adapter) -> AdapterClass:
    if adapter.description.prompt is not None:
        return "prompt"
    shapes = adapter.shapes.values()
    if not shapes:
        return "parameters"
    if any(shape.dense for shape in shapes):
        return "dense"
    return "scaled" if any(shape.vectors & {"g", "h"} for shape in shapes) else "low-rank"


def _need(shape: ModuleShape) -> Need:
    """What the rule asks of the base, or the sizes that A and B have though the rule needs none."""
    if shape.need is Need.NOTHING and None in (shape.in_features, shape.out_features):
        return Need.SIZES
    return shape.need


def _module(shape: ModuleShape, base: BaseModules | None) -> ModuleReport:
    inputs, outputs, kernel, groups, is_embedding = (
        shape.in_features,
        shape.out_features,
        shape.kernel,
        shape.groups,
        shape.is_embedding,
    )
    if base is not None:
        sizes = base.sizes(shape.module)
        inputs, outputs, kernel = sizes.in_features, sizes.out_features, sizes.kernel
        groups, is_embedding = sizes.groups, sizes.is_embedding
    return ModuleReport(
        module=shape.module,
        rank=shape.rank,
        in_features=inputs,
        out_features=outputs,
        kernel=kernel,
        groups=groups,
        scale=shape.scale,
        vectors=tuple(sorted(shape.vectors)),
        need=_need(shape),
        dense=shape.dense,
        gated=shape.gated,
        experts=shape.experts,
        is_embedding=is_embedding,
    )
