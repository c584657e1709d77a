"""The other modules of the same adapter, for kinds whose modules share what is made from a seed."""

from __future__ import annotations

from collections.abc import Sequence

from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.key_table import read_keys
from lora_quant.errors import AdapterError, Where


def adapted_modules(source: TensorSource, parameters: Sequence[str]) -> tuple[str, ...]:
    """All modules of a file that have any of these parameters, sorted by name."""
    return tuple(read_keys(source, parameters).modules)


def largest_sizes(base: BaseModules, modules: Sequence[str]) -> tuple[int, int]:
    """The largest in and the largest out of these modules, each on its own."""
    sizes = [base.sizes(module) for module in modules]
    return max(s.in_features for s in sizes), max(s.out_features for s in sizes)


def in_model_order(
    base: BaseModules, modules: Sequence[str], source: TensorSource
) -> tuple[str, ...]:
    """These modules in the order in which the model defines them.

    Raises AdapterError for a module that the base's order does not have.
    """
    wanted = set(modules)
    ordered = tuple(module for module in base.order() if module in wanted)
    missing = sorted(wanted.difference(ordered))
    if missing:
        raise AdapterError(
            f"the order of the base's modules does not have {missing[0]!r}, and "
            f"{len(missing)} of {len(wanted)} adapted modules are missing from it",
            where=Where(file=source.path, module=missing[0]),
            hint="the kind numbers its modules in the order of the model: name the base that the "
            "adapter was trained on, with the names of its modules",
        )
    return ordered
