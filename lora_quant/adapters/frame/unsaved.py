"""Whether a file may leave its random matrices out, to have them made again from a seed."""

from __future__ import annotations

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.errors import AdapterError


def expect_seeded(config: PeftConfig, field: str, missing: str) -> None:
    """AdapterError unless `field` is false: PEFT's default is that the matrices are in the file."""
    if config.flag(field, True):
        raise AdapterError(
            f"{field} is true, but the file has no {missing}",
            where=config.where(field),
            hint="the checkpoint is incomplete: save it again, or set the field to false if its "
            "matrices are to be made from the seed",
        )
