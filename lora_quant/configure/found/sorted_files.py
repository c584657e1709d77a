"""Telling what every file of a folder is, by its content; one file is open at a time.

Graphs come first: they name their data files, and their names tell lists of tensors from other
texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from lora_quant import plugins
from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.files.checkpoint import config_without_weights
from lora_quant.adapters.files.peft_config import CONFIG_FILE
from lora_quant.adapters.formats.detect import open_weights
from lora_quant.config.adapter_params import read_adapter_params
from lora_quant.config.real_path import real_path
from lora_quant.configure.found.found_files import (
    FoundAdapter,
    FoundEncodings,
    FoundFiles,
    FoundGraph,
    FoundList,
    FoundParams,
    FoundStatements,
)
from lora_quant.configure.found.graph_facts import read_graph
from lora_quant.configure.found.statements import read_statements
from lora_quant.configure.found.walk import walk_folder
from lora_quant.encodings.files import encodings_of
from lora_quant.errors import InputMissingError, LoraQuantError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Progress, no_progress
from lora_quant.passes.merging.updatable_lists import read_tensor_list
from lora_quant.validation.documents.opened import is_binary, open_document
from lora_quant.validation.documents.recognise import recognise
from lora_quant.validation.files.adapter_check import is_adapter_file
from lora_quant.validation.kinds import ENCODINGS, Kind

T = TypeVar("T")

_DOCUMENTS: Final = frozenset({".json", ".yaml", ".yml", ".encodings"})
_WEIGHTS: Final = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt"})
_TEXTS: Final = frozenset({".txt", ".lst", ".list", ""})
_STATING: Final = frozenset({Kind.LORA_CONFIG, Kind.IMPORTER_CONFIG, Kind.OUTPUT_FILES})
_MAX_TEXT = 64 << 20
# Names that tell no adapter from another: then the folder around tells it.
_COMMON_NAMES: Final = frozenset({"adapter", "adapters", "adapter_model", "lora", "peft", "model"})
_REPACKED = "they were made for ONNX Runtime, transposed and with the scale inside"
_NO_SCALE = "they have no configuration beside them, and nothing else tells their scale"
_NO_SCALE_HINT = "put the PEFT folder that they are from in the folder"
_REPACKED_HINT = "put the PEFT folder that they were made from in the folder"


def sort_files(
    folder: Path, progress: Progress = no_progress, *, ignored: Path | None = None
) -> FoundFiles:
    """What the files below `folder` are; what cannot be read is a finding, and left out.

    `ignored` is a file that is going to be replaced: it says nothing.
    """
    walked = walk_folder(folder)
    reader = _Sorter(folder, walked.findings, progress)
    gone = None if ignored is None else real_path(ignored)
    reader.read(tuple(path for path in walked.files if real_path(path) != gone))
    return reader.found()


class _Sorter:
    def __init__(self, folder: Path, findings: tuple[Finding, ...], progress: Progress) -> None:
        self._folder = folder
        self._findings = list(findings)
        self._progress = progress
        self._rules = plugins.Instances(plugins.LOWERING_RULES)
        self._graphs: list[FoundGraph] = []
        self._encodings: list[FoundEncodings] = []
        self._lists: list[FoundList] = []
        self._params: list[FoundParams] = []
        self._adapters: list[FoundAdapter] = []
        self._mappings: list[Path] = []
        self._statements: list[FoundStatements] = []

    def found(self) -> FoundFiles:
        return FoundFiles(
            self._folder,
            tuple(self._graphs),
            tuple(self._encodings),
            tuple(self._lists),
            tuple(self._params),
            tuple(self._adapters),
            tuple(self._mappings),
            tuple(self._statements),
            tuple(self._findings),
        )

    def read(self, files: tuple[Path, ...]) -> None:
        graphs = [path for path in files if path.suffix.lower() == ".onnx"]
        for number, path in enumerate(graphs):
            self._progress(f"graph {path.name}", number, len(files))
            graph = self._tried(path, lambda path=path: read_graph(path))  # type: ignore[misc]
            if graph is not None:
                self._graphs.append(graph)
        data = {real_path(path) for graph in self._graphs for path in graph.data}
        left = [p for p in files if p.suffix.lower() != ".onnx" and real_path(p) not in data]
        peft = {path.parent for path in left if path.name == CONFIG_FILE}
        weights: dict[Path, list[Path]] = defaultdict(list)
        names = frozenset[str]().union(*(graph.names for graph in self._graphs))
        texts = []
        for number, path in enumerate(left, len(graphs)):
            self._progress(f"file {path.name}", number, len(files))
            suffix = path.suffix.lower()
            if path.parent in peft and (suffix in _WEIGHTS or path.name == CONFIG_FILE):
                continue
            if suffix == ".npz" or is_adapter_file(path):
                self._no_adapter(path, _REPACKED, _REPACKED_HINT)
            elif suffix in _WEIGHTS:
                weights[path.parent].append(path)
            elif suffix in _DOCUMENTS:
                self._document(path)
            elif suffix in _TEXTS:
                texts.append(path)
        for folder in sorted(peft):
            self._checkpoint(folder)
        for _, paths in sorted(weights.items()):
            for path in paths:
                self._loose_weights(path, alone=len(paths) == 1)
        names = names.union(*(found.names for found in self._encodings))
        for path in texts:
            self._text(path, names)

    def _document(self, path: Path) -> None:
        document = self._tried(path, lambda: open_document(path))
        if document is None:
            return
        value = document.value
        kind = recognise(value, path)
        if kind in ENCODINGS:
            found = self._tried(path, lambda: encodings_of(value, source=path))
            if found is not None:
                self._encodings.append(
                    FoundEncodings(
                        path,
                        found.version,
                        frozenset(found.encodings),
                        {
                            name: encoding.channels
                            for name, encoding in found.encodings.items()
                            if encoding.channels is not None
                        },
                    )
                )
        elif kind is Kind.ADAPTER_PARAMS:
            params = self._tried(path, lambda: read_adapter_params(path))
            if params is not None:
                self._params.append(FoundParams(path, params.name, params))
        elif kind is Kind.ATTACH_POINTS and not _is_name_record(value):
            self._mappings.append(path)
        elif kind in _STATING or isinstance(value, list) or _has_use_cases(value):
            stated, stale = read_statements(path, value)
            self._findings += stale
            if stated is not None:
                self._statements.append(stated)

    def _checkpoint(self, folder: Path) -> None:
        name = folder.name
        if name.lower() in _COMMON_NAMES or name.lower().startswith("checkpoint-"):
            name = folder.parent.name if folder != self._folder else real_path(folder).name
        found = self._tried(folder, lambda: self._opened(name, folder))
        if isinstance(found, FoundParams):
            self._params.append(found)
        elif found is not None:
            self._adapters.append(found)

    def _opened(self, name: str, folder: Path) -> FoundParams | FoundAdapter:
        if config_without_weights(folder) is not None:
            return FoundParams(folder / CONFIG_FILE, name, None)
        return FoundAdapter(folder, name, load_adapter(name, folder, self._rules))

    def _loose_weights(self, path: Path, *, alone: bool) -> None:
        """Weights without a configuration beside them: an adapter, a part of a pack, or neither."""
        name = path.stem
        if alone and name.lower() in _COMMON_NAMES and path.parent != self._folder:
            name = path.parent.name
        source = self._tried(path, lambda: open_weights(path))
        if source is None or not any("lora" in tensor.lower() for tensor in source.names):
            return  # weights of something else
        try:
            adapter = load_adapter(name, path, self._rules)
        except InputMissingError:
            self._no_adapter(path, _NO_SCALE, _NO_SCALE_HINT)
        except LoraQuantError as error:
            self._no_adapter(path, error.message, error.hint)
        else:
            self._adapters.append(FoundAdapter(path, name, adapter))

    def _text(self, path: Path, names: frozenset[str]) -> None:
        try:
            if path.stat().st_size > _MAX_TEXT or is_binary(path):
                return
            lines = frozenset(read_tensor_list(path))
        except (LoraQuantError, OSError):
            return  # a text of another kind
        if lines and 2 * len(lines & names) > len(lines):
            self._lists.append(FoundList(path, lines))

    def _no_adapter(self, path: Path, reason: str, hint: str | None) -> None:
        self._findings.append(
            Finding(
                "convert/no-adapter",
                Severity.WARNING,
                f"the weights cannot be read as an adapter: {reason}",
                Where(file=path),
                hint,
            )
        )

    def _tried(self, path: Path, read: Callable[[], T]) -> T | None:
        """What `read` gives; what it refuses is a finding that names the file."""
        try:
            return read()
        except LoraQuantError as error:
            where = replace(error.where, file=error.where.file or path)
            self._unreadable(error.message, where, error.hint)
        except OSError as error:
            self._unreadable(error.strerror or str(error), Where(file=path), "check it")
        return None

    def _unreadable(self, reason: str, where: Where, hint: str | None) -> None:
        self._findings.append(
            Finding(
                "convert/unreadable",
                Severity.WARNING,
                f"the file was left out: {reason}",
                where,
                hint,
            )
        )


def _is_name_record(value: Mapping[str, Any]) -> bool:
    """AIMET's lora_names.json has lists of tensor names under keys of its own."""
    return {"params", "activations"} <= set(value)


def _has_use_cases(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(value.get(key), list) for key in ("use_case", "use-case", "use_cases")
    )
