"""BD-LoRA and QA-LoRA: A or B is stored packed, and laid out whole for the branch.

BD-LoRA      one factor is block-diagonal and its blocks are stored below each other

    [b0]        [b0  0]
    [b1]   ->   [ 0 b1]

QA-LoRA      A sees the means of groups of n inputs, times the number of groups

    A [r, in / n]  ->  every column n times,  s -> s (in / n) / n
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import AdapterError


@dataclass(frozen=True)
class Packing:
    """How one module's factors are stored: numbers of blocks, inputs in a pooled group."""

    field: str = ""
    a_blocks: int = 1
    b_blocks: int = 1
    pooled: int = 1

    @property
    def is_packed(self) -> bool:
        """Whether anything is stored otherwise than plain LoRA."""
        return bool(self.field)

    def gain(self, inputs: int) -> float:
        """The factor of s that pooling brings, for a module with so many inputs."""
        return inputs / self.pooled**2 if self.pooled > 1 else 1.0


def packing_of(config: PeftConfig, module: str) -> Packing:
    """What `use_bdlora` and `use_qalora` say of one module.

    PEFT compares the entries of use_bdlora with any part of the module's name. Raises AdapterError
    for a module that is named twice or, unless match_strict is off, not at all.
    """
    if config.flag("use_qalora"):
        return Packing("use_qalora", pooled=config.positive("qalora_group_size", 16))
    if config.is_neutral("use_bdlora"):
        return Packing()
    settings = config.fields["use_bdlora"]
    if not isinstance(settings, Mapping):
        raise _wrong(config, f"use_bdlora is {settings!r}, expected an object")
    blocks = settings.get("nblocks", 1)
    if type(blocks) is not int or blocks < 1:
        raise _wrong(config, f"nblocks of use_bdlora is {blocks!r}, expected 1 or more")
    in_a, in_b = (
        any(entry in module for entry in _entries(config, settings, f"target_modules_bd_{side}"))
        for side in "ab"
    )
    if in_a and in_b:
        raise _wrong(config, f"use_bdlora names module {module!r} for A and for B, expected one")
    if not in_a and not in_b:
        if settings.get("match_strict", True) is not False:
            raise _wrong(config, f"use_bdlora names module {module!r} neither for A nor for B")
        return Packing()
    return Packing("use_bdlora", a_blocks=blocks if in_a else 1, b_blocks=blocks if in_b else 1)


def block_diagonal(packed: FloatArray, blocks: int) -> FloatArray:
    """`[rows, columns / blocks]` -> `[rows, columns]` with the blocks on the diagonal."""
    rows, width = packed.shape
    whole = np.zeros((rows, width * blocks), packed.dtype)
    height = rows // blocks
    for block in range(blocks):
        at = slice(block * height, (block + 1) * height)
        whole[at, block * width : (block + 1) * width] = packed[at]
    return whole


def unpooled(A: FloatArray, size: int) -> FloatArray:
    """`[r, in / size]` -> `[r, in]`: every input of a group has the group's column."""
    return np.repeat(A, size, axis=1)


def _entries(config: PeftConfig, settings: Mapping[str, object], field: str) -> list[str]:
    value = settings.get(field) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise _wrong(config, f"{field} of use_bdlora is {value!r}, expected a list of texts")
    return value


def _wrong(config: PeftConfig, message: str) -> AdapterError:
    return AdapterError(
        message,
        where=config.where("use_bdlora"),
        hint="the configuration is not the one that the weights were saved with",
    )
