"""A `lora_config.yaml` for what other tools left in a folder.

files by content  ->  base  ->  adapters  ->  use cases with their mixes  ->  encodings and lists
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lora_quant.config.lora_config import AdapterConfig, LoraConfig, UseCaseInputConfig
from lora_quant.configure.draft import Drafted
from lora_quant.configure.found.found_files import FoundFiles, StatedUseCase
from lora_quant.configure.found.sorted_files import sort_files
from lora_quant.configure.found.statements import stated_use_cases
from lora_quant.configure.mixing.derived import derived_sources
from lora_quant.configure.mixing.sources import Sources, adapter_sources
from lora_quant.configure.mixing.use_cases import UseCase, use_cases_of
from lora_quant.configure.pairing.bases import ChosenBase, choose_base
from lora_quant.configure.pairing.claims import Claim, Given, give
from lora_quant.configure.pairing.fits import (
    Known,
    claim_by_modules,
    encodings_claim,
    list_claim,
    version_of,
)
from lora_quant.configure.pairing.graph_names import name_graphs
from lora_quant.configure.pairing.mapping_file import ChosenMapping, choose_mapping
from lora_quant.configure.trial import Trial, try_build
from lora_quant.configure.written_config import Notes
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Progress, no_progress
from lora_quant.passes.exported.descriptions import Described

_Knowledge = tuple[dict[str, Known], dict[str, list[Described] | None], tuple[str, Known]]
"""Names by use case; the adapters of those whose branches are in no graph; and the base."""


def convert_folder(
    folder: Path,
    *,
    base: Path | None = None,
    output: Path | None = None,
    check: bool = True,
    progress: Progress = no_progress,
) -> Drafted:
    """The configuration for the files below `folder`, every decision, and what stays open.

    `base` is the base graph where the folder has several; what is in `output` is going to be
    replaced and does not count. Without a base or an adapter in a use
    case there is no configuration. With `check`, what would stop a build is a finding that is an
    error. Raises InputMissingError for a folder that cannot be read, ConfigError for a `base` that
    is none.
    """
    files = sort_files(folder, progress, ignored=output)
    chosen = choose_base(files, base)
    findings = [*files.findings, *chosen.findings]
    if chosen.graph is None:
        return Drafted(None, findings=(*findings, *_nothing_else(files)))
    sources = adapter_sources(files)
    stated = stated_use_cases(files)
    named = name_graphs(files, chosen.graph, stated)
    if not sources.adapters and named.names:
        sources = derived_sources(files, named.names)
    found = use_cases_of(files, chosen.graph, named, sources.adapters, stated)
    findings += [*sources.findings, *named.findings, *found.findings]
    used = {name for use_case in found.use_cases for name in use_case.adapters}
    if not used:
        return Drafted(None, findings=(*findings, _no_adapters(files, sources)))
    knowledge = _knowledge(found.use_cases, sources)
    encodings = _encodings(files, knowledge, stated)
    lists = _lists(files, knowledge, stated)
    mapping = choose_mapping(files, chosen.graph)
    findings += [*encodings.findings, *lists.findings, *mapping.findings]
    config = _config(sources, found.use_cases, encodings, lists, mapping)
    trial = try_build(config, progress) if check else Trial()
    return Drafted(
        config,
        _notes(found.use_cases),
        (*findings, *trial.findings),
        tuple(_decisions(files, chosen, sources, found.use_cases, encodings, lists, mapping)),
        trial.options,
    )


def _encodings(
    files: FoundFiles, knowledge: _Knowledge, stated: Mapping[str, StatedUseCase]
) -> Given:
    known, described, base = knowledge
    claims = [
        replace(
            claim_by_modules(f.path, f.names, f.channels, base, described), version=version_of(f)
        )
        if described
        else encodings_claim(f, known)
        for f in files.encodings
    ]
    said = {n: s.encodings for n, s in stated.items() if s.encodings is not None}
    return give("encodings", claims, list(known), said, files.folder)


def _lists(files: FoundFiles, knowledge: _Knowledge, stated: Mapping[str, StatedUseCase]) -> Given:
    known, described, base = knowledge
    claims: list[Claim] = []
    for one in files.lists:
        if described:
            claim = claim_by_modules(one.path, one.names, {}, base, described)
            claims.append(
                Claim(claim.path, tuple(n for n in claim.fits if n != base[0]), claim.proof)
            )
        else:
            claims.append(list_claim(one, known))
    said = {n: s.updatable for n, s in stated.items() if s.updatable is not None}
    return give("lists of tensors", claims, list(known), said, files.folder)


def _knowledge(use_cases: tuple[UseCase, ...], sources: Sources) -> _Knowledge:
    base = next(u for u in use_cases if not u.adapters)
    assert base.known is not None, "the base is a graph"
    known = {u.name: u.known or base.known for u in use_cases}
    described = {u.name: sources.described(u.adapters) for u in use_cases if u.known is None}
    return known, described, (base.name, base.known)


def _config(
    sources: Sources,
    use_cases: tuple[UseCase, ...],
    encodings: Given,
    lists: Given,
    mapping: ChosenMapping,
) -> LoraConfig:
    used = {name for use_case in use_cases for name in use_case.adapters}
    return LoraConfig(
        adapter=[
            AdapterConfig(name=name, adapter_lora_config=list(source.entries))
            for name, source in sources.adapters.items()
            if name in used
        ],
        attach_point_onnx_mapping=mapping.path,
        use_cases=[
            UseCaseInputConfig(
                name=one.name,
                adapter_names=list(one.adapters),
                adapter_alphas=list(one.strengths),
                model=one.model,
                encodings=encodings.files.get(one.name),
                quant_updatable_tensors=lists.files.get(one.name),
            )
            for one in use_cases
        ],
    )


def _notes(use_cases: tuple[UseCase, ...]) -> Notes:
    return Notes(use_cases={u.name: u.notes for u in use_cases if u.notes})


def _decisions(
    files: FoundFiles,
    base: ChosenBase,
    sources: Sources,
    use_cases: tuple[UseCase, ...],
    encodings: Given,
    lists: Given,
    mapping: ChosenMapping,
) -> Iterator[tuple[str, str]]:
    assert base.graph is not None, "there are decisions only about a base"
    yield "base", f"{files.shown(base.graph.path)} ({base.reason})"
    if mapping.path is not None:
        yield "attach points", f"{files.shown(mapping.path)} ({mapping.reason})"
    for name, source in sources.adapters.items():
        paths = ", ".join(files.shown(path) for path in source.paths)
        yield f"adapter {name}", f"{paths} ({source.text})" if paths else source.text
    for one in use_cases:
        mix = " + ".join(
            f"{strength:g} {name}"
            for strength, name in zip(one.strengths, one.adapters, strict=True)
        )
        parts = [f"graph {files.shown(one.model)}"]
        if mix:
            parts.append(f"{mix} ({one.reason})")
        for what, given in (("encodings", encodings), ("list", lists)):
            if one.name in given.files:
                shown = files.shown(given.files[one.name])
                parts.append(f"{what} {shown} ({given.reasons[one.name]})")
        yield f"use case {one.name}", ", ".join(parts)


def _nothing_else(files: FoundFiles) -> Iterator[Finding]:
    """What an empty or foreign folder was searched for."""
    if files.graphs or files.encodings or files.adapters or files.params or files.findings:
        return
    yield Finding(
        "convert/nothing",
        Severity.ERROR,
        "the folder holds nothing that a configuration could be made of",
        Where(file=files.folder),
        "looked for ONNX graphs, AIMET encodings, PEFT folders, adapter JSON, lists of tensors, "
        "attach point mappings and configurations",
    )


def _no_adapters(files: FoundFiles, sources: Sources) -> Finding:
    there = "no adapter that a use case could have" if sources.adapters else "no adapter"
    return Finding(
        "convert/no-adapters",
        Severity.ERROR,
        f"there is {there} in the folder",
        Where(file=files.folder),
        "put PEFT folders of the adapters in it, or adapter JSON beside the graphs with branches",
    )
