"""Every rule of validation, one file per area; `RULES` has them by id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lora_quant.validation.catalogue import device
from lora_quant.validation.rule import Rule

_AREAS = (device,)

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {rule.id: rule for area in _AREAS for rule in area.RULES}
)
