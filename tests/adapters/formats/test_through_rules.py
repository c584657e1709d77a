"""Files of other libraries through the whole reader: format, lowering rule, canonical form.

    W' = g * W * h + B diag(s) A        b' = g * b + c

against the answers of the libraries themselves. The tolerance is that of test_against_libraries: 8
roundings of 2**-24 of the largest number that the library's float32 steps have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.adapters.lowered import Dense, Lowered
from tests.adapters.all_rules import all_rules
from tests.adapters.builders import ArrayBase

Array = NDArray[Any]
FIXTURES = Path(__file__).parents[2] / "fixtures" / "formats"
CASES = sorted(path.parent.name for path in FIXTURES.glob("*/merged.safetensors"))
RULES = all_rules()
KINDS = {
    "lycoris_ia3": "IA3",
    "lycoris_ia3_input": "IA3",
    "lycoris_loha": "LOHA",
    "lycoris_loha_tucker": "LOHA",
    "lycoris_lokr": "LOKR",
    "lycoris_lokr_both": "LOKR",
    "lycoris_lokr_full": "LOKR",
}


def loaded(case: str) -> Adapter:
    folder = FIXTURES / case
    names = ("adapter.safetensors", "adapter.gguf")
    path = next((folder / name for name in names if (folder / name).exists()), folder)
    return load_adapter(case, path, RULES)


def reference(case: str) -> dict[str, dict[str, Array]]:
    """Module -> its W, b, W' and b', as far as there are."""
    found: dict[str, dict[str, Array]] = {}
    for name, values in load_file(FIXTURES / case / "merged.safetensors").items():
        module, _, what = name.partition("|")
        found.setdefault(module, {})[what] = values
    return found


def base_of(modules: dict[str, dict[str, Array]]) -> ArrayBase:
    weights = {module: values["W"] for module, values in modules.items()}
    biases = {module: values["b"] for module, values in modules.items() if "b" in values}
    return ArrayBase(weights, biases)


def applied(lowered: Lowered | Dense, W: Array, b: Array | None) -> tuple[Array, Array | None]:
    """The weight and bias of one layer with the update in them, float64."""
    weight = W.astype(np.float64)
    bias = None if b is None else b.astype(np.float64)
    if isinstance(lowered, Dense):
        return weight + lowered.delta.reshape(W.shape), bias
    if lowered.h is not None:
        weight = weight * lowered.h.reshape(1, -1, *(1 for _ in W.shape[2:]))
    if lowered.g is not None:
        weight = weight * lowered.g.reshape(-1, *(1 for _ in W.shape[1:]))
        bias = None if bias is None else bias * lowered.g
    if lowered.rank:
        A = lowered.A.reshape(lowered.rank, -1).astype(np.float64)
        weight = weight + ((lowered.B * lowered.s) @ A).reshape(W.shape)
    if lowered.c is not None:
        assert bias is not None or not np.any(lowered.c)
        bias = None if bias is None else bias + lowered.c
    return weight, bias


def test_the_fixtures_are_there() -> None:
    assert len(CASES) == 13


@pytest.mark.parametrize("case", CASES)
def test_every_module_answers_as_in_its_library(case: str) -> None:
    adapter, modules = loaded(case), reference(case)
    assert set(adapter.shapes) == set(modules)
    assert adapter.checkpoint.config.peft_type == KINDS.get(case, "LORA")
    base = base_of(modules)
    for module, values in modules.items():
        b = values.get("b")
        # the table of an embedding is [V, dim], its canonical form [dim, V]
        is_table = adapter.shapes[module].is_embedding
        W, expected = (values[key].T if is_table else values[key] for key in ("W", "W'"))
        weight, bias = applied(adapter.lower(module, base), W, b)
        parts = (W, b, expected)
        largest = sum(float(np.abs(part).max()) for part in parts if part is not None)
        tolerance = 8 * 2.0**-24 * largest
        assert weight.shape == expected.shape
        assert np.abs(weight - expected).max() <= tolerance
        assert np.abs(expected - W).max() >= 1e3 * tolerance
        if b is not None:
            assert bias is not None
            assert np.abs(bias - values["b'"]).max() <= tolerance


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_known_before_any_value_is_read(case: str) -> None:
    adapter, modules = loaded(case), reference(case)
    base = base_of(modules)
    for module, shape in adapter.shapes.items():
        W = modules[module]["W"]
        out, width, *_ = W.T.shape if shape.is_embedding else W.shape
        assert shape.out_features in (None, out)
        assert shape.in_features in (None, width, W.size // out)
        lowered = adapter.lower(module, base)
        if isinstance(lowered, Dense):
            assert shape.dense
            continue
        assert lowered.rank == shape.rank
        told = {name for name in "ghc" if getattr(lowered, name) is not None}
        assert told <= shape.vectors


def test_the_norm_of_dora_has_the_librarys_epsilon() -> None:
    """LyCORIS divides by |W'| + 2**-23, PEFT by |W'|."""
    adapter, modules = loaded("lycoris_dora"), reference("lycoris_dora")
    assert adapter.checkpoint.config.fields["lora_quant_norm_eps"] == 2.0**-23
    module, values = next(iter(modules.items()))
    tensor = f"{module}.lora_magnitude_vector"
    m = adapter.checkpoint.tensors.read(tensor).astype(np.float64).reshape(-1)
    tiny = {module: np.zeros_like(values["W"])}
    lowered = adapter.lower(module, ArrayBase(tiny))
    assert isinstance(lowered, Lowered)
    assert lowered.g is not None
    rows = (lowered.B / lowered.g[:, None] * lowered.s) @ lowered.A.reshape(lowered.rank, -1)
    norm = np.sqrt((rows**2).sum(axis=1))
    # some sums, a root and quotients in float64; without the epsilon g is off by 2**-23 / |W'|
    difference = np.abs(lowered.g * (norm + 2.0**-23) / m - 1)
    assert difference.max() <= 64 * 2.0**-53
    assert np.abs(lowered.g * norm / m - 1).max() >= 1e-9
