"""Running passes in order, checking their conditions in between. The order lives here."""

from __future__ import annotations

from collections.abc import Sequence

from lora_quant import plugins
from lora_quant.errors import PluginError
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.contract import Pass

PIPELINE = (
    "read-exported",
    "lower-adapters",
    "resolve-attach-points",
    "lower-with-base",
    "allocate-slots",
    "build-branches",
    "select-updatable",
    "merge-encodings",
    "emit-packs",
    "validate-packs",
)
"""A base graph, or one graph per use case: branches of a common max rank are built."""

FINAL_PIPELINE = (
    "choose-weights",
    "lower-adapters",
    "resolve-attach-points",
    "lower-with-base",
    "adopt-branches",
    "select-updatable",
    "merge-encodings",
    "emit-packs",
    "validate-packs",
)
"""A graph that is final: its branches are found, and use cases bring values for them."""


def default_passes(names: Sequence[str] = PIPELINE) -> list[Pass]:
    """The named passes with their default options, through the plugin door."""
    return [plugins.make(plugins.PASSES, name) for name in names]


def run_passes(
    compilation: Compilation, passes: Sequence[Pass], *, check_conditions: bool = True
) -> Compilation:
    """Run `passes` one after the other and return the last state.

    A condition that does not hold names the pass that relied on it, or that broke its promise:
    PluginError, since only a wrong order or a wrong pass can cause it.
    """
    for number, step in enumerate(passes):
        compilation.progress(step.name, number, len(passes))
        if check_conditions:
            _check(step, compilation, "requires")
        compilation = step.run(compilation).compilation
        if check_conditions:
            _check(step, compilation, "ensures")
    compilation.progress("done", len(passes), len(passes))
    return compilation


def _check(step: Pass, compilation: Compilation, side: str) -> None:
    order = "PIPELINE" if compilation.options.create_lora_graph else "FINAL_PIPELINE"
    for condition in getattr(step, side):
        wrong = condition.broken(compilation)
        if wrong is not None:
            raise PluginError(
                f"pass {step.name!r} {side} {condition.name!r}, which does not hold: {wrong}",
                hint=f"run the passes in the order of lora_quant.passes.runner.{order}"
                if side == "requires"
                else "the pass is defective",
            )
