"""Building a pack from Python: what the command line calls, and what a compiler pipeline calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.builder import LoraBuilderInputConfig, LoraBuilderOutputConfig
from lora_quant.config.lora_config import LoraConfig, read_lora_config
from lora_quant.config.manifest import Manifest, read_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.config.output_files import read_importer_config
from lora_quant.config.use_case_graphs import base_model
from lora_quant.errors import PackError, Where
from lora_quant.findings import Finding
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.compilation import Compilation, Progress, no_progress
from lora_quant.passes.contract import Pass
from lora_quant.passes.runner import FINAL_PIPELINE, PIPELINE, default_passes, run_passes
from lora_quant.targets.files.output_transaction import OutputTransaction
from lora_quant.targets.files.pack_folder import MANIFEST, PackFolder


@dataclass(frozen=True, eq=False)
class BuildResult:
    """A finished build: where the pack is, its manifest, and what was noticed."""

    output: Path
    manifest: Manifest
    findings: tuple[Finding, ...]


def build(
    config: LoraConfig | Path | str,
    output: Path | str,
    options: BuildOptions | None = None,
    *,
    passes: Sequence[Pass] | None = None,
    progress: Progress = no_progress,
) -> BuildResult:
    """Compile `config` (a LoraConfig, or the path of its YAML file) into the folder `output`.

    `passes` replaces the default pipelines of lora_quant.passes.runner. The output appears whole or
    not at all; any LoraQuantError leaves what was there before.
    """
    options = options or BuildOptions()
    output = Path(os.path.normpath(output))  # what a .. leaves behind need not exist
    if isinstance(config, LoraConfig):
        config_file, parsed = None, config
    else:
        config_file = Path(config)
        parsed = read_lora_config(config_file)
    base_path = base_model(parsed, config_file)
    if options.merge is not None:
        parsed = parsed.alone(options.merge, config_file)
    with OutputTransaction(output, force=options.force) as folder:
        state = _compile(parsed, config_file, base_path, options, folder, passes, progress)
    return BuildResult(output, read_manifest(output / MANIFEST), state.findings)


def build_lora_graph(
    config: LoraBuilderInputConfig, output_dir: Path | str
) -> LoraBuilderOutputConfig:
    """Compile for the `qairt` target with default options; the counterpart of `lora-quant build`.

    Raises LoraQuantError; `output_dir` must not hold a pack yet.
    """
    folder = Path(output_dir)
    if (folder / MANIFEST).exists():
        raise PackError(
            "the output folder already holds a pack",
            where=Where(file=folder),
            hint="choose another output_dir, or call lora_quant.build with "
            "BuildOptions(force=True) to replace it",
        )
    options = BuildOptions(
        create_lora_graph=config.create_lora_graph,
        mode=config.quant_updatable_mode,
        alpha_name=config.alpha_tensor_name,
    )
    source = config.lora_config_path
    result = build(config.lora_config() if source is None else source, folder, options)
    paths = {f.role: folder / f.path for f in result.manifest.files("qairt") if f.use_case is None}
    return LoraBuilderOutputConfig(
        use_case=read_importer_config(paths["importer-config"]).use_case,
        base_encodings=paths.get("base-encodings"),
        lora_tensor_names=paths["lora-tensor-names"],
        importer_config=paths["importer-config"],
        pack=folder / MANIFEST,
    )


def _compile(
    config: LoraConfig,
    config_file: Path | None,
    base_path: Path,
    options: BuildOptions,
    folder: PackFolder,
    passes: Sequence[Pass] | None,
    progress: Progress,
) -> Compilation:
    start = Compilation(
        config=config,
        options=options,
        base=open_base(base_path),
        staging=folder,
        config_file=config_file,
        progress=progress,
    )
    if passes is None:
        passes = default_passes(PIPELINE if options.create_lora_graph else FINAL_PIPELINE)
    return run_passes(start, passes, check_conditions=options.check_stages)
