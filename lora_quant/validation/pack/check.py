"""A whole pack against its manifest: files, weights, graph, encodings, lists and configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.config.manifest_records import TargetRecord
from lora_quant.config.plain_values import PathParts
from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import Where
from lora_quant.findings import Finding
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.documents.entry_places import Places, entry_places
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.kinds import Kind
from lora_quant.validation.pack.adapters import check_adapter, check_adapter_files
from lora_quant.validation.pack.context import check_context
from lora_quant.validation.pack.device_configs import check_device_configs
from lora_quant.validation.pack.encodings import PackEncodings
from lora_quant.validation.pack.files import check_files
from lora_quant.validation.pack.fixed_tensors import FixedTensors
from lora_quant.validation.pack.for_devices import check_pack_for_devices
from lora_quant.validation.pack.graph import check_graph
from lora_quant.validation.pack.lists import check_tensor_names, check_updatable, listed_names
from lora_quant.validation.pack.overridable import Default, check_recorded
from lora_quant.validation.pack.prompts import check_prompt_files
from lora_quant.validation.pack.records import check_merged_files, check_records
from lora_quant.validation.pack.use_cases import check_use_case_config, check_use_case_files
from lora_quant.validation.pack.view import PackView
from lora_quant.validation.pack.weights import check_weights
from lora_quant.validation.rule import ALL_LEVELS, Level

_CONFIGS = {"importer-config": Kind.IMPORTER_CONFIG, "output-files": Kind.OUTPUT_FILES}


def check_pack(
    root: Path,
    *,
    shown: Path | None = None,
    locate: Callable[[str], Path] | None = None,
    depth: Depth = Depth.FULL,
    levels: frozenset[Level] = ALL_LEVELS,
) -> tuple[Finding, ...]:
    """Everything that is wrong with the pack in the folder `root`; bad content never raises.

    `locate` tells where a file of the manifest lies (by default below `root`), and `shown` is the
    folder that findings name. Without a sound manifest nothing else is looked at. levels: of the
    encodings against the graph and of device rules, those that are wanted; `Depth.QUICK` leaves
    out both.
    """
    manifest = check_document(
        root / MANIFEST_FILE,
        shown=(shown or root) / MANIFEST_FILE,
        kind=Kind.MANIFEST,
        depth=depth,
    )
    if manifest.content is None:
        return manifest.findings
    wanted = levels if depth is Depth.FULL else frozenset()
    view, findings = check_files(
        PackView(
            manifest=manifest.content,
            root=root,
            shown=shown or root,
            locate=locate or root.joinpath,
            depth=depth,
            inside=None if manifest.document is None else _places(manifest.document),
        )
    )
    return (
        *manifest.findings,
        *findings,
        *check_records(view),
        *(f for target in view.manifest.targets for f in _check_target(view, target, wanted)),
        *(check_pack_for_devices(view) if Level.DEVICE in wanted else ()),
    )


def _places(document: OpenedDocument) -> Callable[[PathParts], Where]:
    """Where parts of the manifest are in its text, which is scanned when one is asked for."""
    made = cache(document.places)
    return lambda part: made()(part)


def _check_target(
    view: PackView, target: TargetRecord, wanted: frozenset[Level]
) -> Iterator[Finding]:
    yield from check_use_case_files(view, target)
    yield from check_merged_files(view, target)
    yield from check_prompt_files(view, target)
    yield from check_recorded(view, target)
    yield from check_adapter_files(view, target)
    names_files = list(view.files(target, "lora-tensor-names"))
    waiting = {
        PurePosixPath(file.path).name: view.locate(file.path).name
        for file in view.files(target, "graph-data")
        if view.waits(file)
    }
    defaults: Mapping[str, Default] | None = None
    for file in view.files(target, "graph"):
        graph = check_graph(view, target, file, waiting, weights_are_initializers=bool(names_files))
        yield from graph.findings
        defaults = graph.defaults
    for file in view.files(target, "context"):
        yield from check_context(view, target, file)
    for file in view.files(target, "adapter"):
        yield from check_adapter(view, target, file, defaults)
    for file in names_files:
        yield from check_tensor_names(view, file)
    for role, kind in _CONFIGS.items():
        for file in view.files(target, role):
            checked = check_document(
                view.locate(file.path), shown=view.show(file.path), kind=kind, depth=view.depth
            )
            yield from checked.findings
            if checked.content is not None and checked.document is not None:
                yield from check_use_case_config(view, target, file, checked.document)
    encodings = PackEncodings(view, target, wanted)
    fixed = FixedTensors(view, target)
    for file in view.files(target, "base-encodings"):
        path = view.locate(file.path)
        checked = check_document(path, shown=view.show(file.path), depth=view.depth)
        yield from checked.findings
        yield from encodings.take(file, checked)
        if checked.content is not None and Level.CROSS_FILE in wanted:
            fixed.base = checked.content.encodings
    yield from check_device_configs(view, target)
    for use_case in view.manifest.use_cases:
        yield from _check_use_case(view, target, use_case.name, encodings, fixed)


def _check_use_case(
    view: PackView,
    target: TargetRecord,
    name: str,
    encodings: PackEncodings,
    fixed: FixedTensors,
) -> Iterator[Finding]:
    """One use case at a time, so that the encodings of only one are in memory."""
    for file in view.files(target, "weights"):
        if file.use_case == name and file.path.endswith(".safetensors"):
            yield from check_weights(view, file)
    encoded = None
    own: tuple[Mapping[str, Encoding], Places] | None = None
    for file in view.files(target, "quant-overrides"):
        if file.use_case == name:
            path = view.locate(file.path)
            checked = check_document(path, shown=view.show(file.path), depth=view.depth)
            yield from checked.findings
            yield from encodings.take(file, checked)
            if checked.content is not None:
                encoded = checked.content.encodings
            if encoded is not None and checked.document is not None:
                own = encoded, entry_places(checked.document)
    for file in view.files(target, "quant-updatable-tensors"):
        if file.use_case == name:
            yield from check_updatable(view, file, encoded)
            if view.depth is Depth.FULL:
                yield from fixed.take(file, listed_names(view, file), own)
