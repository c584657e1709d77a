"""Graphs that torch exported: every module and parameter of the model, with the model's values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_quant.errors import AttachPointError, Where
from lora_quant.graph.attach.resolver import ModuleSizes
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.values.base_weights import GraphWeights
from lora_quant.graph.values.parameters import find_parameter, parameter_values
from tests.graph.helpers import resolve
from tests.graph.requests import asked

BASES = Path(__file__).parents[1] / "fixtures" / "kinds" / "bases"
EXPORTED = sorted(path.parent.name for path in BASES.glob("*/model.onnx"))
# Its layers 1 and 2 are one layer, as layer_replication makes them.
WITHOUT_SHARING = [name for name in EXPORTED if name != "llama_replicated"]
WITH_PRODUCTS = {"linear", "conv1D_transformers", "conv1d", "conv2d", "embedding", "mha"}


def modules(base: str) -> list[dict[str, Any]]:
    found = json.loads((BASES / base / "base.json").read_text())["modules"]
    return [module for module in found if module["type"] in WITH_PRODUCTS]


def weight_name(module: dict[str, Any]) -> str:
    leaf = "in_proj_weight" if module["type"] == "mha" else "weight"
    return f"{module['name']}.{leaf}"


def test_there_are_graphs() -> None:
    assert {"llama", "gpt2", "mhanet", "embnet", "groupnet"} <= set(EXPORTED)


@pytest.mark.parametrize("name", EXPORTED)
def test_weights_and_biases_are_those_of_the_model(name: str) -> None:
    base = open_base(BASES / name / "model.onnx")
    state = load_file(BASES / name / "weights.safetensors")
    weights = GraphWeights(base)
    resolution = resolve(
        base,
        [
            asked(
                module["name"],
                kernel=tuple(module["kernel"]),
                groups=module["groups"],
                is_embedding=module["type"] == "embedding",
            )
            for module in modules(name)
        ],
    )
    for module in modules(name):
        path, is_table = module["name"], module["type"] == "embedding"
        kernel, groups = tuple(module["kernel"]), module["groups"]
        sizes = ModuleSizes(module["in"], module["out"], kernel, groups, is_table)
        assert resolution.sizes[path] == sizes
        W = state[weight_name(module)]
        W = W.T if is_table or module["transposed"] else W
        got = np.full(W.shape, np.nan)
        for tile in weights.tiles(*resolution.place(path)):
            got[tile.rows, tile.columns] = tile.values
        assert np.array_equal(got, W), path
        bias = state.get(weight_name(module).replace("weight", "bias"), np.zeros(module["out"]))
        assert np.array_equal(weights.bias(*resolution.place(path)), bias), path


@pytest.mark.parametrize("name", WITHOUT_SHARING)
def test_every_parameter_of_the_model_can_be_replaced(name: str) -> None:
    base = open_base(BASES / name / "model.onnx")
    names = set()
    state = load_file(BASES / name / "weights.safetensors")
    for parameter, expected in state.items():
        one = find_parameter(base, parameter, Where())
        values = parameter_values(base, one)
        assert np.array_equal(values.T if one.transposed else values, expected), parameter
        names.add(one.weight.name)
    assert len(names) == len(state)


def test_a_layer_that_was_replicated_is_not_replaced() -> None:
    base = open_base(BASES / "llama_replicated" / "model.onnx")
    for leaf in ("self_attn.q_proj", "input_layernorm"):
        with pytest.raises(AttachPointError, match=r"several modules, among them .*layers\.2\."):
            find_parameter(base, f"model.layers.1.{leaf}.weight", Where())
