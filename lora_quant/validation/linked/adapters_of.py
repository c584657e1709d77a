"""The adapters of a configuration, each by itself: they open, and are what their JSON says.

lora_config: [tone.json, tone/]   ->  tone/ can be lowered; rank, alpha, target_modules of tone.json
                                      are those of its weights
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_quant import plugins
from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.adapters.contract import LoweringRule
from lora_quant.adapters.declared import DeclaredParams, check_declared
from lora_quant.adapters.lowered import Need
from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.config.lora_config import LoraConfig
from lora_quant.errors import AdapterError, LoraQuantError
from lora_quant.findings import Finding
from lora_quant.passes.adapter_sources import AdapterSources, read_sources
from lora_quant.validation.catalogue.config import ADAPTER, ADAPTER_PARAMS, NEEDS_OPTIONS
from lora_quant.validation.linked.entries import Entries, Entry


@dataclass
class OpenedAdapters:
    """Adapters that have weights of their own, by name, and what is wrong with the others."""

    opened: dict[str, Adapter] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def dense(self) -> list[Adapter]:
        """Those whose update has no low rank somewhere, which default options refuse."""
        return [a for a in self.opened.values() if any(s.dense for s in a.shapes.values())]


def open_adapters(
    config: LoraConfig, entries: Entries, missing: Collection[Path]
) -> OpenedAdapters:
    """Every adapter that a use case names; one with a `missing` file was reported already."""
    result = OpenedAdapters()
    rules = plugins.Instances(plugins.LOWERING_RULES)
    unused = config.unused_adapters()
    for adapter in config.adapter:
        own = entries.of_adapter(adapter.name)
        if adapter.name in unused or any(e.file in missing for e in own):
            continue
        try:
            sources = read_sources(adapter, entries.document.shown)
            if sources.checkpoint is None:
                continue  # a graph of a use case may hold its weights: a build knows
            opened = _load(sources, sources.checkpoint, rules)
        except LoraQuantError as error:
            result.findings.append(_finding(error, entries, own, adapter.name))
            continue
        result.opened[adapter.name] = opened
        result.findings += _contradictions(sources, opened, entries, own)
    result.findings += [_dense(one, entries) for one in result.dense]
    return result


def value_problems(opened: Mapping[str, Adapter], entries: Entries) -> Iterator[Finding]:
    """What only the values of an adapter tell, such as NaN; one module is in memory at a time."""
    for name, adapter in opened.items():
        error = _refusal_of_values(adapter)
        if error is not None:
            yield _finding(error, entries, entries.of_adapter(name), name)


def _refusal_of_values(adapter: Adapter) -> LoraQuantError | None:
    try:
        for module, shape in adapter.shapes.items():
            if shape.need is Need.NOTHING and not shape.dense:
                adapter.lower(module)
    except LoraQuantError as error:
        return error
    return None


def _load(sources: AdapterSources, path: Path, rules: Mapping[str, LoweringRule]) -> Adapter:
    return load_adapter(sources.name, path, rules, task=sources.entry.task_id)


def _finding(error: LoraQuantError, entries: Entries, own: list[Entry], name: str) -> Finding:
    entry = entries.naming(error.where) if error.where.file is not None else None
    entry = entry if entry in own else next(iter(own), None)
    if entry is None:  # an inline object
        return ADAPTER.finding(error.message, replace(error.where, adapter=name), error.hint)
    message, where = entries.told(error, entry)
    return ADAPTER.finding(message, replace(where, adapter=name), error.hint)


def _contradictions(
    sources: AdapterSources, adapter: Adapter, entries: Entries, own: list[Entry]
) -> Iterator[Finding]:
    """Each field of each adapter JSON by itself, so that all that is wrong is told."""
    for declared in sources.declared:
        for error in contradictions(declared.params, adapter):
            entry = next((e for e in own if e.file == declared.file), own[-1])
            message, where = entries.told(error, entry)
            yield ADAPTER_PARAMS.finding(message, replace(where, adapter=adapter.name), error.hint)


def contradictions(params: AdapterParamsConfig, adapter: Adapter) -> Iterator[AdapterError]:
    """Why rank, alpha and target modules of an adapter JSON are not those of the weights."""
    for declared in _fields(params):
        error = _contradiction(declared, adapter)
        if error is not None:
            yield error


def _contradiction(declared: DeclaredParams, adapter: Adapter) -> AdapterError | None:
    try:
        check_declared(declared, adapter.checkpoint.config, adapter.shapes)
    except AdapterError as error:
        return error
    return None


def _fields(params: AdapterParamsConfig) -> tuple[DeclaredParams, ...]:
    name = params.name
    return (
        DeclaredParams(name, rank=params.rank),
        DeclaredParams(name, alpha=float(params.alpha)),
        DeclaredParams(name, target_modules=tuple(params.target_modules)),
    )


def _dense(adapter: Adapter, entries: Entries) -> Finding:
    config = adapter.checkpoint.config
    count = sum(1 for shape in adapter.shapes.values() if shape.dense)
    entry = entries.of_adapter(adapter.name)[0]
    return NEEDS_OPTIONS.finding(
        f"adapter {adapter.name!r} is of kind {config.peft_type}, whose update has no low rank in "
        f"{count} of its {len(adapter.shapes)} modules: a build needs --merge USE_CASE, or "
        "--approximate with --max-error",
        replace(entries.where(entry), adapter=adapter.name),
        "merge a use case with it into the base's weights, or accept the best low rank within an "
        "error; with other adapters, what else a build would say was not looked at",
    )
