"""A pack's configurations for the device, filled in, beside the sections that they name.

    PACK/qairt/genie_lora.json               SECTIONS/genie_lora.json
    PACK/qairt/tone/qnn_lora_config.txt  ->  SECTIONS/<graph>_tone_lora_config.txt, one a graph

The pack stays as it is: its files are hashed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_quant.config.documents import dump_json, read_json
from lora_quant.config.genie import genie_blocks, read_genie_config
from lora_quant.config.manifest import read_manifest
from lora_quant.config.qnn_lora_config import SEPARATOR, QnnLoraConfig
from lora_quant.errors import ConfigError, PackError, Where
from lora_quant.targets.files.pack_folder import cannot_write
from lora_quant.targets.qairt.sections import SUFFIX, Sections, find_sections

_TEXT_SUFFIX = "_lora_config.txt"


@dataclass(frozen=True)
class FilledIn:
    """What was written, and the graphs in the order that bin-sections has them."""

    written: tuple[Path, ...]
    graphs: tuple[str, ...]


def fill_in(
    pack: Path, sections: Path, *, device_folder: str | None = None, force: bool = False
) -> FilledIn:
    """Write the filled-in copies into the folder `sections`.

    `device_folder` is where the sections will lie on the device; without it, the copies name them
    relative to their own folder. Raises ConfigError if the pack has nothing to fill in or names do
    not fit, InputMissingError for what is not there, PackError for what cannot be written.
    """
    source = _genie_file(pack)
    read_genie_config(source)
    document = read_json(source)
    blocks = [block for _, block in genie_blocks(document)]
    names = list(dict.fromkeys(a["name"] for block in blocks for a in block["adapters"]))
    found = find_sections(sections, names)
    for block in blocks:
        for adapter in block["adapters"]:
            own = found.files[adapter["name"]]
            adapter["bin-sections"] = [_on_device(own[g], device_folder) for g in found.graphs]
    texts = {source.name: dump_json(document), **_lines(found, device_folder)}
    written = tuple(sections / name for name in texts)
    _check_free(written, force=force)
    for path, text in zip(written, texts.values(), strict=True):
        _write(path, text)
    return FilledIn(written, found.graphs)


def _genie_file(pack: Path) -> Path:
    manifest = read_manifest(pack)
    for target in manifest.targets:
        for file in target.files:
            if file.role == "genie-lora":
                return pack / file.path
    raise ConfigError(
        "the pack has nothing to fill in: no configuration for Genie or the QNN provider",
        where=Where(file=pack),
        hint="it is written for the target qairt, if the graph has branches that switch",
    )


def _lines(found: Sections, device_folder: str | None) -> dict[str, str]:
    """File name -> content of the texts for the QNN provider, one for each section."""
    texts = {}
    for use_case, files in found.files.items():
        for graph in found.graphs:
            if SEPARATOR in graph or SEPARATOR in files[graph]:
                raise ConfigError(
                    f"the name {files[graph]!r} has a semicolon, which separates graph and path in "
                    "the file for the QNN provider",
                    where=Where(use_case=use_case),
                    hint="rename the use case or the graph",
                )
            entry = QnnLoraConfig(graph, _on_device(files[graph], device_folder))
            texts[files[graph].removesuffix(SUFFIX) + _TEXT_SUFFIX] = entry.dump()
    return texts


def _on_device(name: str, folder: str | None) -> str:
    return name if folder is None else str(PurePosixPath(folder, name))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_free(paths: tuple[Path, ...], *, force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise PackError(
                "the file exists",
                where=Where(file=path),
                hint="add --force to replace it, if it holds nothing of your own",
            )
