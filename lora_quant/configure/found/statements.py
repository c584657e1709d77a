"""Configurations of any spelling, read as what they say of use cases and adapters.

lora_config.yaml               use-case: [...]   or, older, use_case: [...]; YAML or JSON
lora_importer_config.yaml      use_case: [{model_name, lora_weights | weights, quant_overrides}]
lora_output_files.yaml         use_case: [{graph, weights, encodings}]
lora_adaptor_list.yaml         [{name, encodings_path, safetensor_path}]

Only what is a file that is there counts: such files are copied from machine to machine, and their
paths go stale. They are believed where the content of the files decides nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from lora_quant.configure.found.found_files import FoundFiles, FoundStatements, StatedUseCase
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity

_LISTS = ("use-case", "use_case", "use_cases", "usecases")
_MODEL = ("model_name", "model", "onnx_model", "graph")
_ENCODINGS = ("quant_overrides", "encodings", "encodings_path", "quantization_overrides")
_UPDATABLE = ("quant_updatable_tensors", "updatable_tensors")
_WEIGHTS = ("lora_weights", "weights", "safetensor_path", "safetensors_path")
_SOURCES = ("lora_config", "adapter_lora_config", "path")
_MAPPING = ("attach_point_onnx_mapping", "attach_point_mapping")


def read_statements(path: Path, value: Any) -> tuple[FoundStatements | None, tuple[Finding, ...]]:
    """What the document at `path` states, None if it is no such document; and its stale paths."""
    if isinstance(value, list):
        items, document = value, {}
        if not all(isinstance(i, Mapping) and "name" in i and _first(i, _WEIGHTS) for i in items):
            return None, ()
    elif isinstance(value, Mapping):
        document = dict(value)
        items = _first(document, _LISTS)
        if not isinstance(items, list):
            return None, ()
    else:
        return None, ()
    stale: list[str] = []
    reader = _Reader(path.parent, stale)
    use_cases = tuple(reader.use_cases(items))
    adapters = dict(reader.adapters(document.get("adapter")))
    mapping = reader.file(document, _MAPPING)
    if not use_cases:
        return None, ()
    findings: tuple[Finding, ...] = ()
    if stale:
        findings = (
            Finding(
                "convert/stale-path",
                Severity.NOTE,
                f"the file names {len(stale)} paths that are not there, such as {stale[0]!r}",
                Where(file=path),
            ),
        )
    return FoundStatements(path, use_cases, adapters, mapping), findings


def stated_use_cases(files: FoundFiles) -> dict[str, StatedUseCase]:
    """What configurations state of each use case; later files add what earlier leave open."""
    stated: dict[str, StatedUseCase] = {}
    for statements in files.statements:
        for one in statements.use_cases:
            before = stated.get(one.name)
            stated[one.name] = one if before is None else _joined(before, one)
    return stated


def _joined(one: StatedUseCase, other: StatedUseCase) -> StatedUseCase:
    def first(name: str) -> object:
        value = getattr(one, name)
        return getattr(other, name) if value is None else value

    fields = ("model", "encodings", "updatable", "adapters", "alphas")
    return StatedUseCase(one.name, **{name: first(name) for name in fields})  # type: ignore[arg-type]


class _Reader:
    def __init__(self, folder: Path, stale: list[str]) -> None:
        self._folder = folder
        self._stale = stale

    def use_cases(self, items: list[Any]) -> Iterator[StatedUseCase]:
        for item in items:
            if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
                continue
            yield StatedUseCase(
                name=item["name"],
                model=self.file(item, _MODEL, note=False),
                encodings=self.file(item, _ENCODINGS),
                updatable=self.file(item, _UPDATABLE),
                adapters=_texts(item.get("adapter_names")),
                alphas=_numbers(item.get("adapter_alphas")),
            )

    def adapters(self, items: Any) -> Iterator[tuple[str, tuple[Path, ...]]]:
        for item in items if isinstance(items, list) else ():
            if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
                continue
            given = _first(item, _SOURCES)
            sources = given if isinstance(given, list) else [given]
            found = [self._path(source, note=True) for source in sources]
            yield item["name"], tuple(path for path in found if path is not None)

    def file(
        self, item: Mapping[str, Any], keys: tuple[str, ...], *, note: bool = True
    ) -> Path | None:
        return self._path(_first(item, keys), note=note)

    def _path(self, given: Any, *, note: bool) -> Path | None:
        if not isinstance(given, str) or not given or "\0" in given:
            return None
        # Such files come from Windows as well.
        for text in (given, given.replace("\\", "/")):
            path = self._folder / text
            if path.exists():
                return path
        if note and Path(given).name != "null":
            self._stale.append(given)
        return None


def _first(item: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _texts(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        return None
    return tuple(value)


def _numbers(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, list):
        return None
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in value):
        return None
    return tuple(float(n) for n in value) if all(map(isfinite, value)) else None
