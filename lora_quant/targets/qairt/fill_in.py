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
from lora_quant.config.whole_files import write_files
from lora_quant.errors import ConfigError, Where
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
    if not names:
        raise _nothing_to_fill_in(source)
    found = find_sections(sections, names)
    for block in blocks:
        for adapter in block["adapters"]:
            own = found.files[adapter["name"]]
            adapter["bin-sections"] = [_on_device(own[g], device_folder) for g in found.graphs]
    lines = _lines(found, device_folder)
    texts = {source.name: dump_json(document), **lines}
    written = tuple(sections / name for name in texts)
    write_files(dict(zip(written, texts.values(), strict=True)), force=force)
    return FilledIn(written, found.graphs)


def _genie_file(pack: Path) -> Path:
    manifest = read_manifest(pack)
    for target in manifest.targets:
        for file in target.files:
            if file.role == "genie-lora":
                return pack / file.path
    raise _nothing_to_fill_in(pack)


def _nothing_to_fill_in(file: Path) -> ConfigError:
    return ConfigError(
        "the pack has nothing to fill in: no configuration for Genie or the QNN provider",
        where=Where(file=file),
        hint="it is written for the target qairt, if the graph has branches that switch",
    )


def _lines(found: Sections, device_folder: str | None) -> dict[str, str]:
    """File name -> content of the texts for the QNN provider, one for each section."""
    texts = {}
    for use_case, files in found.files.items():
        for graph in found.graphs:
            entry = QnnLoraConfig(graph, _on_device(files[graph], device_folder))
            for part in (entry.graph, entry.section):
                _check_in_line(part, use_case)
            texts[files[graph].removesuffix(SUFFIX) + _TEXT_SUFFIX] = entry.dump()
    return texts


def _on_device(name: str, folder: str | None) -> str:
    return name if folder is None else str(PurePosixPath(folder, name))


def _check_in_line(part: str, use_case: str) -> None:
    """A name or path of which every character can be in a line of text, and in Genie's JSON."""
    if SEPARATOR in part:
        problem = "has a semicolon, which separates graph and path in the file for the QNN provider"
    elif not part.isprintable():  # line ends, and bytes of a name that are no UTF-8 text
        problem = "has a character that cannot be in the file for the QNN provider"
    else:
        return
    raise ConfigError(
        f"the name {part!r} {problem}",
        where=Where(use_case=use_case),
        hint="rename the use case, the graph or the folder",
    )
