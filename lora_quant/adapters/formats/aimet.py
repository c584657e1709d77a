"""AIMET: LoRA initializers of its graphs under PEFT's names, with the scale as a tensor.

    base_model.model.<module>.lora_A.<adapter>.weight    -> .lora_A.weight
    base_model.model.<module>.lora_scale.<adapter>       -> lora_alpha = scale * rank

The adapter's name is there when a graph holds several. Graphs of the old ONNX exporter keep the
factors as MatMul takes them (A `[in, r]`, B `[r, out]`), which the shapes tell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from lora_quant.adapters.files.tensor_source import (
    Derived,
    RenamedTensors,
    TensorSource,
    read_number,
    same,
    transposed,
)
from lora_quant.adapters.formats.contract import Found, Reading
from lora_quant.adapters.formats.synthesis import Strength, make_config
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, some

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_SCALE = re.compile(r"(?P<module>.+)\.lora_scale(?:\.(?P<adapter>[^.]+))?")
_WRAPPER = "base_model.model."


@dataclass(frozen=True)
class Aimet:
    """Told by tensors `<module>.lora_scale`, which no training library writes."""

    name: ClassVar[str] = "aimet"
    signature: ClassVar[str] = "tensors <module>.lora_scale beside <module>.lora_A.<adapter>.weight"

    def claims(self, found: Found) -> bool:
        """See CheckpointFormat."""
        return any(_SCALE.fullmatch(name) for name in found.tensors.names)

    def read(self, found: Found) -> Reading:
        """See CheckpointFormat."""
        source = found.tensors
        factors, scales = _sort(source)
        transposes = _is_matmul_order(source, factors)
        view: dict[str, Derived] = {}
        strengths: dict[str, Strength] = {}
        for module, pair in factors.items():
            for factor, name in pair.items():
                view[f"{module}.lora_{factor}.weight"] = (transposed if transposes else same)(
                    source, name
                )
            if module not in scales or "A" not in pair:
                raise AdapterError(
                    f"the module has no {'lora_A' if module in scales else 'lora_scale'}",
                    where=Where(file=source.path, module=module, tensor=next(iter(pair.values()))),
                    hint="write the factors and the scale of every module to one file",
                )
            rank = view[f"{module}.lora_A.weight"].shape[0]
            strengths[module] = Strength(rank, read_number(source, scales[module]) * rank)
        config = make_config(source.path, "LORA", strengths)
        return Reading(config, RenamedTensors(source, view))


def _sort(source: TensorSource) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Module -> factor -> tensor, and module -> scale tensor."""
    factors: dict[str, dict[str, str]] = {}
    scales: dict[str, str] = {}
    adapters: set[str] = set()
    for name in source.names:
        found = _FACTOR.fullmatch(name) or _SCALE.fullmatch(name)
        if found is None:
            raise UnsupportedAdapterError(
                "the tensor is neither a LoRA factor nor its scale",
                where=Where(file=source.path, tensor=name),
                hint="write only the tensors that are listed in lora_names",
            )
        parts = found.groupdict()
        module = parts["module"].removeprefix(_WRAPPER)
        place, key = (
            (factors.setdefault(module, {}), parts["factor"])
            if "factor" in parts
            else (scales, module)
        )
        adapters |= {parts["adapter"]} - {None}
        if len(adapters) > 1:
            raise AdapterError(
                f"the file holds tensors of several adapters: {some(sorted(adapters))}",
                where=Where(file=source.path, tensor=name),
                hint="write one file for each adapter",
            )
        if key in place:
            raise AdapterError(
                f"two tensors are the same of one module: {place[key]!r} and {name!r}",
                where=Where(file=source.path, module=module, tensor=name),
                hint="write each tensor once",
            )
        place[key] = name
    lone = sorted(scales.keys() - factors.keys())
    if lone:
        raise AdapterError(
            "the module has a lora_scale but no factors",
            where=Where(file=source.path, module=lone[0], tensor=scales[lone[0]]),
            hint="write the factors and the scale of every module to one file",
        )
    return factors, scales


def _is_matmul_order(source: TensorSource, factors: dict[str, dict[str, str]]) -> bool:
    """Whether the shapes of all modules fit only as A `[in, r]`, B `[r, out]`.

    A square module fits both ways, so the others decide; with square ones alone the smaller axis
    of A is the rank.
    """
    shapes = [
        (source.info(pair["A"]).shape, source.info(pair["B"]).shape)
        for pair in factors.values()
        if pair.keys() == {"A", "B"}
    ]
    if not shapes or any(len(a) != 2 or len(b) != 2 for a, b in shapes):
        return False
    logical = all(a[0] == b[1] for a, b in shapes)
    swapped = all(a[1] == b[0] for a, b in shapes)
    if logical and swapped:
        return all(a[1] < a[0] for a, _ in shapes)
    return swapped
