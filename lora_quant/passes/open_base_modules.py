"""The base's modules for one adapter alone: of an ONNX graph, or of the model's own checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.files.base_checkpoint import BaseCheckpoint
from lora_quant.adapters.files.model_files import is_model_checkpoint, open_model_files
from lora_quant.config.attach_map import read_attach_map
from lora_quant.errors import ConfigError, InputMissingError, UnsupportedAdapterError, Where
from lora_quant.graph.attach.resolver import Resolver
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.base_modules import ModuleWeights
from lora_quant.passes.module_requests import module_request

_OTHER_SUFFIXES = (".bin", ".ckpt", ".gguf", ".json", ".pt", ".pth")


def open_base_modules(
    adapter: Adapter, path: Path, mapping_file: Path | None = None
) -> BaseModules:
    """The modules of `adapter` in the base at `path`.

    A folder, a .safetensors file or its index is a checkpoint, any other file an ONNX graph.
    `mapping_file` is an attach point mapping: it tells the nodes of modules in a graph, and with
    its order that of the model's definition. Raises InputMissingError or ConfigError if there is no
    such base, AttachPointError or AdapterError for a module that it does not have, and what reading
    the files raises.
    """
    if not path.exists():
        raise InputMissingError(
            "there is no such base model", where=Where(file=path), hint="check the path"
        )
    mapping = read_attach_map(mapping_file) if mapping_file else None
    if is_model_checkpoint(path):
        return _checkpoint(adapter, path, mapping)
    if path.suffix in _OTHER_SUFFIXES:
        raise ConfigError(
            f"the base model is a {path.suffix} file, expected ONNX or safetensors",
            where=Where(file=path),
            hint="save the model with save_pretrained(safe_serialization=True) and name its folder",
        )
    return _graph(adapter, path, mapping, mapping_file)


def _checkpoint(
    adapter: Adapter, path: Path, mapping: Mapping[str, list[str]] | None
) -> BaseModules:
    config = adapter.checkpoint.config
    if not config.is_neutral("layer_replication"):
        raise UnsupportedAdapterError(
            "the adapter numbers its layers as layer_replication repeats them, and a checkpoint "
            "has them once",
            where=config.where("layer_replication"),
            hint="name an ONNX graph that was exported from the replicated model",
        )
    return BaseCheckpoint(
        open_model_files(path),
        adapter.shapes,
        fan_in_fan_out=config.flag("fan_in_fan_out"),
        order=None if mapping is None else tuple(mapping),
    )


def _graph(
    adapter: Adapter,
    path: Path,
    mapping: Mapping[str, list[str]] | None,
    mapping_file: Path | None,
) -> BaseModules:
    graph = open_base(path)
    resolver = Resolver(
        graph.catalog,
        graph.index,
        graph_file=graph.path,
        mapping=mapping,
        mapping_file=mapping_file,
    )
    requests = [
        module_request(shape, adapter.name, low_rank=shape.rank > 0)
        for shape in adapter.shapes.values()
    ]
    resolution = resolver.resolve(requests)
    return ModuleWeights(
        graph,
        resolution,
        tuple(adapter.shapes),
        adapter=adapter.name,
        mapping=mapping,
        mapping_file=mapping_file,
    )
