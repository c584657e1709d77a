"""What ONNX Runtime GenAI needs beside a graph to generate tokens with it.

    genai_config.json        with the name that the graph has in the pack
    tokenizer.json, ...      as they are

A base that lies in such a folder gives a pack whose target folder is one as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_quant.config.documents import dump_json, read_json
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.pack_folder import PackFolder

GENAI_CONFIG = "genai_config.json"
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_ROLE = "companion"


def write_companions(
    compilation: Compilation, folder: PackFolder, target: str, model: str
) -> tuple[Finding, ...]:
    """Write them if the base has a genai_config.json; `model` is the graph's name in the target.

    Raises ConfigError for one that is not JSON, PackError if a file cannot be written.
    """
    base = compilation.base.path
    source = base.parent / GENAI_CONFIG
    if not source.is_file():
        return ()
    if compilation.options.beside_base:
        return (_left_out(source, "the graph was written beside the base, as another file there"),)
    config = read_json(source)
    named = _decoder(config).get("filename")
    if named != base.name:
        return (_left_out(source, f"it names the graph {named!r}, and the base is {base.name!r}"),)
    path = f"{target}/{GENAI_CONFIG}"
    if named == model:
        folder.copy(path, _ROLE, source)
    else:
        _decoder(config)["filename"] = model
        folder.write_text(path, _ROLE, dump_json(config))
    for name in COMPANIONS:
        if (base.parent / name).is_file():
            folder.copy(f"{target}/{name}", _ROLE, base.parent / name)
    return ()


def _decoder(config: Any) -> dict[str, Any]:
    """The part of the configuration that names the graph; empty if there is none."""
    for level in ("model", "decoder"):
        config = config.get(level) if isinstance(config, dict) else None
    return config if isinstance(config, dict) else {}


def _left_out(source: Path, reason: str) -> Finding:
    return Finding(
        rule="onnxruntime/companions",
        severity=Severity.NOTE,
        message=f"the target's folder is no model folder of ONNX Runtime GenAI: {reason}",
        where=Where(file=source),
        hint="copy genai_config.json and the tokenizer beside the graph, with the graph's name in "
        "model.decoder.filename",
    )
