"""Folders as other tools leave them, made of the tiny Llama sample."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from lora_quant.config.lora_config import LoraConfig, read_lora_config
from tests.sample import SAMPLE

EXPORTED = ("model", "use_case_graphs", "adapter_params", "encodings", "quant_updatable")
PEFT = ("model", "adapters", "encodings", "quant_updatable")


def copied(folder: Path, parts: Iterable[str]) -> Path:
    """A folder with some parts of the sample."""
    folder.mkdir(parents=True)
    for part in parts:
        source = SAMPLE / part
        if source.is_dir():
            shutil.copytree(source, folder / part)
        else:
            shutil.copy(source, folder / part)
    return folder


def read(text: str, folder: Path) -> LoraConfig:
    """The configuration of a text, as if it lay in `folder`."""
    path = folder / "read_back.yaml"
    path.write_text(text, encoding="utf-8")
    config = read_lora_config(path)
    path.unlink()
    return config


def facts(config: LoraConfig, folder: Path) -> dict[str, object]:
    """What a configuration says, whatever the order of its use cases and adapters."""

    def shown(path: Path | None) -> str | None:
        return None if path is None else path.resolve().relative_to(folder.resolve()).as_posix()

    return {
        "adapters": {
            a.name: {shown(Path(str(source))) for source in a.adapter_lora_config}
            for a in config.adapter
        },
        "mapping": shown(config.attach_point_onnx_mapping),
        "use cases": {
            u.name: (
                tuple(u.adapter_names),
                tuple(u.adapter_alphas),
                shown(u.model),
                shown(u.encodings),
                shown(u.quant_updatable_tensors),
            )
            for u in config.use_cases
        },
    }
