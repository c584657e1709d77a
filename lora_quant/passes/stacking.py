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
from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.errors import ConfigError, UnsupportedAdapterError, Where
from lora_quant.graph.attach import Resolution
from lora_quant.graph.name_table import same_module
from lora_quant.passes.compilation import Compilation


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
    owners: dict[str, str] = {}
    for adapter in used:
        for parameter in adapter.parameters:
            other = owners.setdefault(parameter, adapter.name)
            if other != adapter.name:
                raise UnsupportedAdapterError(
                    f"adapters {other!r} and {adapter.name!r} both replace {parameter!r}",
                    where=Where(file=compilation.config_file, use_case=use_case.name),
                    hint="use them in separate use cases",
                )
    for parameter, owner in owners.items():
        _check_scaled(compilation, use_case, used, owner, parameter)


def _check_scaled(
    compilation: Compilation,
    use_case: UseCaseInputConfig,
    used: list[Adapter],
    owner: str,
    parameter: str,
) -> None:
    """A weight or bias that is replaced may not be of a module that another adapter scales."""
    own = parameter.rpartition(".")[0]
    for other in used:
        for module, shape in other.shapes.items():
            is_scaled = other.name != owner and shape.vectors & {"g", "h"}
            if is_scaled and same_module(own, module):
                raise UnsupportedAdapterError(
                    f"adapter {owner!r} replaces {parameter!r}, which is of a module that "
                    f"adapter {other.name!r} scales as the base has it",
                    where=Where(
                        file=compilation.config_file, use_case=use_case.name, module=module
                    ),
                    hint="use them in separate use cases",
                )


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
