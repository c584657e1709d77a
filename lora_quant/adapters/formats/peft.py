"""PEFT itself: names and fields are taken as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_quant.adapters.files.peft_config import CONFIG_FILE, read_peft_config
from lora_quant.adapters.formats.contract import Found, Reading
from lora_quant.errors import InputMissingError, Where


@dataclass(frozen=True)
class Peft:
    """Told by its configuration, whatever the tensors are called.

    A configuration that no other format knows is read as PEFT's, and refused without `peft_type`.
    """

    name: ClassVar[str] = "peft"
    signature: ClassVar[str] = f"peft_type in {CONFIG_FILE}"

    def claims(self, found: Found) -> bool:
        """See CheckpointFormat."""
        return found.config_file is not None

    def read(self, found: Found) -> Reading:
        """See CheckpointFormat."""
        if found.config_file is None:
            raise InputMissingError(
                f"the folder has no {CONFIG_FILE}",
                where=Where(file=found.tensors.path.parent),
                hint="save the adapter with PEFT",
            )
        return Reading(read_peft_config(found.config_file), found.tensors)
