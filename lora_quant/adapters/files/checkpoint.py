"""An adapter checkpoint on disk: its files found, its format told, all in PEFT's vocabulary.

path/                          a folder with weights under one of the names below, or under any
                               name if they are the only ones
path/adapter_config.json       a configuration, the weights beside it
path/any.safetensors           weights, with the configuration beside them if they need one

What a file is called says where to look; what it is, its bytes and the names in it say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lora_quant.adapters.files.peft_config import CONFIG_FILE, PeftConfig, read_peft_config
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.formats.contract import Found
from lora_quant.adapters.formats.detect import FORMATS, find_format, open_weights
from lora_quant.config.documents import read_json
from lora_quant.config.missing_path import spelling_hint
from lora_quant.errors import (
    AdapterError,
    InputMissingError,
    UnsupportedAdapterError,
    Where,
    did_you_mean,
    some,
)
from lora_quant.findings import Finding

WEIGHTS_FILE = "adapter_model.safetensors"
# one adapter saved twice: PEFT takes the first of these, and so does this
_PEFT_WEIGHTS = (WEIGHTS_FILE, "adapter_model.bin", "adapter_model.pt")
_OTHER_WEIGHTS = (
    "adapters.safetensors",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
_WEIGHT_SUFFIXES = frozenset({".bin", ".ckpt", ".gguf", ".pt", ".pth", ".safetensor"})
_WEIGHT_SUFFIXES |= {".safetensors"}
# what a training leaves beside the weights
_TRAINING_STATE = frozenset(
    {
        "optimizer.bin",
        "optimizer.pt",
        "rng_state.pth",
        "scaler.pt",
        "scheduler.bin",
        "scheduler.pt",
        "training_args.bin",
    }
)
_SHARD = re.compile(r"-\d+-of-\d+\.")
_MAX_CONFIG_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One adapter's files. Nothing is held open and no weight has been read.

    `tensors` has PEFT's names whatever the format was; `findings` are what reading it showed.
    """

    config: PeftConfig
    tensors: TensorSource
    format: str = "peft"
    findings: tuple[Finding, ...] = ()


def open_checkpoint(path: Path) -> Checkpoint:
    """Find and open the checkpoint that `path` names: a folder, a configuration or a weights file.

    Reads the configuration, the header of the weights and single numbers among them. Raises
    InputMissingError when a file is missing, UnsupportedAdapterError for what is refused by kind,
    AdapterError or ConfigError for damage.
    """
    weights = _find_weights(path)
    config = path if path.suffix == ".json" else weights.parent / CONFIG_FILE
    if not config.exists():
        found = Found(open_weights(weights))
    else:
        document = read_json(config, max_bytes=_MAX_CONFIG_BYTES)
        if not isinstance(document, dict):
            document = read_peft_config(config).fields
        found = Found(open_weights(weights), config, document)
    if not found.tensors.names:
        raise _empty(found)
    form = find_format(found)
    if form is None:
        raise _no_config(found)
    reading = form.read(found)
    return Checkpoint(reading.config, reading.tensors, form.name, reading.findings)


def config_without_weights(path: Path) -> Path | None:
    """The configuration at `path` (its file, or its folder) if no weights are beside it.

    None for anything else, also for what is not there; AdapterError if several adapters are.
    """
    config = path / CONFIG_FILE if path.is_dir() else path
    if config.suffix != ".json" or not config.is_file():
        return None
    try:
        _weights_in(config.parent, config)
    except InputMissingError:
        return config
    return None


def _find_weights(path: Path) -> Path:
    if not path.exists():
        raise _missing(path)
    if path.is_dir():
        return _weights_in(path, path / CONFIG_FILE)
    if path.suffix == ".json":
        return _weights_in(path.parent, path)
    return path


def _weights_in(folder: Path, config: Path) -> Path:
    inner = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}"))
    own = [folder / name for name in _PEFT_WEIGHTS if (folder / name).exists()]
    others = [folder / name for name in _OTHER_WEIGHTS if (folder / name).exists()]
    if len(own[:1] + others) > 1:
        raise AdapterError(
            "the folder holds several adapters: " + some([file.name for file in own[:1] + others]),
            where=Where(file=folder),
            hint="name the file that is meant",
        )
    if own or others:
        return (own or others)[0]
    listed = _weights_listed(folder)
    if len(listed) == 1 and _SHARD.search(listed[0]) is None and (config.exists() or not inner):
        return folder / listed[0]
    if not config.exists():
        raise _no_adapter(folder, inner, listed)
    raise InputMissingError(
        f"the folder has no {WEIGHTS_FILE}",
        where=Where(file=folder),
        hint=f"if one of these is the adapter, name the file itself: {', '.join(listed)}"
        if listed
        else "save the adapter with PEFT's save_pretrained; if graphs of use cases hold its "
        "weights, run `lora-quant convert-config` on their folder",
    )


def _weights_listed(folder: Path) -> list[str]:
    return sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix in _WEIGHT_SUFFIXES and p.name not in _TRAINING_STATE and p.is_file()
    )


def _missing(path: Path) -> InputMissingError:
    hint = "check the path; relative paths are relative to the file that names them"
    if path.parent.is_dir():
        hint = did_you_mean(path.name, (p.name for p in path.parent.iterdir()))
    return InputMissingError(
        "there is no such adapter folder or file",
        where=Where(file=path),
        hint=spelling_hint(path) or hint,
    )


def _no_adapter(folder: Path, inner: list[str], listed: list[str]) -> InputMissingError:
    if len(inner) == 1:
        hint = f"did you mean its sub-folder {inner[0]!r}?"
    elif inner:
        hint = f"it holds several adapters, name one: {', '.join(map(repr, inner))}"
    elif listed:
        hint = f"if one of these is the adapter, name the file itself: {', '.join(listed)}"
    else:
        hint = "save the adapter with PEFT's save_pretrained, or name its file"
    return InputMissingError(
        f"the folder has no {CONFIG_FILE} and no weights under a known name: looked for "
        f"{', '.join((*_PEFT_WEIGHTS, *_OTHER_WEIGHTS))}",
        where=Where(file=folder),
        hint=hint,
    )


def _empty(found: Found) -> AdapterError:
    where = Where(file=found.tensors.path)
    if found.document is not None and found.document.get("peft_type") == "XLORA":
        return UnsupportedAdapterError(
            "the file holds no tensors: PEFT does not save what X-LoRA mixes, nor how",
            where=where,
            hint="X-LoRA weighs its adapters anew for every token; use one of them, or a fixed mix "
            "of them as a use case",
        )
    return AdapterError(
        "the file holds no tensors",
        where=where,
        hint="save the adapter again; PEFT writes such a file for wrong names",
    )


def _no_config(found: Found) -> InputMissingError:
    return InputMissingError(
        f"the folder has no {CONFIG_FILE}, and the tensors are of no format that does without it: "
        + "; ".join(f"{form.name}: {form.signature}" for form in FORMATS),
        where=Where(file=found.tensors.path),
        hint="LoRA weights without a configuration have no known scale; save the adapter with PEFT",
    )
