"""Every lowering rule of the package, found by walking its folder of kinds."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from typing import Any

from lora_quant.adapters import kinds
from lora_quant.adapters.contract import LoweringRule


def all_rules() -> dict[str, LoweringRule]:
    """Kind -> rule. A class that leaves `kind` to its subclasses is no rule."""
    found: dict[str, LoweringRule] = {}
    for entry in pkgutil.iter_modules(kinds.__path__, f"{kinds.__name__}."):
        module = import_module(entry.name)
        for _, member in inspect.getmembers(module, inspect.isclass):
            if member.__module__ == entry.name and "kind" in vars(member):
                rule: Any = member
                found[rule.kind] = rule()
    return found
