"""Why an adapter cannot be written as plain LoRA, and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import UnsupportedAdapterError

_FLAT_PATHS = "kohya"
_OUT_PROJ = ".base_layer.out_proj."
_BUILD = "compile it onto a graph with lora-quant build, which takes it as it is"
_APPROXIMATE = "accept the best low rank within an error with --approximate --max-error"
_Test = Callable[[ModuleShape], bool]


@dataclass(frozen=True)
class Obstacle:
    """A reason, the way out, and the first module that it is about (None: the whole adapter)."""

    reason: str
    hint: str
    module: str | None = None


def find_obstacle(adapter: Adapter, *, approximate: bool = False) -> Obstacle | None:
    """The first thing that plain LoRA has no place for, from the headers alone.

    With `approximate`, scaled and dense updates of single weights are none.
    """
    whole = _of_the_whole(adapter)
    if whole is not None:
        return whole
    exact_biases = any(shape.vectors == {"c"} for shape in adapter.shapes.values())
    for reason, hint, test in _of_modules(exact_biases, approximate):
        found = _first(adapter, reason, hint, test)
        if found is not None:
            return found
    return None


def check_plain(adapter: Adapter, *, approximate: bool) -> None:
    """Raise UnsupportedAdapterError if there is an obstacle."""
    _raise(adapter, find_obstacle(adapter, approximate=approximate))


def check_bias(adapter: Adapter, has_bias: bool) -> None:
    """Raise UnsupportedAdapterError for an embedding if any module turned out to have a bias."""
    if has_bias:
        _raise(adapter, _first(adapter, *_BIASED_EMBEDDING, lambda s: s.is_embedding))


_BIASED_EMBEDDING = (
    "PEFT has no LoRA bias for an embedding, and other modules of the adapter have one",
    _BUILD,
)


def _of_the_whole(adapter: Adapter) -> Obstacle | None:
    if adapter.description.prompt is not None:
        return Obstacle("it is a soft prompt, and LoRA changes weights only", _BUILD)
    if not adapter.shapes:
        return Obstacle(
            "it replaces parameters and adapts no module, which PEFT's LoRA needs", _BUILD
        )
    if adapter.checkpoint.format == _FLAT_PATHS:
        return Obstacle(
            "its names are paths with underscores for dots, and PEFT needs the paths",
            "convert it with diffusers, or compile it onto a graph with lora-quant build",
        )
    return None


def _of_modules(exact_biases: bool, approximate: bool) -> Iterator[tuple[str, str, _Test]]:
    """Reason, way out, and which modules it is about."""
    yield "its strength is gated per token (aLoRA)", _BUILD, lambda s: s.gated
    yield "a router weighs its ranks per token", _BUILD, lambda s: s.experts > 0
    yield (
        "it adapts parameters (target_parameters), which LoRA of modules does not",
        _BUILD,
        lambda s: "experts.lora_A" in s.tensors,
    )
    yield (
        "PEFT adds the update of a MultiheadAttention's out_proj twice, and other programs once",
        _BUILD,
        lambda s: any(_OUT_PROJ in name for name in s.tensors.values()),
    )
    if exact_biases:
        yield *_BIASED_EMBEDDING, lambda s: s.is_embedding
    if approximate:
        return
    scaled = f"{_BUILD}; or {_APPROXIMATE}"
    yield "it scales the outputs of the base's modules", scaled, lambda s: "g" in s.vectors
    yield "it scales the inputs of the base's modules", scaled, lambda s: "h" in s.vectors
    yield (
        "its update has no low rank",
        f"put it into the base's weights with lora-quant build --merge; or {_APPROXIMATE}",
        lambda s: s.dense,
    )


def _first(adapter: Adapter, reason: str, hint: str, test: _Test) -> Obstacle | None:
    found = [name for name, shape in adapter.shapes.items() if test(shape)]
    if not found:
        return None
    count = f"{len(found)} of its {len(adapter.shapes)} modules"
    return Obstacle(f"{reason} ({count})", hint, found[0])


def _raise(adapter: Adapter, obstacle: Obstacle | None) -> None:
    if obstacle is not None:
        config = adapter.checkpoint.config
        raise UnsupportedAdapterError(
            f"plain LoRA cannot hold this adapter of kind {config.peft_type}: {obstacle.reason}",
            where=replace(config.where("peft_type"), adapter=adapter.name, module=obstacle.module),
            hint=obstacle.hint,
        )
