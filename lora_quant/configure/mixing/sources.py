"""The adapters of a folder by name: checkpoints, descriptions, and both of one adapter.

adapters/tone (PEFT), params/tone.json              ->  tone: [params/tone.json, adapters/tone]
style.json, style_o_proj.json, both of name style   ->  style: [style.json, style_o_proj.json]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_quant.adapters.declared import DeclaredParams, check_declared
from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.config.real_path import real_path
from lora_quant.configure.found.found_files import FoundAdapter, FoundFiles, FoundParams
from lora_quant.errors import AdapterError, LoraQuantError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.passes.adapter_sources import DeclaredEntry
from lora_quant.passes.exported.descriptions import DeclaredDescribed, Described, PeftDescribed
from lora_quant.passes.exported.factors import WeightsDescribed


@dataclass(frozen=True, eq=False)
class AdapterSource:
    """One adapter: its entries for `lora_config`, what they say, and what a person should know.

    `described` is None for an adapter whose effect no graph with branches can hold.
    """

    name: str
    entries: tuple[Path | AdapterParamsConfig, ...]
    has_weights: bool
    described: Described | None
    text: str

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those of the entries that are files."""
        return tuple(entry for entry in self.entries if isinstance(entry, Path))


@dataclass(frozen=True, eq=False)
class Sources:
    """All adapters by name, in the order of their names."""

    adapters: Mapping[str, AdapterSource] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def described(self, names: Iterable[str]) -> list[Described] | None:
        """What is known of some adapters; None if it is not known of each."""
        found = [self.adapters[name].described for name in names]
        known = [one for one in found if one is not None]
        return known if len(known) == len(found) else None


def adapter_sources(files: FoundFiles) -> Sources:
    """Bring together what the files say of each adapter; two checkpoints of one name stay open."""
    weights: dict[str, list[FoundAdapter]] = defaultdict(list)
    params: dict[str, list[FoundParams]] = defaultdict(list)
    for found in files.adapters:
        weights[found.name].append(found)
    for described in files.params:
        params[described.name].append(described)
    stated = {
        real_path(path): name
        for statements in files.statements
        for name, paths in statements.adapters.items()
        for path in paths
    }
    adapters: dict[str, AdapterSource] = {}
    findings: list[Finding] = []
    for name in sorted(weights.keys() | params.keys()):
        checkpoints = weights.get(name, [])
        if len(checkpoints) > 1:
            said = [c for c in checkpoints if stated.get(real_path(c.path)) == name]
            checkpoints = said if len(said) == 1 else checkpoints
        if len(checkpoints) > 1:
            findings.append(_several(name, checkpoints, files))
            continue
        try:
            source, noticed = _source(name, checkpoints, params.get(name, []), files)
        except LoraQuantError as error:
            findings.append(
                Finding(
                    "convert/unreadable",
                    Severity.WARNING,
                    f"adapter {name!r} was left out: {error.message}",
                    error.where,
                    error.hint,
                )
            )
            continue
        adapters[name] = source
        findings += noticed
    return Sources(adapters, tuple(findings))


def _source(
    name: str, checkpoints: list[FoundAdapter], params: list[FoundParams], files: FoundFiles
) -> tuple[AdapterSource, list[Finding]]:
    declared = [(p.path, p.params) for p in params if p.params is not None]
    configs = [p.path for p in params if p.params is None]
    if checkpoints:
        adapter = checkpoints[0].adapter
        kept, findings = [], []
        for path, one in declared:
            error = _contradiction(one, checkpoints[0])
            if error is None and len(declared) == 1:
                kept.append(path)
            else:
                findings.append(_left_out(path, name, error))
        kept.append(checkpoints[0].path)
        kind = adapter.checkpoint.config.peft_type
        text = f"{kind} with weights, rank {adapter.rank}, {len(adapter.shapes)} modules"
        return (
            AdapterSource(name, tuple(kept), True, _weights_described(checkpoints[0]), text),
            findings,
        )
    if (declared and configs) or len(configs) > 1:
        paths = [files.shown(path) for path, _ in declared] + [files.shown(p) for p in configs]
        raise AdapterError(
            f"several descriptions of it do not go together: {some(paths)}",
            where=Where(file=files.folder, adapter=name),
            hint="leave those that belong together in the folder",
        )
    if configs:
        return (
            AdapterSource(
                name,
                (configs[0],),
                False,
                PeftDescribed.read(name, configs[0]),
                "PEFT configuration, weights in the graphs",
            ),
            [],
        )
    # The one that says most generally where it acts comes first.
    declared.sort(key=lambda d: (max(t.count(".") for t in d[1].target_modules), d[0]))
    entries = tuple(DeclaredEntry(one, path) for path, one in declared)
    ranks = sorted({one.rank for _, one in declared})
    text = f"rank {' and '.join(map(str, ranks))}, weights in the graphs"
    described = DeclaredDescribed(name, entries, files.folder)
    return AdapterSource(name, tuple(path for path, _ in declared), False, described, text), []


def _weights_described(found: FoundAdapter) -> Described | None:
    try:
        return WeightsDescribed(found.adapter)
    except LoraQuantError:
        return None


def _contradiction(one: AdapterParamsConfig, found: FoundAdapter) -> LoraQuantError | None:
    declared = DeclaredParams(one.name, one.rank, float(one.alpha), tuple(one.target_modules))
    try:
        check_declared(declared, found.adapter.checkpoint.config, found.adapter.shapes)
    except LoraQuantError as error:
        return error
    return None


def _left_out(path: Path, name: str, error: LoraQuantError | None) -> Finding:
    reason = "it is one of several" if error is None else error.message
    return Finding(
        "convert/unused-file",
        Severity.NOTE,
        f"the description of adapter {name!r} was left out, its checkpoint says more: {reason}",
        Where(file=path, adapter=name),
    )


def _several(name: str, found: list[FoundAdapter], files: FoundFiles) -> Finding:
    shown = [files.shown(one.path) for one in found]
    return Finding(
        "convert/ambiguous",
        Severity.WARNING,
        f"several adapters are called {name!r}, and none was taken: {some(shown)}",
        Where(file=files.folder, adapter=name),
        "leave one of them in the folder, or rename a folder",
    )
