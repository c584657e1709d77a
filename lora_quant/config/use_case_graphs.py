"""Which graph of a configuration is the base, and which use cases come as graphs of their own.

one graph                      the base of all use cases
several                        the one of the use cases without adapters; others hold branches
"""

from __future__ import annotations

from pathlib import Path

from lora_quant.config.lora_config import LoraConfig, UseCaseInputConfig
from lora_quant.config.real_path import real_path
from lora_quant.errors import ConfigError, Where


def base_model(config: LoraConfig, source: Path | None = None) -> Path:
    """The path of the base graph; ConfigError, naming the file `source`, if none is known."""
    models = _distinct(config.use_cases)
    if len(models) == 1:
        return models[0].model
    bases = _distinct([use_case for use_case in config.use_cases if not use_case.adapter_names])
    where = Where(file=source, field="model_name")
    first, other = models[:2]
    if not bases:
        raise ConfigError(
            f"use cases {first.name!r} and {other.name!r} name different graphs, "
            f"{str(first.model)!r} and {str(other.model)!r}, and none is known as the base",
            where=where,
            hint="add a use case with `adapter_names: []` that names the base graph without "
            "branches",
        )
    if len(bases) > 1:
        first, other = bases[:2]
        raise ConfigError(
            f"use cases {first.name!r} and {other.name!r} have no adapters and name different "
            f"graphs: {str(first.model)!r} and {str(other.model)!r}",
            where=where,
            hint="all use cases without adapters are the base: name the same graph in each",
        )
    return bases[0].model


def with_own_graphs(config: LoraConfig, base: Path) -> tuple[UseCaseInputConfig, ...]:
    """The use cases whose graph is not the base's, in the order of the configuration."""
    return tuple(u for u in config.use_cases if real_path(u.model) != real_path(base))


def _distinct(use_cases: list[UseCaseInputConfig]) -> list[UseCaseInputConfig]:
    """The first use case of every graph."""
    found: dict[Path, UseCaseInputConfig] = {}
    for use_case in use_cases:
        found.setdefault(real_path(use_case.model), use_case)
    return list(found.values())
