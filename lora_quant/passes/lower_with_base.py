"""Pass: lower the modules that need the base's weights, and approximate those without a low rank.

Each is lowered once, here, where the base's modules are known; the use cases then read the result.
Low rank within a grouped convolution is spread over the groups. Modules that need nothing of the
base are left to the moment when a pack is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.lowered import Dense, Lowered, ModuleShape, Need
from lora_quant.adapters.lowered_store import LoweredStore
from lora_quant.adapters.maths.approximate import approximate, rank_for
from lora_quant.errors import AdapterError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.attach.resolver import ModuleSizes, Resolution
from lora_quant.graph.records import Vector
from lora_quant.passes.base_modules import base_modules
from lora_quant.passes.compilation import Compilation, Progress
from lora_quant.passes.conditions import ADAPTERS_LOWERED, MODULES_RESOLVED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.grouped import is_per_group, spread, spread_shape


@dataclass(frozen=True)
class LowerWithBase:
    """Leaves every module with a low rank, or stops at the first error above the limit."""

    name: ClassVar[str] = "lower-with-base"
    requires: ClassVar[tuple[Condition, ...]] = (MODULES_RESOLVED,)
    ensures: ClassVar[tuple[Condition, ...]] = (ADAPTERS_LOWERED,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises AdapterError or GraphError, and AdapterError for an error above the limit."""
        if compilation.options.merge is not None:
            return PassResult(compilation, changed=False)
        adapters: dict[str, Adapter] = dict(compilation.having("adapters"))
        findings: list[Finding] = []
        changed = False
        for name, adapter in adapters.items():
            sizes = compilation.having("resolution").sizes
            costly = [s for s in adapter.shapes.values() if _is_costly(s, sizes[s.module])]
            if costly and adapter.stored is None:
                adapters[name], noticed = _settled(adapter, costly, compilation)
                findings += noticed
                changed = True
        if not changed:
            return PassResult(compilation, changed=False)
        resolution = _as_needed(compilation.having("resolution"), adapters.values())
        lowered_all = replace(compilation, adapters=adapters, resolution=resolution)
        return PassResult(lowered_all.with_findings(*findings), changed=True)


def _settled(
    adapter: Adapter, costly: Sequence[ModuleShape], compilation: Compilation
) -> tuple[Adapter, list[Finding]]:
    """The adapter with its costly modules lowered, and a finding for each approximation."""
    all_sizes = compilation.having("resolution").sizes
    base = base_modules(compilation, adapter)
    store = LoweredStore()
    shapes = dict(adapter.shapes)
    errors: list[float] = []
    findings: list[Finding] = []
    for number, shape in enumerate(costly):
        compilation.progress(f"adapter {adapter.name}", number, len(costly))
        lowered, error = _low_rank(adapter, shape, costly, base, compilation)
        if lowered.c is not None and not lowered.c.any():
            lowered = replace(lowered, c=None)  # as of a module without a bias
        if error is not None:
            errors.append(error)
            findings.append(_approximated(adapter, shape, lowered.rank, error))
        made = replace(
            shape,
            rank=lowered.rank,
            need=Need.NOTHING,
            dense=False,
            vectors=frozenset(v for v in "ghc" if getattr(lowered, v) is not None),
        )
        sizes = all_sizes[shape.module]
        if is_per_group(made, sizes):
            lowered, made = spread(lowered, sizes), spread_shape(made, sizes)
        store.put(shape.module, lowered)
        shapes[shape.module] = made
    settled = replace(
        adapter,
        stored=store,
        settled=shapes,
        max_error=max(errors, default=None),
    )
    return settled, findings


def _as_needed(resolution: Resolution, adapters: Iterable[Adapter]) -> Resolution:
    """Attach points without the vectors that turned out to be absent, such as c without a bias."""
    needed: dict[int, set[Vector]] = defaultdict(set)
    for adapter in adapters:
        for module, shape in adapter.shapes.items():
            needed[resolution.placements[module].point].update(map(Vector, shape.vectors))
    points = [
        replace(point, vectors=frozenset(needed[number]))
        for number, point in enumerate(resolution.points)
    ]
    return replace(resolution, points=tuple(points))


def _is_costly(shape: ModuleShape, sizes: ModuleSizes) -> bool:
    return shape.dense or shape.need is not Need.NOTHING or is_per_group(shape, sizes)


def _low_rank(
    adapter: Adapter,
    shape: ModuleShape,
    costly: Sequence[ModuleShape],
    base: BaseModules,
    compilation: Compilation,
) -> tuple[Lowered, float | None]:
    """The module in canonical form, and the error of the approximation if it is one."""
    lowered = adapter.lower(shape.module, base)
    if isinstance(lowered, Lowered):
        return lowered, None
    options = compilation.options
    limit = options.max_error if options.max_error is not None else 0.0
    result = approximate(lowered, options.approximate_rank)
    if result.error > limit:
        rank = _needed_rank(adapter, costly, base, limit, compilation.progress)
        raise AdapterError(
            f"rank {options.approximate_rank} leaves a relative error of {result.error:.3g}, more "
            f"than --max-error {limit:g}",
            where=Where(adapter=adapter.name, module=shape.module),
            hint=f"the layers of this adapter need rank {rank}: give it with --approximate-rank, "
            "allow a larger error, or put the adapter into the base's weights with --merge",
        )
    return result.lowered, result.error


def _needed_rank(
    adapter: Adapter,
    costly: Sequence[ModuleShape],
    base: BaseModules,
    limit: float,
    progress: Progress,
) -> int:
    """The smallest rank that brings every layer without a low rank within the limit."""
    needed = 1
    for number, shape in enumerate(costly):
        progress(f"rank that adapter {adapter.name} needs", number, len(costly))
        lowered = adapter.lower(shape.module, base)
        if isinstance(lowered, Dense):
            needed = max(needed, rank_for(lowered, limit))
    return needed


def _approximated(adapter: Adapter, shape: ModuleShape, rank: int, error: float) -> Finding:
    return Finding(
        rule="adapter/approximated",
        severity=Severity.WARNING,
        message=f"module {shape.module!r} is approximated by rank {rank}, with a relative "
        f"Frobenius error of {error:.3g}",
        where=Where(
            file=adapter.checkpoint.tensors.path, adapter=adapter.name, module=shape.module
        ),
        hint="measure the quality of the model; --merge is exact",
    )
