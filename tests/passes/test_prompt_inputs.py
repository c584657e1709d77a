"""Which inputs of a graph take a soft prompt: by name, held against the shape that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.adapters.contract import LoweringRule
from lora_quant.errors import GraphError
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.passes.prompt_inputs import find_prompt_inputs
from tests.adapters.all_rules import all_rules
from tests.adapters.fixture_base import KINDS
from tests.builders import GraphBuilder

RULES: Mapping[str, LoweringRule] = all_rules()
ROWS = ("batch", "tokens", 16)
KEYS = ("batch", 2, "past", 4)


def prompt(case: str) -> Adapter:
    return load_adapter(case, KINDS / case, RULES)


def graph_with(
    folder: Path, inputs: Mapping[str, Sequence[int | str]], dtype: str = "float32"
) -> BaseGraph:
    """A graph that does nothing with its inputs."""
    graph = GraphBuilder(dtype)
    for number, (name, shape) in enumerate(inputs.items()):
        graph.input(name, shape)
        graph.output(graph.node("Identity", [name], f"/Identity_{number}"), shape)
    return open_base(graph.save(folder / "base.onnx"))


def without_shape(folder: Path, name: str) -> BaseGraph:
    """An input of which the graph tells its type alone."""
    graph = GraphBuilder()
    graph.input(name, ROWS)
    graph.output(graph.node("Identity", [name], "/Identity"), ROWS)
    model = graph.model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path = folder / "base.onnx"
    path.write_bytes(model.SerializeToString())
    return open_base(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_go_into_the_input_of_embeddings(dtype: str, tmp_path: Path) -> None:
    base = graph_with(tmp_path, {"attention_mask": ("batch", 7), "inputs_embeds": ROWS}, dtype)
    found = find_prompt_inputs(base, prompt("prompt_tuning"))
    assert found.names == ("inputs_embeds",)
    assert found.shape.shape == (4, 16)


@pytest.mark.parametrize(
    "pattern",
    ["past_key_values.{layer}.{part}", "past_key_value.{layer}.{part}", "past_{part}_{layer}"],
)
def test_keys_and_values_are_found_in_any_order(pattern: str, tmp_path: Path) -> None:
    names = [pattern.format(layer=n, part=part) for part in ("value", "key") for n in (1, 0)]
    base = graph_with(tmp_path, dict.fromkeys(names, KEYS))
    found = find_prompt_inputs(base, prompt("prefix_tuning"))
    assert found.names == tuple(
        pattern.format(layer=n, part=part) for n in (0, 1) for part in ("key", "value")
    )


def test_layers_beyond_nine_are_counted_as_numbers(tmp_path: Path) -> None:
    names = [f"past_key_values.{n}.{part}" for n in range(12) for part in ("key", "value")]
    base = graph_with(tmp_path, dict.fromkeys(sorted(names), KEYS))
    adapter = prompt("prefix_tuning")
    shape = adapter.description.prompt
    assert shape is not None
    deeper = replace(shape, shape=(24, *shape.shape[1:]))
    adapter = replace(adapter, description=replace(adapter.description, prompt=deeper))
    assert find_prompt_inputs(base, adapter).names == tuple(names)


def test_an_input_without_a_known_shape_is_taken(tmp_path: Path) -> None:
    base = without_shape(tmp_path, "inputs_embeds")
    assert find_prompt_inputs(base, prompt("prompt_tuning")).names == ("inputs_embeds",)


def test_sizes_that_the_graph_leaves_open_are_taken(tmp_path: Path) -> None:
    base = graph_with(tmp_path, {"inputs_embeds": ("batch", "tokens", "dim")})
    assert find_prompt_inputs(base, prompt("prompt_tuning")).names == ("inputs_embeds",)


@pytest.mark.parametrize("shape", [("tokens", 16), ("batch", "tokens", 4, 4), ("batch", 3, 12)])
def test_rows_of_another_layout_are_refused(shape: Sequence[int | str], tmp_path: Path) -> None:
    base = graph_with(tmp_path, {"inputs_embeds": shape})
    with pytest.raises(GraphError, match=r"expected floats \[batch, tokens, dim\]") as caught:
        find_prompt_inputs(base, prompt("prompt_tuning"))
    assert caught.value.where.tensor == "inputs_embeds"
    assert caught.value.where.adapter == "prompt_tuning"
    assert caught.value.hint == "the adapter was trained on another base model"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("batch", 7, 2, 4), r"\[-1, 7, 2, 4\], expected floats .* with 2 at axis 1, 4 at axis 3"),
        (("batch", "past", 2, 4), r"\[-1, -1, 2, 4\], with the 2 heads at axis 2; expected"),
    ],
)
def test_a_cache_of_tokens_before_heads_is_refused(
    shape: Sequence[int | str], message: str, tmp_path: Path
) -> None:
    names = [f"past_key_values.{n}.{part}" for n in (0, 1) for part in ("key", "value")]
    base = graph_with(tmp_path, dict.fromkeys(names, shape))
    with pytest.raises(GraphError, match=message) as caught:
        find_prompt_inputs(base, prompt("prefix_tuning"))
    where = caught.value.where
    assert (where.file, where.adapter, where.tensor) == (base.path, "prefix_tuning", names[0])


def test_a_cache_that_lacks_a_layer_says_how_many_inputs_there_are(tmp_path: Path) -> None:
    names = [f"past_key_values.{n}.{part}" for n in (0, 2) for part in ("key", "value")]
    base = graph_with(tmp_path, dict.fromkeys(names, KEYS))
    with pytest.raises(GraphError, match="for 2 layers, but the graph has 4 inputs for them"):
        find_prompt_inputs(base, prompt("prefix_tuning"))


def test_inputs_of_other_names_are_listed(tmp_path: Path) -> None:
    base = graph_with(tmp_path, {"cache_key_0": KEYS, "past_key_values_0_key": KEYS})
    with pytest.raises(GraphError) as caught:
        find_prompt_inputs(base, prompt("prefix_tuning"))
    assert "past_key_values_0_key" in str(caught.value.hint)
