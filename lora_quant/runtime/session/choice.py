"""What a run of a session takes: a use case, with strengths of its own or as compiled, or none."""

from __future__ import annotations

from enum import Enum

from lora_quant.config.run_config import UseCaseRunConfig


class Base(Enum):
    """The one value is BASE: the graph without any adapter."""

    BASE = "base"


BASE = Base.BASE

Choice = UseCaseRunConfig | str | Base
"""A use case with strengths, one as compiled by its name, or none."""
