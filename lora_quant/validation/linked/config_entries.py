"""The parts of a `lora_config.yaml`: the paths that it names, and what findings are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.plain_values import PathParts
from lora_quant.errors import Where
from lora_quant.findings import Finding
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.linked.entries import Entries, Entry


def config_entries(config: LoraConfig, document: OpenedDocument) -> Entries:
    """`config` is what was read from `document`, its paths resolved.

    A list of updatable tensors may be missing, and an adapter that no use case names is ignored:
    neither is an entry.
    """
    return Entries(document, tuple(_entries(config, document)))


def _entries(config: LoraConfig, document: OpenedDocument) -> Iterator[Entry]:
    unused = config.unused_adapters()
    for index, adapter in enumerate(config.adapter):
        given = document.value["adapter"][index]["lora_config"]
        for number, source in enumerate(adapter.adapter_lora_config):
            if adapter.name in unused or isinstance(source, AdapterParamsConfig):
                continue
            at: PathParts = ("adapter", index, "lora_config")
            if isinstance(given, list):
                at = (*at, number)
            what = f"a file of adapter {adapter.name!r}"
            yield Entry(at, Path(source), what, adapter=adapter.name, folder=True)
    if config.attach_point_onnx_mapping is not None:
        yield Entry(
            ("attach_point_onnx_mapping",),
            config.attach_point_onnx_mapping,
            "the attach point mapping",
        )
    for index, use_case in enumerate(config.use_cases):
        name = use_case.name
        at = ("use-case", index)
        yield Entry((*at, "model_name"), use_case.model, f"the graph of {name!r}", name)
        if use_case.encodings is not None:
            yield Entry(
                (*at, "quant_overrides"), use_case.encodings, f"the encodings of {name!r}", name
            )


def placed(finding: Finding, config: LoraConfig, entries: Entries) -> Finding:
    """What a pass says of no file stands at the part of the configuration that it is about.

    So does what it says of the configuration without a line.
    """
    where, shown = finding.where, entries.document.shown
    if where.file is not None and (where.file != shown or where.line is not None):
        return finding
    place = entries.at(_part(config, where))
    return replace(
        finding,
        where=replace(
            where,
            file=shown,
            line=place.line,
            column=place.column,
            field=place.field or where.field,
        ),
    )


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """Activations without an encoding told once for each use case: one mistake made them all.

    A use case that was calibrated without its branches, or not at all, lacks three at each of them.
    """
    told: list[Finding] = []
    places: dict[str | None, int] = {}
    more: Counter[int] = Counter()
    for finding in findings:
        if finding.rule == "encodings/missing-activation":
            if finding.where.use_case in places:
                more[places[finding.where.use_case]] += 1
                continue
            places[finding.where.use_case] = len(told)
        told.append(finding)
    for place, count in more.items():
        message = f"{told[place].message}, and none for {count} more of this use case"
        told[place] = replace(told[place], message=message)
    return told


def _part(config: LoraConfig, where: Where) -> PathParts:
    """A strength, a use case, an adapter, or the whole configuration."""
    for index, use_case in enumerate(config.use_cases):
        if use_case.name != where.use_case:
            continue
        if where.adapter in use_case.adapter_names:
            number = use_case.adapter_names.index(where.adapter)
            return ("use-case", index, "adapter_alphas", number)
        return ("use-case", index, "name")
    for index, adapter in enumerate(config.adapter):
        if adapter.name == where.adapter and where.use_case is None:
            return ("adapter", index, "name")
    return ()
