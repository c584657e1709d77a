"""Outputs of single modules, PEFT's and ours: the only judge of what PEFT cannot merge.

PEFT computes in float32. A sum of n products in any order is off by at most n * 2**-24 times the
sum of their absolute values; W x, B (A x) and the norms of DoRA are such sums, and a few more
roundings add them up. Twice that leaves room for norms and sums together.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.adapters.lowered import Lowered, Need
from tests.adapters.fixture_base import KINDS
from tests.adapters.test_conformance import CASES, HALF_UNIT, installed, opened

Array = NDArray[np.float64]
# Of attentions and experts PEFT's output is that of the whole block: their weights are compared.
OF_BLOCKS = ("mha", "experts")


def facts(base: str, module: str) -> dict[str, Any]:
    listed = json.loads((KINDS / "bases" / base / "base.json").read_text("utf-8"))["modules"]
    found: dict[str, Any] = next(record for record in listed if record["name"] == module)
    return found


def convolved(x: Array, weight: Array, groups: int, place: dict[str, Any]) -> Array:
    """A convolution by its definition, `[batch, out, *sizes]`: one output position at a time."""
    axes = weight.ndim - 2
    padding, stride = place.get("padding", [0] * axes), place.get("stride", [1] * axes)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    kernel = weight.shape[2:]
    sizes = [
        (n - k) // step + 1 for n, k, step in zip(padded.shape[2:], kernel, stride, strict=True)
    ]
    out, width = weight.shape[:2]
    y = np.zeros((len(x), out, *sizes))
    for position in itertools.product(*map(range, sizes)):
        window = tuple(
            slice(p * step, p * step + k)
            for p, step, k in zip(position, stride, kernel, strict=True)
        )
        for row in range(out):
            first = row // (out // groups) * width
            at: tuple[Any, ...] = (slice(None), slice(first, first + width), *window)
            seen = padded[at]
            to: tuple[Any, ...] = (slice(None), row, *position)
            y[to] = (seen * weight[row]).reshape(len(x), -1).sum(1)
    return y


def applied(x: Array, weight: Array, groups: int, place: dict[str, Any]) -> Array:
    if place["type"] == "embedding":
        rows: Array = weight.T[x.astype(int)]
        return rows
    if weight.ndim > 2:
        return convolved(x, weight, groups, place)
    return x @ weight.T


def branch(x: Array, lowered: Lowered, groups: int, gate: Array, place: dict[str, Any]) -> Array:
    """B (s * gate * (A x)) by einsum over the ranks of each group."""
    ranks = applied(x, lowered.A.astype(np.float64), 1, place)
    axis = 1 if lowered.A.ndim > 2 else -1
    ranks = np.moveaxis(ranks, axis, -1) * lowered.s * gate
    B = lowered.B.astype(np.float64)
    split = ranks.reshape(*ranks.shape[:-1], groups, -1)
    by_group = B.reshape(groups, -1, B.shape[1])
    y = np.einsum("...gr,gor->...go", split, by_group).reshape(*ranks.shape[:-1], -1)
    return np.moveaxis(y, -1, axis)


def per_output(values: Any, axes: int) -> Any:
    """A vector `[out]` in the shape that multiplies y; a number as it is."""
    return np.reshape(values, (-1, *[1] * axes)) if np.ndim(values) else values


def output(
    x: Array, weight: Array, bias: Array, lowered: Lowered, groups: int, gate: Array, place: Any
) -> Array:
    axes = weight.ndim - 2
    y = applied(x, weight, groups, place)
    g = 1.0 if lowered.g is None else lowered.g
    c = 0.0 if lowered.c is None else lowered.c
    base = per_output(g, axes) * (y + per_output(bias, axes))
    whole: Array = base + branch(x, lowered, groups, gate, place) + per_output(c, axes)
    return whole


def absolute(lowered: Lowered) -> Lowered:
    vectors = [None if v is None else np.abs(v) for v in (lowered.g, lowered.c)]
    return Lowered(
        np.abs(lowered.A), np.abs(lowered.B), np.abs(lowered.s), g=vectors[0], c=vectors[1]
    )


@pytest.mark.parametrize(
    "case",
    [
        name
        for name, case in CASES.items()
        if case["kind"] == "LORA" and case["class"] in ("exact", "base", "extended", "gate")
    ],
)
def test_the_output_of_a_module_is_pefts(case: str) -> None:
    adapter, base, expected = opened(case)
    probed = [key.partition(":")[2] for key in expected if key.startswith("y:")]
    gate = np.array(CASES[case].get("module_gate", 1.0))
    gate = gate[..., None] if gate.ndim else gate
    for module in probed:
        if module.endswith(OF_BLOCKS):
            continue
        shape = adapter.shapes[module]
        assert shape.gated == bool(gate.ndim)
        lowered = adapter.lower(module, None if shape.need is Need.NOTHING else base)
        assert isinstance(lowered, Lowered)
        x, theirs = expected[f"x:{module}"], expected[f"y:{module}"]
        weight = installed(adapter, f"{module}.weight", base.weight(module).astype(np.float64))
        bias = installed(adapter, f"{module}.bias", base.bias(module))
        place = facts(CASES[case]["base"], module)
        sizes = (weight, bias, lowered, shape.groups, gate, place)
        ours = output(x, *sizes)
        size = output(
            np.abs(x), np.abs(weight), np.abs(bias), absolute(lowered), shape.groups, gate, place
        )
        terms = weight[0].size + lowered.rank + 8
        allowed = 2 * terms * HALF_UNIT * size
        if shape.need is Need.WEIGHT and lowered.g is None:
            # the float32 decomposition in PEFT's reload: the limit of kinds that read the weight
            allowed = allowed + 5e-6 * np.abs(theirs - expected[f"y_base:{module}"]).max()
        assert (np.abs(ours - theirs) <= allowed).all(), module
        moved = np.abs(theirs - expected[f"y_base:{module}"]).max()
        assert allowed.max() < 2e-3 * moved, "so small that a wrong scale could not hide in it"


@pytest.mark.parametrize("case", ["lora_experts_one", "lora_experts_two", "lora_experts_ranks"])
def test_the_updates_of_experts_are_pefts(case: str) -> None:
    adapter, _, expected = opened(case)
    found = [key.partition(":")[2] for key in expected if key.startswith("delta:")]
    parameters = [name for name in found if ".experts." in name]
    modules = [f"{name}.{e}" for name in parameters for e in range(2)]
    assert {name for name in adapter.shapes if ".experts." in name} == set(modules)
    for name in parameters:
        for index, theirs in enumerate(expected[f"delta:{name}"]):
            lowered = adapter.lower(f"{name}.{index}")
            assert isinstance(lowered, Lowered)
            ours = np.einsum("or,r,ri->oi", lowered.B, lowered.s, lowered.A)
            size = np.einsum("or,r,ri->oi", abs(lowered.B), abs(lowered.s), abs(lowered.A))
            # r products, their scale, and the sum with the base that PEFT's merge rounds
            limit = (lowered.rank + 2) * HALF_UNIT * size + HALF_UNIT
            assert (np.abs(ours - theirs) <= limit).all(), name


def test_linear_layers_of_experts_are_rows_of_the_fused_parameters() -> None:
    """A file of unfused experts: PEFT puts w1 above w3, as the rows of gate_up_proj."""
    adapter, _, expected = opened("lora_experts_old")
    fused = "model.layers.0.mlp.experts"
    for index in range(2):
        deltas = {}
        for leaf in ("w1", "w2", "w3"):
            lowered = adapter.lower(f"model.layers.0.block_sparse_moe.experts.{index}.{leaf}")
            assert isinstance(lowered, Lowered)
            deltas[leaf] = np.einsum("or,r,ri->oi", lowered.B, lowered.s, lowered.A)
        gate_up = np.concatenate([deltas["w1"], deltas["w3"]])
        for ours, name in ((gate_up, "gate_up_proj"), (deltas["w2"], "down_proj")):
            theirs = expected[f"delta:{fused}.{name}"][index]
            # a product of two ranks and its scale, and the sum with weights below 1
            limit = 4 * HALF_UNIT * (1 + np.abs(theirs).max())
            assert (np.abs(ours - theirs) <= limit).all(), name
