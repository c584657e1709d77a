"""Verifying a pack: the compiled graph against the base graph with W + dW put in.

A use case passes if, for every output,

    max|y - y_ref|  <=  tolerance * max|y_ref - y_base|  +  floor * max|y_ref|

The first term scales with what the adapter does, so that a wrong strength cannot hide behind a
large base. The second is rounding: both sides evaluate the same sums in another order. Each branch,
with what follows it, is off by a few units in the last place of the graph's type (4 are allowed),
and these add up like a random walk over the branches. Outputs of integers and booleans have to be
equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from lora_quant import plugins
from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import UseCaseRecord
from lora_quant.errors import VerificationError, Where
from lora_quant.graph.name_table import NameTable
from lora_quant.passes.compilation import Progress, no_progress
from lora_quant.runtime.comparison import OutputError, compare
from lora_quant.runtime.compiled import CompiledGraph
from lora_quant.runtime.inputs import (
    check_inputs,
    graph_inputs,
    guessed_axes,
    random_inputs,
    read_inputs,
)
from lora_quant.runtime.pack import Pack, open_pack
from lora_quant.runtime.reference import Reference, Site, add_delta

DEFAULT_TOLERANCE = 1e-4
UNITS_PER_BRANCH = 4
_EPSILON = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Verification:
    """Result for every use case and output. `base_exact`: the base use case is bit for bit.

    `without_effect` names use cases with adapters that change no output at all for these inputs:
    their errors say nothing about the adapters.
    """

    errors: tuple[OutputError, ...]
    base_exact: bool
    tolerance: float
    without_effect: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything passed."""
        return self.base_exact and all(e.ok for e in self.errors)


def verify(
    folder: Path,
    *,
    base: Path | None = None,
    sources: Path | None = None,
    inputs: Path | None = None,
    seed: int = 0,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Progress = no_progress,
) -> Verification:
    """Run every use case of the pack in `folder` on the CPU and compare.

    `base` says where the base graph is now, `sources` where the folder of the configuration is,
    with everything beside it. `inputs` names a .npz or .safetensors file; without it inputs are
    random. Raises VerificationError if something cannot be run or has changed.
    """
    pack = open_pack(folder, sources)
    manifest = pack.manifest
    base_proto, base_path = pack.base_graph(base)
    _check_types(manifest, base_proto, base_path)
    if inputs is None:
        feeds = random_inputs(base_proto, seed)
    else:
        feeds = read_inputs(inputs)
        check_inputs(feeds, base_proto, inputs)
    adapters = _load_adapters(pack)
    strengths = pack.strengths()
    sites = _sites(manifest)
    nodes = frozenset(site.node for site in sites.values())
    steps = len(manifest.use_cases) + 2
    progress("base graph", 0, steps)
    reference = Reference(base_proto, base_path, nodes)
    try:
        plain = reference.run(feeds, {})
    except VerificationError as error:
        guessed = guessed_axes(base_proto) if inputs is None else ()
        if not guessed:
            raise
        raise VerificationError(
            error.message,
            where=error.where,
            hint="give inputs with --inputs FILE: the graph does not tell the lengths of "
            f"{_first(guessed)}; each was taken to be 1",
        ) from error
    progress("compiled graph", 1, steps)
    compiled = CompiledGraph(*pack.graph("qairt"), manifest)
    base_exact = _equal(compiled.run(feeds, None, None), plain)
    epsilon = max(_EPSILON[t.dtype] for t in manifest.tensors if t.role != "expansion")
    floor = UNITS_PER_BRANCH * math.sqrt(len(manifest.attach_points)) * epsilon
    errors: list[OutputError] = []
    without_effect: list[str] = []
    for number, use_case in enumerate(manifest.use_cases):
        progress(f"use case {use_case.name}", number + 2, steps)
        got = compiled.run(feeds, use_case, pack.file("qairt", "weights", use_case.name))
        deltas = _deltas(use_case, strengths, adapters, sites, reference)
        wanted = reference.run(feeds, deltas)
        compared = compare(use_case.name, got, wanted, plain, tolerance, floor)
        if use_case.slots and all(e.effect == 0 for e in compared):
            without_effect.append(use_case.name)
        errors += compared
    return Verification(tuple(errors), base_exact, tolerance, tuple(without_effect))


def _check_types(manifest: Manifest, base: ModelProto, path: Path) -> None:
    """ONNX Runtime neither takes nor gives bfloat16 in Python, and has few operators for it."""
    found = [f"LoRA weight {t.name!r}" for t in manifest.tensors if t.dtype == "bfloat16"]
    for what, values in (("input", graph_inputs(base)), ("output", base.graph.output)):
        found += [
            f"{what} {value.name!r}"
            for value in values
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
        ]
    if found:
        raise VerificationError(
            "ONNX Runtime on the CPU cannot run this graph: got bfloat16, expected float32 or "
            f"float16, in {_first(found)}",
            where=Where(file=path),
            hint="verify a pack that is built from a float32 export of the same model; "
            "`lora-quant validate` checks this one without running it",
        )


def _first(texts: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest


def _load_adapters(pack: Pack) -> dict[str, Adapter]:
    rules = plugins.make_all(plugins.LOWERING_RULES)
    return {
        record.name: load_adapter(record.name, pack.adapter_file(record.name), rules)
        for record in pack.manifest.adapters
    }


def _sites(manifest: Manifest) -> dict[str, Site]:
    return {
        part.module: Site(part.module, point.node, part.offset, part.size)
        for point in manifest.attach_points
        for part in point.modules
    }


def _deltas(
    use_case: UseCaseRecord,
    strengths: Mapping[str, Mapping[str, float]],
    adapters: Mapping[str, Adapter],
    sites: Mapping[str, Site],
    reference: Reference,
) -> dict[str, NDArray[np.float64]]:
    """dW of every node that the use case changes, at the strengths of the configuration."""
    names = NameTable(sites)
    deltas: dict[str, NDArray[np.float64]] = {}
    wanted = strengths.get(use_case.name, {})
    if set(wanted) != {slot.adapter for slot in use_case.slots}:
        raise VerificationError(
            f"manifest and configuration disagree on the adapters of use case {use_case.name!r}",
            where=Where(use_case=use_case.name),
            hint="build the pack again",
        )
    for name, strength in wanted.items():
        adapter = adapters[name]
        for module in adapter.shapes:
            found = names.find(module)
            if len(found) != 1:
                raise VerificationError(
                    f"the pack has {len(found)} places for module {module!r}",
                    where=Where(adapter=adapter.name, module=module),
                )
            add_delta(deltas, sites[found[0]], reference, adapter.lower(module), strength)
    return deltas


def _equal(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    return all(
        np.array_equal(one[name], values, equal_nan=values.dtype.kind == "f")
        for name, values in other.items()
    )
