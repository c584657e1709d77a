"""The table of fuzz targets: every reader that is given a file which somebody else wrote."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.checkpoint import open_checkpoint
from lora_quant.adapters.files.peft_config import read_peft_config
from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.adapters.formats.detect import open_weights
from lora_quant.adapters.formats.gguf_file import GgufFile
from lora_quant.adapters.formats.torch_pickle import interpret
from lora_quant.adapters.formats.torch_zip import TorchZipFile
from lora_quant.config import json_documents
from lora_quant.config.adapter_params import read_adapter_params
from lora_quant.config.attach_map import read_attach_map
from lora_quant.config.documents import parse_json, parse_yaml
from lora_quant.config.functions import load_use_case_config
from lora_quant.config.genie import read_genie_config, read_genie_lora
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.manifest import read_manifest
from lora_quant.config.output_files import read_importer_config, read_output_files
from lora_quant.config.run_config import read_run_config
from lora_quant.config.settings import read_settings
from lora_quant.encodings.files import parse_encodings
from lora_quant.errors import LoraQuantError
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.graph.files.model_file import load_model
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.records import TensorRecord
from lora_quant.lower import inspect_adapter
from lora_quant.passes.merging.updatable_lists import read_tensor_list
from lora_quant.runtime.feeds.input_files import read_inputs
from lora_quant.targets.files.onnx_adapter_writer import write_adapter
from lora_quant.validation.files.adapter_check import check_adapter
from lora_quant.validation.files.lora_config_check import check_lora_config_text
from lora_quant.validation.validate import validate_paths
from tests.adapters.formats import torch_bytes
from tests.fuzz import seeds
from tests.fuzz.bytes_mutator import mutate_bytes
from tests.fuzz.container_mutators import (
    mutate_npz,
    mutate_pickle,
    mutate_safetensors,
    mutate_torch_zip,
)
from tests.fuzz.message_mutator import mutate_message
from tests.fuzz.target import Mutate, Outcome, Target, put
from tests.fuzz.tree_mutator import parse_tree, tree_mutator
from tests.validation.packs import rehash

_JSON = (tree_mutator(lambda data: parse_tree(data.decode())), mutate_bytes)
_JSON_TREES = (_JSON[0], _JSON[0], _JSON[0], mutate_bytes)
_YAML = (tree_mutator(seeds.yaml_tree, yaml=True), mutate_bytes)
_YAML_TREES = (_YAML[0], _YAML[0], _YAML[0], mutate_bytes)
_GRAPH = (mutate_message, mutate_message, mutate_message, mutate_bytes)
_MOST_VALUES = 1 << 20


def _text(parse: Callable[[bytes], Any]) -> Callable[[bytes, Path], Outcome]:
    def run(data: bytes, folder: Path) -> Outcome:
        parse(data)
        return None

    return run


def _file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], Outcome]:
    def run(data: bytes, folder: Path) -> Outcome:
        read(put(data, folder, name))
        return None

    return run


def _checked(name: str, check: Callable[[Path], Outcome]) -> Callable[[bytes, Path], Outcome]:
    return lambda data, folder: check(put(data, folder, name))


class InternalError(Exception):
    """A check failed by itself; `validate` tells so, and goes on with the next file."""


def _validated(path: Path) -> Outcome:
    validation = validate_paths([path])
    for checked in validation.checked:
        if checked.traceback is not None:
            raise InternalError(checked.traceback)
    return validation.findings


def _all_tensors(source: Any) -> None:
    """Headers are believed only if the values behind them can be had."""
    for name in source.names:
        if source.info(name).size <= _MOST_VALUES:
            with contextlib.suppress(LoraQuantError):
                source.read(name)


def _graph_values(path: Path) -> None:
    model = load_model(path)
    for tensor in model.proto.graph.initializer:
        count = int(np.prod([float(n) for n in tensor.dims]))
        with contextlib.suppress(LoraQuantError):
            from lora_quant.errors import Where

            with stored_values(model, tensor, Where(file=path, tensor=tensor.name)) as read:
                read(0, min(count, _MOST_VALUES))


def _adapter_files(folder: Path) -> list[bytes]:
    tensors: dict[str, NDArray[Any]] = {
        "a": np.ones((2, 3), np.float32),
        "b.scale": np.ones((1,), np.float16),
        "b.zero": np.zeros((4,), np.uint8),
    }
    records = [TensorRecord(name, v.shape, v.dtype.name) for name, v in tensors.items()]
    sink = io.BytesIO()
    write_adapter(sink, records, tensors.items(), adapter_version=7, model_version=9)
    return [sink.getvalue()]


def _input_files(folder: Path) -> list[bytes]:
    ids, x = np.zeros((1, 3), np.int64), np.ones((2,), np.float32)
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, input_ids=ids, x=x)
    np.savez_compressed(packed, input_ids=ids, x=x)
    return [plain.getvalue(), packed.getvalue()]


def _safetensors(folder: Path) -> list[bytes]:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    plain = seeds.FIXTURES / "kinds" / "lora_plain" / "adapter_model.safetensors"
    own = struct.pack("<Q", len(text)) + text + bytes(32)
    return [own, *seeds.fixed(plain)(folder)] if plain.exists() else [own]


def _checkpoint(name: str) -> Callable[[bytes, Path], Outcome]:
    """A PEFT folder of which one file is damaged."""

    def run(data: bytes, folder: Path) -> Outcome:
        put(data, folder, name)
        checkpoint = open_checkpoint(folder)
        _all_tensors(checkpoint.tensors)
        return inspect_adapter(folder).findings

    return run


def _beside_weights(folder: Path) -> list[bytes]:
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    arrays = {
        f"{module}.lora_A.weight": np.ones((2, 8), np.float32),
        f"{module}.lora_B.weight": np.ones((8, 2), np.float32),
    }
    torch_bytes.write(folder / "adapter_model.bin", arrays)
    return list(seeds.checkpoint_config(folder))


def _beside_config(folder: Path) -> list[bytes]:
    found = seeds.FIXTURES / "kinds" / "lora_dora_bias"
    put((found / "adapter_config.json").read_bytes(), folder, "adapter_config.json")
    return [(found / "adapter_model.safetensors").read_bytes()]


_ENDINGS = (
    "json",
    "yaml",
    "encodings",
    "onnx_adapter",
    "txt",
    "safetensors",
    "bin",
    "onnx",
    "gguf",
    "toml",
    "dat",
    "lora_config.txt",
)


def _mixed(folder: Path) -> list[bytes]:
    """Files of all kinds; the first byte chooses the ending of the name."""
    values: list[Any] = [seeds.LORA_CONFIG, seeds.ADAPTER, seeds.MAPPING, seeds.IMPORTER]
    values += [seeds.OUTPUTS, seeds.RUN, seeds.GENIE, seeds.GENIE_CONFIG, seeds.REPORT]
    found = [json.dumps(value).encode() for value in values]
    found += [b"graph;sections/tone.bin\n", b"tensor_a\ntensor_b\n"]
    found += [*seeds.torch_files(folder), *_adapter_files(folder), *_safetensors(folder)]
    found += [*seeds.graphs(folder), *seeds.gguf_files(folder), *_ENCODINGS["1.0.0"](folder)]
    return [bytes([number % len(_ENDINGS)]) + data for number, data in enumerate(found)]


def _validate_any(data: bytes, folder: Path) -> Outcome:
    ending = _ENDINGS[data[0] % len(_ENDINGS)] if data else "json"
    inside = folder / "any"
    inside.mkdir(exist_ok=True)
    path = put(data[1:], inside, f"file.{ending}")
    try:
        return _validated(path if len(data) % 2 else inside)
    finally:
        path.unlink()


def _pack_seeds(target: str, ending: str) -> Callable[[Path], list[bytes]]:
    def read(folder: Path) -> list[bytes]:
        pack = seeds.tiny_pack(folder, target)
        return [_pack_file(pack, ending).read_bytes()]

    return read


def _pack_file(pack: Path, ending: str) -> Path:
    return next(path for path in sorted(pack.rglob("*")) if path.as_posix().endswith(ending))


def _pack(target: str, ending: str) -> Callable[[bytes, Path], Outcome]:
    """A pack of which one file is damaged; the manifest is made to fit every other time."""

    def run(data: bytes, folder: Path) -> Outcome:
        pack = seeds.tiny_pack(folder, target)
        path = _pack_file(pack, ending)
        sound, manifest = path.read_bytes(), (pack / "pack.json").read_bytes()
        try:
            path.write_bytes(data)
            if path.name != "pack.json" and len(data) % 2:
                rehash(pack)
            return _validated(pack)
        finally:
            path.write_bytes(sound)
            (pack / "pack.json").write_bytes(manifest)

    return run


def _project(name: str, how: tuple[Mutate, ...]) -> Target:
    """A folder that a build could read, with one file damaged; all of it is validated."""

    def read(folder: Path) -> list[bytes]:
        return [(seeds.tiny_project(folder) / name).read_bytes()]

    def run(data: bytes, folder: Path) -> Outcome:
        project = seeds.tiny_project(folder)
        sound = (project / name).read_bytes()
        put(data, project, name)
        try:
            return _validated(project)
        finally:
            (project / name).write_bytes(sound)

    return Target(f"validate-folder-{name.rsplit('/')[-1]}", read, run, how, weight=0.05)


def _packs(target: str, mutators: dict[str, tuple[Mutate, ...]]) -> list[Target]:
    return [
        Target(
            f"validate-{target}-{ending.rsplit('/')[-1]}",
            _pack_seeds(target, ending),
            _pack(target, ending),
            how,
            weight=0.02,
        )
        for ending, how in mutators.items()
    ]


def _encodings(version: str) -> Callable[[Path], list[bytes]]:
    folder = seeds.FIXTURES / "aimet" / "kinds"
    found = sorted(folder.glob(f"*v{version}.encodings"))
    small = [path for path in found if path.stat().st_size < 24_000]
    return lambda _: [path.read_bytes() for path in small]


_SETTINGS = b"""
base = "model.onnx"
[tool.lora-quant.validate]
select = ["pack", "schema"]
ignore = []
fail-on = "warning"
jobs = 2
[validate]
exclude = ["out/**"]
"""
_ENCODINGS = {version: _encodings(version) for version in ("0.6.1", "1.0.0", "2.0.0")}
_FRAGMENT = {
    "a.lora_A.weight": {
        "bw": 8,
        "dtype": "INT",
        "enc_type": "PER_TENSOR",
        "is_sym": True,
        "offset": [-128.0],
        "scale": [0.01],
    }
}


_LIST = (
    Target("yaml", seeds.documents(seeds.LORA_CONFIG), _text(parse_yaml), _YAML, 6),
    Target(
        "json", seeds.documents(seeds.GENIE_CONFIG, seeds.LORA_CONFIG), _text(parse_json), _JSON, 6
    ),
    Target(
        "json-located",
        seeds.documents(seeds.GENIE_CONFIG),
        _text(lambda data: json_documents.parse_located(data, source=None)),
        _JSON,
        4,
    ),
    Target(
        "lora-config",
        seeds.documents(seeds.LORA_CONFIG),
        _file("lora_config.yaml", read_lora_config),
        _YAML_TREES,
        3,
    ),
    Target(
        "adapter-params",
        seeds.documents(seeds.ADAPTER),
        _file("tone.json", read_adapter_params),
        _JSON_TREES,
        3,
    ),
    Target(
        "mapping",
        seeds.documents(seeds.MAPPING),
        _file("mapping.json", read_attach_map),
        _JSON_TREES,
        3,
    ),
    Target(
        "importer-config",
        seeds.documents(seeds.IMPORTER),
        _file("lora_importer_config.yaml", read_importer_config),
        _YAML_TREES,
        2,
    ),
    Target(
        "use-case-config",
        seeds.documents(seeds.IMPORTER),
        _file("importer.yaml", load_use_case_config),
        _YAML_TREES,
        2,
    ),
    Target(
        "output-files",
        seeds.documents(seeds.OUTPUTS),
        _file("lora_output_files.yaml", read_output_files),
        _YAML_TREES,
        2,
    ),
    Target(
        "run-config",
        seeds.documents(seeds.RUN),
        _file("run.yaml", read_run_config),
        _YAML_TREES,
        2,
    ),
    Target(
        "manifest",
        _pack_seeds("qairt", "pack.json"),
        _file("pack.json", read_manifest),
        _JSON_TREES,
        0.5,
    ),
    Target(
        "report", seeds.documents(seeds.REPORT), _checked("report.json", _validated), _JSON_TREES, 1
    ),
    Target(
        "genie-lora",
        seeds.documents(seeds.GENIE),
        _file("genie.json", read_genie_lora),
        _JSON_TREES,
        2,
    ),
    Target(
        "genie-config",
        seeds.documents(seeds.GENIE_CONFIG),
        _file("genie.json", read_genie_config),
        _JSON_TREES,
        2,
    ),
    Target(
        "qnn-text",
        lambda _: [b"graph;sections/tone.bin\n", "\ufeffg;/data/\u00e9 x.bin\r\n".encode()],
        _checked("lora_config.txt", check_lora_config_text),
        (mutate_bytes,),
        3,
    ),
    Target(
        "tensor-list",
        lambda _: [b"a\nb\n\n/model/c_output_0\n"],
        _file("list.txt", read_tensor_list),
        (mutate_bytes,),
        3,
    ),
    *(
        Target(f"encodings-{version}", read, _text(parse_encodings), _JSON_TREES, 0.5)
        for version, read in _ENCODINGS.items()
    ),
    Target(
        "encodings-fragment", seeds.documents(_FRAGMENT), _text(parse_encodings), _JSON_TREES, 3
    ),
    Target(
        "settings",
        lambda _: [_SETTINGS, _SETTINGS.replace(b"tool.lora-quant.", b"tool.other.")],
        _file("pyproject.toml", read_settings),
        (mutate_bytes,),
        2,
    ),
    Target(
        "peft-config",
        seeds.checkpoint_config,
        _file("adapter_config.json", read_peft_config),
        _JSON_TREES,
        2,
    ),
    Target(
        "peft-folder-config",
        _beside_weights,
        _checkpoint("adapter_config.json"),
        _JSON_TREES,
        0.5,
    ),
    Target(
        "peft-folder-weights",
        _beside_config,
        _checkpoint("adapter_model.safetensors"),
        (mutate_safetensors, mutate_safetensors, mutate_bytes),
        0.5,
    ),
    Target(
        "safetensors",
        _safetensors,
        _file("a.safetensors", lambda path: _all_tensors(SafetensorsFile(path))),
        (mutate_safetensors, mutate_bytes),
        2,
    ),
    Target(
        "inputs-npz",
        _input_files,
        _file("x.npz", read_inputs),
        (mutate_npz, mutate_bytes),
        1,
    ),
    Target(
        "torch-zip",
        seeds.torch_files,
        _file("a.bin", lambda path: _all_tensors(TorchZipFile(path))),
        (mutate_torch_zip, mutate_bytes),
        1,
    ),
    Target(
        "torch-pickle",
        seeds.pickles,
        _text(lambda data: interpret(data, Path("archive/data.pkl"))),
        (mutate_pickle, mutate_bytes),
        5,
    ),
    Target(
        "gguf",
        seeds.gguf_files,
        _file("a.gguf", lambda path: _all_tensors(GgufFile(path))),
        (mutate_bytes,),
        1,
    ),
    Target(
        "weights",
        lambda folder: [*_safetensors(folder), *seeds.torch_files(folder)],
        _file("weights", lambda path: _all_tensors(open_weights(path))),
        (mutate_bytes,),
        1,
    ),
    Target(
        "onnx-adapter",
        _adapter_files,
        _checked("a.onnx_adapter", check_adapter),
        (mutate_bytes,),
        3,
    ),
    Target("graph", seeds.graphs, _file("model.onnx", _graph_values), _GRAPH, 2),
    Target("graph-checker", seeds.graphs, _file("model.onnx", check_model_file), _GRAPH, 0.5),
    Target("validate-file", _mixed, _validate_any, (mutate_bytes,), 0.5),
    *_packs(
        "qairt",
        {
            "pack.json": _JSON_TREES,
            "tone/lora_weights.safetensors": (mutate_safetensors, mutate_bytes),
            "lora_tensor_names.txt": (mutate_bytes,),
            "lora_importer_config.yaml": _YAML_TREES,
            "model.onnx": _GRAPH,
        },
    ),
    _project("lora_config.yaml", _YAML_TREES),
    _project("mapping.json", _JSON_TREES),
    _project("tone.encodings", _JSON_TREES),
    _project("tone.txt", (mutate_bytes,)),
    _project("tone/adapter_config.json", _JSON_TREES),
    _project("tone/adapter_model.bin", (mutate_torch_zip, mutate_bytes)),
    _project("model.onnx", _GRAPH),
    *_packs("onnxruntime", {"pack.json": _JSON_TREES, ".onnx_adapter": (mutate_bytes,)}),
)

TARGETS = {target.name: target for target in _LIST}
