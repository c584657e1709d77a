"""The adapters of a pack, those that only graphs of use cases hold among them.

The graphs are taken apart as the build did it: they are inputs like any other, and have to be the
ones of the build.
"""

from __future__ import annotations

from pathlib import Path

from lora_quant import plugins
from lora_quant.adapters.adapter import Adapter, adapter_of
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.manifest_records import InputRecord
from lora_quant.config.options import BuildOptions
from lora_quant.config.real_path import real_path
from lora_quant.config.use_case_graphs import base_model
from lora_quant.errors import VerificationError, Where
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.exported.records import ExportedUseCases
from lora_quant.passes.read_exported import ReadExported
from lora_quant.runtime.verify.pack import Pack

_IN_GRAPHS = "onnx"
"""The format of an adapter that only graphs hold."""


def exported_use_cases(pack: Pack, base: Path) -> ExportedUseCases:
    """What the graphs of use cases tell; empty for a pack without such graphs, or a final one.

    Also for one that was built from an object: only a configuration file tells whose ranks they
    hold. `base` is where the base graph is now. Raises VerificationError if a file is not the one
    of the build, and what the build raises.
    """
    manifest, found = pack.manifest, pack.configuration
    graphs = graphs_of_use_cases(pack)
    if not graphs or found is None:
        return ExportedUseCases()
    for record in graphs:
        pack.use_case_graph(record)
    config, file = found
    if manifest.merged is not None:
        config = config.alone(manifest.merged, file)
    told = pack.map_from()
    start = Compilation(
        config=_with_base(config, base_model(found[0], file), base),
        options=BuildOptions(map_from=None if told is None else str(told)),
        base=open_base(base),
        config_file=file,
    )
    return ReadExported().run(start).compilation.exported or ExportedUseCases()


def graphs_of_use_cases(pack: Pack) -> tuple[InputRecord, ...]:
    """The graphs that use cases were exported as; none of a final graph's pack."""
    manifest = pack.manifest
    return () if manifest.given_graph else tuple(r for r in manifest.inputs if r.role == "graph")


def open_adapters(pack: Pack, exported: ExportedUseCases) -> dict[str, Adapter]:
    """Every adapter of the manifest, from its own files or from what graphs hold of it.

    Raises VerificationError for one that only graphs hold, if these could not be read.
    """
    rules = plugins.Instances(plugins.LOWERING_RULES)
    adapters = {}
    for record in pack.manifest.adapters:
        checkpoint = exported.checkpoints.get(record.name)
        if checkpoint is None and record.format == _IN_GRAPHS:
            raise VerificationError(
                f"only the graphs of use cases hold adapter {record.name!r}, and the pack does not "
                "tell the configuration that says which ranks are its own",
                where=Where(file=pack.folder, adapter=record.name),
                hint="build it from a configuration file, not from an object",
            )
        if checkpoint is None:
            adapters[record.name] = pack.adapter(record.name)
        else:
            pack.adapter_files(record.name)  # they are the ones of the build
            adapters[record.name] = adapter_of(record.name, checkpoint, rules)
    return adapters


def _with_base(config: LoraConfig, was: Path, base: Path) -> LoraConfig:
    """The configuration with the base where it is now."""
    use_cases = [
        u.model_copy(update={"model": base}) if real_path(u.model) == real_path(was) else u
        for u in config.use_cases
    ]
    return config.model_copy(update={"use_cases": use_cases})
