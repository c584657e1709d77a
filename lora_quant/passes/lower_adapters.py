"""Pass: open every adapter that a use case names and settle how its modules are lowered.

Only configurations and tensor headers are read: kinds, ranks, scales and shapes are known and
checked afterwards, values come later, one branch at a time. A kind without a low rank is refused
here, unless the options say what to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lora_quant import plugins
from lora_quant.adapters.adapter import Adapter, adapter_of, load_adapter
from lora_quant.adapters.contract import LoweringRule
from lora_quant.adapters.declared import DeclaredParams
from lora_quant.config.options import BuildOptions
from lora_quant.errors import ConfigError, UnsupportedAdapterError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.adapter_sources import AdapterSources, read_sources
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import ADAPTERS_OPEN
from lora_quant.passes.contract import Condition, PassResult


@dataclass(frozen=True)
class LowerAdapters:
    """Finds the lowering rule of each adapter; an adapter that no use case names is ignored."""

    name: ClassVar[str] = "lower-adapters"
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = (ADAPTERS_OPEN,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises AdapterError, UnsupportedAdapterError or ConfigError, naming the adapter."""
        if compilation.adapters is not None:
            return PassResult(compilation, changed=False)
        config = compilation.config
        unused = config.unused_adapters()
        described = () if compilation.given is None else compilation.given.described
        rules = plugins.Instances(plugins.LOWERING_RULES)
        adapters: dict[str, Adapter] = {}
        for number, entry in enumerate(config.adapter):
            compilation.progress(f"adapter {entry.name}", number, len(config.adapter))
            if entry.name not in unused and entry.name not in described:
                sources = read_sources(entry, compilation.config_file)
                adapter = _open(sources, rules, compilation)
                _check_dense(adapter, compilation.options)
                adapters[entry.name] = adapter
        found = [f for adapter in adapters.values() for f in adapter.findings]
        found += [_routed(a) for a in adapters.values() if _routes(a)]
        found += [_unused(name, compilation.config_file) for name in unused]
        lowered = replace(compilation, adapters=adapters).with_findings(*found)
        return PassResult(lowered, changed=True)


def _open(
    sources: AdapterSources, rules: Mapping[str, LoweringRule], compilation: Compilation
) -> Adapter:
    """From a checkpoint, or from what the graphs of use cases hold of an adapter without one."""
    name, declared = sources.name, sources.declared
    where = Where(file=compilation.config_file, field="lora_config", adapter=name)
    exported = compilation.exported
    if exported is not None and name in exported.checkpoints:
        return adapter_of(name, exported.checkpoints[name], rules, task=sources.entry.task_id)
    path = sources.checkpoint or sources.config
    if path is None:
        raise ConfigError(
            f"adapter {name!r} has a description and no weights",
            where=where,
            hint="name its PEFT folder or .safetensors file as well: "
            "lora_config: [params.json, peft_folder]; or name a graph that holds its branches as "
            "the model_name of a use case",
        )
    if len(declared) > 1:
        raise ConfigError(
            f"adapter {name!r} has {len(declared)} descriptions, expected at most one",
            where=where,
            hint="leave out those that its weights tell as well",
        )
    params = [
        DeclaredParams(d.name, d.rank, float(d.alpha), tuple(d.target_modules))
        for d in (one.params for one in declared)
    ]
    return load_adapter(
        name, path, rules, declared=params[0] if params else None, task=sources.entry.task_id
    )


def _check_dense(adapter: Adapter, options: BuildOptions) -> None:
    """Refuse what has no low rank, unless it is to be approximated or merged."""
    if options.approximate or options.merge is not None:
        return
    dense = [module for module, shape in adapter.shapes.items() if shape.dense]
    if dense:
        config = adapter.checkpoint.config
        raise UnsupportedAdapterError(
            f"adapter {adapter.name!r} is of kind {config.peft_type}, whose update has no low rank "
            f"in {len(dense)} of its {len(adapter.shapes)} modules",
            where=Where(file=config.file, adapter=adapter.name, module=dense[0]),
            hint="put a use case with it into the base's weights with --merge, or accept the best "
            "low rank within an error with --approximate --max-error",
        )


def _routes(adapter: Adapter) -> bool:
    return any(shape.experts for shape in adapter.shapes.values())


def _routed(adapter: Adapter) -> Finding:
    return Finding(
        rule="adapter/routed-mean",
        severity=Severity.NOTE,
        message=f"the weights of the ranks of adapter {adapter.name!r} are, for each sequence, the "
        "mean over all tokens that are fed, padding included; PEFT's mean is over the whole batch",
        where=Where(file=adapter.checkpoint.tensors.path, adapter=adapter.name),
        hint="feed as many tokens as the adapter saw in training: padding, and tokens that are fed "
        "one at a time, change the mean",
    )


def _unused(name: str, config_file: Path | None) -> Finding:
    return Finding(
        rule="config/unused-adapter",
        severity=Severity.NOTE,
        message=f"adapter {name!r} is in no use case and was ignored",
        where=Where(file=config_file, adapter=name),
    )
