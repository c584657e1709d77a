"""Options of a build as a plain dataclass: the command line and its help derive from the fields.

This module imports nothing heavy, so that `--help` stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lora_quant.errors import ConfigError, Where

Mode = Literal["none", "adapter_only", "all"]
AlphaLayout = Literal["slot", "rank"]
FixedConflict = Literal["error", "base"]
EncodingsVersion = Literal["0.6.1", "1.0.0", "2.0.0"]


@dataclass(frozen=True)
class BuildOptions:
    """How a pack is built, apart from what goes into it."""

    targets: tuple[str, ...] = field(
        default=("qairt",),
        metadata={"help": "Target to write packs for; may be given several times."},
    )
    mode: Mode = field(
        default="adapter_only",
        metadata={
            "help": "Which tensors may change their encoding between use cases: none (only "
            "weights switch), adapter_only (those of the branches), all (activations of the base "
            "too)."
        },
    )
    alpha_name: str = field(
        default="lora_alpha",
        metadata={"help": "Name of the graph input that carries the run-time strengths."},
    )
    alpha_layout: AlphaLayout = field(
        default="slot",
        metadata={
            "help": "Layout of that input: slot (one strength per adapter slot) or rank (one "
            "scale per rank position, expanded by the host)."
        },
    )
    beside_base: bool = field(
        default=False,
        metadata={
            "help": "Write the graph into the base's own folder and share its data file instead "
            "of copying it."
        },
    )
    strict_none: bool = field(
        default=False,
        metadata={
            "help": "With mode none, refuse use cases whose ranges differ instead of taking the "
            "union of the ranges."
        },
    )
    force: bool = field(
        default=False,
        metadata={"help": "Replace the output folder if it exists."},
    )
    weight_bits: int = field(
        default=8,
        metadata={"help": "Bit width of weight encodings that are computed here."},
    )
    activation_bits: int = field(
        default=16,
        metadata={"help": "Bit width of activation encodings that are computed here."},
    )
    rank_multiple: int = field(
        default=1,
        metadata={
            "help": "Start every slot, and end the max rank, at a multiple of this: the block size "
            "of blockwise LoRA weights."
        },
    )
    fixed_conflict: FixedConflict = field(
        default="error",
        metadata={
            "help": "What to do when a use case's encoding of a fixed tensor disagrees with the "
            "base's: error (refuse) or base (take the base's, with a finding)."
        },
    )
    encodings_version: EncodingsVersion | None = field(
        default=None,
        metadata={"help": "Version of the encodings files to write; by default the one given."},
    )
    check_stages: bool = field(
        default=True,
        metadata={"help": "Verify the state between the passes."},
    )

    def __post_init__(self) -> None:
        """Refuse values that no build can use; ConfigError names the field."""
        for name, low, high in (
            ("weight_bits", 2, 32),
            ("activation_bits", 4, 32),
            ("rank_multiple", 1, 65536),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"{name} is {value}, expected {low} to {high}", where=Where(field=name)
                )
        if not self.alpha_name.strip():
            raise ConfigError("alpha_name is empty", where=Where(field="alpha_name"))
        if not self.targets:
            raise ConfigError("no target is given", where=Where(field="targets"))
        if self.strict_none and self.mode != "none":
            raise ConfigError(
                f"strict_none is set with mode {self.mode!r}, expected mode 'none'",
                where=Where(field="strict_none"),
                hint="choose mode 'none', or leave strict_none out",
            )
