"""What a use case may do with adapters that scale activations or replace parameters.

    y = g * (W (h * x) + b) + B (s * (A x)) + c

Low rank is linear: strengths multiply s, and adapters add up in any order. g and h are not: such
an adapter is on as it was trained, and where it meets others on one module they act one after the
other, as PEFT does with its active adapters. That is only done when the order is asked for.

    first 1, then 2:   g = g2 g1   B = [g2 B1, B2]   c = g2 c1 + c2   h = h2 h1

Some kinds do not follow that rule: rotations of the weight multiply each other and what was there
before, and starts that take a part of the weight away take it from what the first one left. They
are alone on their modules: see ModuleShape.adds_up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.lowered import Need
from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.errors import ConfigError, UnsupportedAdapterError, Where
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.graph.attach.resolver import Resolution
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.replacements import Replacement


def check_stacking(compilation: Compilation) -> None:
    """Raise for the first use case whose adapters cannot be combined as it says.

    ConfigError for a strength that has no meaning, UnsupportedAdapterError for adapters that meet.
    """
    adapters: Mapping[str, Adapter] = compilation.having("adapters")
    for use_case in compilation.config.use_cases:
        used = [adapters[name] for name in use_case.adapter_names]
        _check_strengths(compilation, use_case, used)
        _check_modules(compilation, use_case, used)
        _check_parameters(compilation, use_case, used)
        _check_prompts(compilation, use_case, used)


def _check_strengths(
    compilation: Compilation, use_case: UseCaseInputConfig, used: list[Adapter]
) -> None:
    for adapter, alpha in zip(used, use_case.adapter_alphas, strict=True):
        reason = _fixed_strength(adapter)
        if alpha != 1.0 and reason is not None:
            raise ConfigError(
                f"adapter {adapter.name!r} has the strength {alpha:g}, expected 1: {reason}",
                where=Where(
                    file=compilation.config_file,
                    field="adapter_alphas",
                    use_case=use_case.name,
                    adapter=adapter.name,
                ),
                hint="give it the strength 1, or leave it out of the use case",
            )


def _fixed_strength(adapter: Adapter) -> str | None:
    """Why an adapter is on as it was trained or not at all; None if it may have any strength."""
    if adapter.description.prompt is not None:
        return "a soft prompt is there or not"
    if adapter.parameters:
        return f"it replaces {next(iter(adapter.parameters))!r}, which is there or not"
    for shape in adapter.shapes.values():
        if shape.vectors & {"g", "h"}:
            return f"it scales the activations of {shape.module!r}, where a strength has no meaning"
    return None


def _check_modules(
    compilation: Compilation, use_case: UseCaseInputConfig, used: list[Adapter]
) -> None:
    resolution: Resolution = compilation.having("resolution")
    meeting: dict[object, list[tuple[Adapter, str]]] = defaultdict(list)
    for adapter in used:
        for module in adapter.shapes:
            meeting[resolution.placements[module]].append((adapter, module))
    for group in meeting.values():
        _check_alone(compilation, use_case, group)
        vectors = [adapter.shapes[module].vectors for adapter, module in group]
        scaling = [bool(v & {"g", "h"}) for v in vectors]
        if len(group) == 1 or not any(scaling):
            _check_routers(compilation, use_case, group)
            continue
        names = " and ".join(repr(adapter.name) for adapter, _ in group)
        where = Where(file=compilation.config_file, use_case=use_case.name, module=group[0][1])
        if any("h" in v for v in vectors) and not all(v == {"h"} for v in vectors):
            raise UnsupportedAdapterError(
                f"adapters {names} meet on one module whose input one of them scales",
                where=where,
                hint="use them in separate use cases",
            )
        if compilation.options.stacking == "refuse":
            raise UnsupportedAdapterError(
                f"adapters {names} meet on one module whose output one of them scales: the result "
                "depends on their order",
                where=where,
                hint="say that they act in the order of adapter_names with --stacking in-order, or "
                "use them in separate use cases",
            )


def _check_alone(
    compilation: Compilation, use_case: UseCaseInputConfig, group: list[tuple[Adapter, str]]
) -> None:
    alone = [adapter for adapter, module in group if not adapter.shapes[module].adds_up]
    if len(group) == 1 or not alone:
        return
    names = " and ".join(repr(adapter.name) for adapter, _ in group)
    raise UnsupportedAdapterError(
        f"adapters {names} meet on one module, and {alone[0].name!r} is of kind "
        f"{alone[0].checkpoint.config.peft_type}, in a form whose update is not one that others "
        "can be added to",
        where=Where(file=compilation.config_file, use_case=use_case.name, module=group[0][1]),
        hint="use them in separate use cases",
    )


def _check_routers(
    compilation: Compilation, use_case: UseCaseInputConfig, group: list[tuple[Adapter, str]]
) -> None:
    routed = [adapter.name for adapter, module in group if adapter.shapes[module].experts]
    if len(routed) > 1:
        raise UnsupportedAdapterError(
            f"adapters {' and '.join(map(repr, routed))} both route on one module",
            where=Where(file=compilation.config_file, use_case=use_case.name, module=group[0][1]),
            hint="use them in separate use cases",
        )


def _check_parameters(
    compilation: Compilation, use_case: UseCaseInputConfig, used: list[Adapter]
) -> None:
    owners: dict[str, Replacement] = {}
    for adapter in used:
        for one in compilation.replacements:
            if one.adapter != adapter.name:
                continue
            other = owners.setdefault(one.target.weight.name, one)
            if other.adapter != one.adapter:
                raise UnsupportedAdapterError(
                    _both_replace(other, one),
                    where=Where(file=compilation.config_file, use_case=use_case.name),
                    hint="use them in separate use cases",
                )
    for adapter in used:
        others = [one for one in owners.values() if one.adapter != adapter.name]
        if others:
            _check_made_for_base(compilation, use_case, adapter, others)
            _check_updated(compilation, use_case, adapter, others)


def _both_replace(first: Replacement, second: Replacement) -> str:
    names = f"adapters {first.adapter!r} and {second.adapter!r}"
    one, other = first.shape.parameter, second.shape.parameter
    if one == other:
        return f"{names} both replace {one!r}"
    return f"{names} replace {one!r} and {other!r}, which are one parameter of the base"


def _check_made_for_base(
    compilation: Compilation,
    use_case: UseCaseInputConfig,
    adapter: Adapter,
    replaced: list[Replacement],
) -> None:
    """What others replace may not be of a module that the adapter scales or computes from."""
    resolution: Resolution = compilation.having("resolution")
    scaled = {m for m, shape in adapter.shapes.items() if shape.vectors & {"g", "h"}}
    modules = sorted(scaled | _read_from_base(adapter))
    weights = {resolution.place(module)[0].linear.weight: module for module in modules}
    known = NameTable(modules)
    paths = NameTable(one.target.parameter.rpartition(".")[0] for one in replaced)
    spelled = {path: module for module in modules for path in paths.find(module)}
    for one in replaced:
        path = one.target.parameter.rpartition(".")[0]
        module = weights.get(one.target.weight.name) or spelled.get(path)
        module = module or next(iter(known.find(path)), None)
        if module is None:
            continue
        how = (
            f"that adapter {adapter.name!r} scales as the base has it"
            if module in scaled
            else f"whose update in adapter {adapter.name!r} is computed from what the base has"
        )
        raise UnsupportedAdapterError(
            f"adapter {one.adapter!r} replaces {one.target.parameter!r}, which is of a module "
            f"{how}",
            where=Where(file=compilation.config_file, use_case=use_case.name, module=module),
            hint="use them in separate use cases",
        )


def _check_updated(
    compilation: Compilation,
    use_case: UseCaseInputConfig,
    adapter: Adapter,
    replaced: list[Replacement],
) -> None:
    """A weight that others replace, whole or in rows, may not be one that the adapter updates.

    The update was trained on the weight as the base has it.
    """
    resolution: Resolution = compilation.having("resolution")
    weights = {resolution.place(m)[0].linear.weight: m for m in adapter.shapes}
    for one in replaced:
        module = weights.get(one.target.weight.name)
        if module is not None:
            raise UnsupportedAdapterError(
                f"adapter {one.adapter!r} replaces {one.target.parameter!r}, which is the weight "
                f"of a module that adapter {adapter.name!r} updates",
                where=Where(file=compilation.config_file, use_case=use_case.name, module=module),
                hint="use them in separate use cases",
            )


def _read_from_base(adapter: Adapter) -> set[str]:
    """Modules whose update is computed from the base's weight or bias.

    The files tell: once such a module is lowered, its shape needs nothing of the base any more.
    Of the sizes alone nothing but a shift is made with the bias.
    """
    return {
        module
        for module, shape in adapter.description.shapes.items()
        if shape.need is Need.WEIGHT or (shape.need is Need.SIZES and "c" in shape.vectors)
    }


def _check_prompts(
    compilation: Compilation, use_case: UseCaseInputConfig, used: list[Adapter]
) -> None:
    prompts = [adapter.name for adapter in used if adapter.description.prompt is not None]
    if len(prompts) > 1:
        raise UnsupportedAdapterError(
            f"adapters {' and '.join(map(repr, prompts))} are soft prompts, expected one at most",
            where=Where(file=compilation.config_file, use_case=use_case.name),
            hint="use them in separate use cases",
        )
