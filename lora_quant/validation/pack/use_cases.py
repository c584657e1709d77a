"""Use cases of a pack: each has its files, and the vendor's configuration files name just those."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from lora_quant.config.manifest_records import PackFile, TargetRecord
from lora_quant.config.plain_values import PathParts
from lora_quant.errors import did_you_mean, some
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.documents.relative_paths import normalised
from lora_quant.validation.pack.view import PackView

_REBUILD = "build the pack again"
_PER_USE_CASE = (
    "weights",
    "adapter",
    "quant-overrides",
    "quant-updatable-tensors",
    "qnn-lora-config",
)
_ROLES = {
    "model_name": "graph",
    "lora_weights": "weights",
    "weights": "weights",
    "quant_overrides": "quant-overrides",
    "encodings": "quant-overrides",
}
"""Key of a configuration file -> role of the file that it names."""


def check_use_case_files(view: PackView, target: TargetRecord) -> Iterator[Finding]:
    """A role that one use case has a file of, every use case has exactly one of."""
    names = [use_case.name for use_case in view.manifest.use_cases]
    for file in target.files:
        if file.use_case is not None and file.use_case not in names:
            yield view.error(
                "unknown-use-case",
                f"the file belongs to the use case {file.use_case!r}, which the manifest does not "
                "have",
                file.path,
                hint=did_you_mean(file.use_case, names),
                use_case=file.use_case,
            )
    for role in _PER_USE_CASE:
        owners = Counter(f.use_case for f in target.files if f.role == role)
        for name in names if owners else ():
            if owners[name] != 1:
                yield view.error(
                    "use-case-files",
                    f"the use case has {owners[name]} files of the role {role!r} for the "
                    f"target {target.name!r}, expected one",
                    "pack.json",
                    hint=_REBUILD,
                    use_case=name,
                )


def check_use_case_config(
    view: PackView, target: TargetRecord, file: PackFile, document: OpenedDocument
) -> Iterator[Finding]:
    """`lora_importer_config.yaml` or `lora_output_files.yaml` against the manifest."""
    places = document.places()
    items = document.value["use_case"]
    expected = [use_case.name for use_case in view.manifest.use_cases]
    given = [item["name"] for item in items]
    missing = [name for name in expected if name not in given]
    # One that is misspelt is reported where it stands, and is not missing.
    if len(missing) > len([name for name in given if name not in expected]):
        yield Finding(
            "pack/config-use-cases",
            Severity.ERROR,
            f"the file lacks use cases of the pack: {some(missing)}",
            places(("use_case",)),
            _REBUILD,
        )

    def error(rule: str, path: PathParts, message: str, hint: str) -> Finding:
        where = replace(places(path), use_case=items[path[1]]["name"])
        return Finding(f"pack/{rule}", Severity.ERROR, message, where, hint)

    files = {normalised(f.path): f for f in target.files}
    for index, item in enumerate(items):
        path: PathParts = ("use_case", index)
        if item["name"] not in expected:
            yield error(
                "config-use-cases",
                (*path, "name"),
                f"the use case {item['name']!r} is not one of the pack",
                did_you_mean(item["name"], expected),
            )
            continue
        for key, role in _ROLES.items():
            problem = _path_problem(file, item, key, role, files)
            if problem is not None:
                yield error("config-path", (*path, key), *problem)


def _path_problem(
    config: PackFile,
    item: Mapping[str, Any],
    key: str,
    role: str,
    files: Mapping[str, PackFile],
) -> tuple[str, str] | None:
    """What is wrong with one path of one use case, and what to do."""
    text = item.get(key)
    if text is None:
        own = [f for f in files.values() if f.role == role and f.use_case == item["name"]]
        if key in item and own:
            return f"expected {own[0].path!r}, got null", _REBUILD
        return None
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return f"the path {text!r} is absolute", "a pack holds relative paths, so that it can move"
    found = files.get(normalised(posixpath.join(posixpath.dirname(config.path), text)))
    if found is None:
        return f"the path {text!r} is not a file of the pack", _REBUILD
    if found.role != role:
        return f"expected a file of the role {role!r}, got {text!r} ({found.role})", _REBUILD
    if found.use_case not in (None, item["name"]):
        return (
            f"the use case {item['name']!r} gets the {role} of {found.use_case!r}: {text!r}",
            "its adapters would not be those of its name; " + _REBUILD,
        )
    return None
