"""Checkpoints that are written to a folder, for tensors of whole numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from tests.adapters.kinds.held import Array


def saved(folder: Path, kind: str, tensors: Mapping[str, Array], **fields: Any) -> Checkpoint:
    """A PEFT folder of that kind; tensors under their names in the file."""
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    made = {"peft_type": kind, "target_modules": ["q_proj"], **fields}
    (folder / "adapter_config.json").write_text(json.dumps(made), encoding="utf-8")
    return open_checkpoint(folder)
