"""Pass: take use cases that come as graphs of their own apart, into adapters and base.

graph of a use case  ->  its branches  ->  ranks of adapters  ->  a checkpoint per adapter
       `- without them, the same graph as the base

A configuration in which all use cases name the base graph has nothing to take apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lora_quant.config.use_case_graphs import with_own_graphs
from lora_quant.errors import ConfigError, Where
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.contract import Condition, PassResult


@dataclass(frozen=True)
class ReadExported:
    """One graph of a use case is open at a time."""

    name: ClassVar[str] = "read-exported"
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def run(self, compilation: Compilation) -> PassResult:
        """Raises GraphError for a graph that differs from the base, and what is not decided."""
        own = with_own_graphs(compilation.config, compilation.base.path)
        if compilation.exported is not None or not own:
            return PassResult(compilation, changed=False)
        raise ConfigError(
            f"use case {own[0].name!r} has a graph of its own",
            where=Where(file=compilation.config_file, use_case=own[0].name),
        )
