"""What the strengths at run time do not reach: everything of an adapter but its low rank.

    y = g * (W (h * x) + b) + B (s * (A x)) + c        alpha multiplies s only

g, h and c, parameters that are replaced and soft prompts are in the files of a use case as it
names them. A bias is the one of them that can have a strength; it is in c from the build on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lora_quant.adapters.adapter import Adapter
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Compilation

Part = Literal["g", "h", "c", "parameters", "prompt"]


def beyond_alpha(compilation: Compilation, adapter: Adapter) -> tuple[Part, ...]:
    """The parts of an adapter that stay as they are built; empty for plain low rank.

    Empty for a merged build as well, which has no strengths at run time.
    """
    if compilation.options.merge is not None:
        return ()
    vectors = frozenset().union(*(shape.vectors for shape in adapter.shapes.values()))
    there: Mapping[Part, bool] = {
        "g": "g" in vectors,
        "h": "h" in vectors,
        "c": "c" in vectors,
        "parameters": any(one.adapter == adapter.name for one in compilation.replacements),
        "prompt": adapter.description.prompt is not None,
    }
    return tuple(part for part, is_there in there.items() if is_there)


def fixed_biases(compilation: Compilation) -> tuple[Finding, ...]:
    """A note for every adapter that adds a bias."""
    return tuple(
        Finding(
            rule="slots/beyond-alpha",
            severity=Severity.NOTE,
            message=f"the trained bias of adapter {adapter.name!r} is in c at the strength of the "
            f"use case; {compilation.options.alpha_name} does not change it at run time",
            where=Where(file=adapter.checkpoint.tensors.path, adapter=adapter.name),
            hint="to switch it off, switch to a use case without the adapter",
        )
        for adapter in compilation.having("adapters").values()
        if "c" in beyond_alpha(compilation, adapter)
    )
