"""An adapter checkpoint on disk: its configuration and its tensors' headers, found and opened.

path/                          a PEFT folder
path/adapter_config.json       its configuration, the weights beside it
path/adapter_model.safetensors its weights (any name), the configuration beside them
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_quant.adapters.peft_config import CONFIG_FILE, PeftConfig, read_peft_config
from lora_quant.adapters.safetensors_file import SafetensorsFile
from lora_quant.errors import (
    AdapterError,
    InputMissingError,
    UnsupportedAdapterError,
    Where,
    did_you_mean,
)

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt"})


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One adapter's files. Nothing is held open and no tensor has been read."""

    config: PeftConfig
    tensors: SafetensorsFile


def open_checkpoint(path: Path) -> Checkpoint:
    """Find and open the checkpoint that `path` names: a folder or either of its files.

    Reads the configuration and the header of the weights. Raises InputMissingError when a file is
    missing, UnsupportedAdapterError for pickled weights, AdapterError or ConfigError for damage.
    """
    if path.is_dir():
        config, weights = path / CONFIG_FILE, path / WEIGHTS_FILE
    elif not path.exists():
        raise _missing(path)
    elif path.suffix == ".json":
        config, weights = path, path.parent / WEIGHTS_FILE
    elif path.suffix == ".safetensors":
        config, weights = path.parent / CONFIG_FILE, path
    elif path.suffix in _PICKLES:
        raise _pickled(path)
    else:
        raise AdapterError(
            f"the file ends in {path.suffix!r}, expected a folder, a .safetensors file or "
            f"{CONFIG_FILE}",
            where=Where(file=path),
            hint="name the folder that the adapter was saved in",
        )
    if not config.exists():
        raise _no_config(config)
    if not weights.exists():
        raise _no_weights(weights)
    checkpoint = Checkpoint(read_peft_config(config), SafetensorsFile(weights))
    if not checkpoint.tensors.names:
        raise AdapterError(
            "the file holds no tensors",
            where=Where(file=weights),
            hint="save the adapter again; PEFT writes such a file for X-LoRA and for wrong names",
        )
    return checkpoint


def _missing(path: Path) -> InputMissingError:
    hint = "check the path; relative paths are relative to the file that names them"
    if path.parent.is_dir():
        hint = did_you_mean(path.name, (p.name for p in path.parent.iterdir()))
    return InputMissingError(
        "there is no such adapter folder or file", where=Where(file=path), hint=hint
    )


def _no_config(config: Path) -> InputMissingError:
    inner = sorted(p.parent.name for p in config.parent.glob(f"*/{CONFIG_FILE}"))
    if len(inner) == 1:
        hint = f"did you mean its sub-folder {inner[0]!r}?"
    elif inner:
        hint = f"it holds several adapters, name one: {', '.join(map(repr, inner))}"
    else:
        hint = "LoRA weights without it have no known scale; save the adapter with PEFT"
    return InputMissingError(
        f"the folder has no {CONFIG_FILE}", where=Where(file=config.parent), hint=hint
    )


def _no_weights(weights: Path) -> AdapterError | InputMissingError:
    folder = weights.parent
    pickles = sorted(p for p in folder.glob("adapter_model.*") if p.suffix in _PICKLES)
    if pickles:
        return _pickled(pickles[0])
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    hint = (
        f"if one of these is the adapter, name the file itself: {', '.join(others)}"
        if others
        else "save the adapter with PEFT's save_pretrained"
    )
    return InputMissingError(
        f"the folder has no {weights.name}", where=Where(file=folder), hint=hint
    )


def _pickled(path: Path) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        "the weights are a pickle, which can run code when it is read; it is not opened",
        where=Where(file=path),
        hint="load the adapter with PEFT and save it with save_pretrained(safe_serialization=True)",
    )
