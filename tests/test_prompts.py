"""Soft prompts: what a pack holds, fed to the base as an application does, against PEFT's outputs.

The tolerance is that of test_kinds_compiled. An application puts rows before its embedded tokens,
or keys and values into an empty cache, and counts positions on from there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant.api import BuildResult
from lora_quant.errors import GraphError, LoraQuantError, UnsupportedAdapterError
from tests.builders import GraphBuilder
from tests.mixes import KINDS, graph_of, merged_outputs, mixed, outputs, use_case_of
from tests.run_graph import largest

Array = NDArray[Any]
RELATIVE = 1e-5
EFFECT = 1e-2
TASKS = {"multitask_prompt_tuning": 2}
ROWS = ("cpt", "multitask_prompt_tuning", "p_tuning_lstm", "p_tuning_mlp", "prompt_tuning")
KEYS = ("cartridge", "prefix_tuning", "prefix_tuning_projected")
EMBEDS, CACHE = graph_of("llama_embeds"), graph_of("llama_cache")
PAST = tuple(f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value"))


def expected_of(case: str) -> dict[str, Array]:
    return load_file(KINDS / case / "expected.safetensors")


def prompt_of(result: BuildResult, use_case: str = "it") -> dict[str, Array]:
    return load_file(result.output / "qairt" / use_case / "prompt.safetensors")


def embedded(tokens: Array) -> Array:
    table = load_file(KINDS / "bases" / "llama" / "weights.safetensors")[
        "model.embed_tokens.weight"
    ]
    rows: Array = table[tokens]
    return rows


def after_rows(rows: Array, tokens: Array) -> dict[str, Array]:
    """`inputs_embeds` of rows `[n, dim]` before the tokens of every sequence."""
    before = np.broadcast_to(rows, (len(tokens), *rows.shape))
    return {"inputs_embeds": np.concatenate([before, embedded(tokens)], axis=1)}


def after_keys(past: Array, tokens: Array) -> dict[str, Array]:
    """Tokens at the positions behind keys and values `[2 * layers, heads, n, head dim]`."""
    batch, length = tokens.shape
    count = past.shape[2]
    positions = np.broadcast_to(np.arange(count, count + length), (batch, length))
    feeds = {"input_ids": tokens.astype(np.int64), "position_ids": positions.astype(np.int64)}
    for name, values in zip(PAST, past, strict=True):
        feeds[name] = np.broadcast_to(values, (batch, *values.shape)).copy()
    return feeds


def is_peft(ours: Array, theirs: Array) -> bool:
    return ours.shape == theirs.shape and largest(ours, theirs) <= RELATIVE * float(
        np.abs(theirs).max()
    )


@pytest.mark.parametrize("case", ROWS)
def test_rows_before_the_tokens_give_pefts_outputs(case: str, tmp_path: Path) -> None:
    result = mixed(tmp_path / "pack", EMBEDS, {"it": {case: 1.0}}, tasks=TASKS)
    expected = expected_of(case)
    prompt = prompt_of(result)
    assert set(prompt) == {"prefix_embeds"}
    assert prompt["prefix_embeds"].dtype == np.float32
    # P-tuning's rows are saved as computed; a task's are multiplied here and there in float32
    allowed = 4 * 2.0**-24 * float(np.abs(expected["prefix_embeds"]).max())
    assert largest(prompt["prefix_embeds"], expected["prefix_embeds"]) <= allowed
    feeds = after_rows(prompt["prefix_embeds"], expected["input_ids"])
    assert is_peft(outputs(result, "it", feeds), expected["logits"])
    nothing = after_rows(np.zeros_like(prompt["prefix_embeds"]), expected["input_ids"])
    difference = largest(outputs(result, "it", nothing), expected["logits"])
    assert difference >= EFFECT * float(np.abs(expected["logits"]).max())


@pytest.mark.parametrize("case", KEYS)
def test_keys_and_values_before_the_tokens_give_pefts_outputs(case: str, tmp_path: Path) -> None:
    result = mixed(tmp_path / "pack", CACHE, {"it": {case: 1.0}})
    expected = expected_of(case)
    prompt = prompt_of(result)
    assert set(prompt) == {"past_key_values"}
    np.testing.assert_array_equal(prompt["past_key_values"], expected["past_key_values"])
    feeds = after_keys(prompt["past_key_values"], expected["input_ids"])
    assert is_peft(outputs(result, "it", feeds), expected["logits"])
    at_zero = feeds | {"position_ids": feeds["position_ids"] - prompt["past_key_values"].shape[2]}
    assert not is_peft(outputs(result, "it", at_zero), expected["logits"])


@pytest.mark.parametrize(
    ("case", "form", "shape", "inputs"),
    [
        ("prompt_tuning", "prefix_embeds", (4, 16), ("inputs_embeds",)),
        ("prefix_tuning", "past_key_values", (4, 2, 4, 4), PAST),
    ],
)
def test_the_manifest_tells_which_inputs_a_prompt_feeds(
    case: str, form: str, shape: tuple[int, ...], inputs: tuple[str, ...], tmp_path: Path
) -> None:
    graph = EMBEDS if form == "prefix_embeds" else CACHE
    result = mixed(tmp_path / "pack", graph, {"it": {case: 1.0}})
    prompt = use_case_of(result, "it").prompt
    assert prompt is not None
    assert (prompt.adapter, prompt.form, prompt.shape, prompt.inputs) == (case, form, shape, inputs)
    assert use_case_of(result, "base").prompt is None
    (file,) = result.manifest.files("qairt", role="prompt")
    assert (file.use_case, file.path) == ("it", "qairt/it/prompt.safetensors")
    assert result.manifest.alpha is None
    assert result.manifest.tensors == ()
    compiled = onnx.load(str(result.output / "qairt" / "model.onnx"))
    assert compiled.graph == onnx.load(str(graph)).graph


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_a_prompt_beside_low_rank_changes_neither(layout: str, tmp_path: Path) -> None:
    given = {
        "both": {"prompt_tuning": 1.0, "lora_plain": 0.5},
        "lora": {"lora_plain": 0.5},
        "full": {"lora_plain": 1.0},
    }
    result = mixed(tmp_path / "pack", EMBEDS, given, alpha_layout=layout)
    expected = expected_of("prompt_tuning")
    np.testing.assert_array_equal(
        prompt_of(result, "both")["prefix_embeds"], expected["prefix_embeds"]
    )
    assert not (result.output / "qairt" / "lora" / "prompt.safetensors").exists()
    feeds = after_rows(expected["prefix_embeds"], expected["input_ids"])
    both, alone = (outputs(result, name, feeds) for name in ("both", "lora"))
    # the prompt's slot has no rank: the same ranks hold the same numbers
    np.testing.assert_array_equal(both, alone)
    assert not is_peft(both, expected["logits"])
    lora = expected_of("lora_plain")
    tokens = {"inputs_embeds": embedded(lora["input_ids"])}
    assert is_peft(outputs(result, "full", tokens), lora["logits"])


def test_a_prefix_beside_low_rank_changes_neither(tmp_path: Path) -> None:
    given = {"both": {"lora_plain": 1.0, "prefix_tuning": 1.0}, "lora": {"lora_plain": 1.0}}
    result = mixed(tmp_path / "pack", CACHE, given)
    lora, prefix = expected_of("lora_plain"), expected_of("prefix_tuning")
    empty = after_keys(np.zeros((4, 2, 0, 4), np.float32), lora["input_ids"])
    assert is_peft(outputs(result, "both", empty), lora["logits"])
    feeds = after_keys(prompt_of(result, "both")["past_key_values"], prefix["input_ids"])
    np.testing.assert_array_equal(outputs(result, "both", feeds), outputs(result, "lora", feeds))


def test_a_use_case_that_is_merged_keeps_its_prompt(tmp_path: Path) -> None:
    given = {"it": {"prompt_tuning": 1.0, "lora_plain": 1.0}}
    result = mixed(tmp_path / "pack", EMBEDS, given, merge="it")
    rows = expected_of("prompt_tuning")["prefix_embeds"]
    np.testing.assert_array_equal(prompt_of(result)["prefix_embeds"], rows)
    lora = expected_of("lora_plain")
    tokens = {"inputs_embeds": embedded(lora["input_ids"])}
    assert is_peft(merged_outputs(result, tokens), lora["logits"])


def test_every_use_case_has_the_prompt_of_its_own_adapter(tmp_path: Path) -> None:
    given = {"one": {"prompt_tuning": 1.0}, "two": {"cpt": 1.0}}
    result = mixed(tmp_path / "pack", EMBEDS, given)
    for use_case, case in (("one", "prompt_tuning"), ("two", "cpt")):
        rows = prompt_of(result, use_case)["prefix_embeds"]
        np.testing.assert_array_equal(rows, expected_of(case)["prefix_embeds"])


def test_tasks_of_one_checkpoint_are_adapters_of_their_own(tmp_path: Path) -> None:
    names = {f"task{task}": task for task in range(3)}
    paths = dict.fromkeys(names, KINDS / "multitask_prompt_tuning")
    given = {name: {name: 1.0} for name in names}
    result = mixed(tmp_path / "pack", EMBEDS, given, paths=paths, tasks=names)
    expected = expected_of("multitask_prompt_tuning")
    for name, task in names.items():
        theirs = expected[f"prefix_embeds:{task}"]
        allowed = 4 * 2.0**-24 * float(np.abs(theirs).max())
        assert largest(prompt_of(result, name)["prefix_embeds"], theirs) <= allowed


def test_a_task_is_not_chosen_silently(tmp_path: Path) -> None:
    with pytest.raises(LoraQuantError, match="task"):
        mixed(tmp_path / "pack", EMBEDS, {"it": {"multitask_prompt_tuning": 1.0}})


def test_two_prompts_do_not_share_a_use_case(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(tmp_path / "pack", EMBEDS, {"it": {"prompt_tuning": 1.0, "cpt": 1.0}})
    error = caught.value
    assert error.message == (
        "adapters 'prompt_tuning' and 'cpt' are soft prompts, expected one at most"
    )
    assert error.where.use_case == "it"
    assert error.hint == "use them in separate use cases"


@pytest.mark.parametrize(
    ("case", "message", "hint"),
    [
        (
            "prompt_tuning",
            "the adapter brings embeddings of 4 virtual tokens, but the graph has no input "
            "'inputs_embeds': its inputs are 'input_ids'",
            "export the base with inputs_embeds in the place of input_ids",
        ),
        (
            "prefix_tuning",
            "the adapter brings keys and values for 2 layers, but the graph has 0 inputs for "
            "them, expected 4",
            "export the base with a key-value cache as inputs past_key_values.N.key and "
            "past_key_values.N.value",
        ),
    ],
)
def test_a_base_without_a_place_for_the_prompt_is_refused(
    case: str, message: str, hint: str, tmp_path: Path
) -> None:
    graph = graph_of("llama")
    with pytest.raises(GraphError) as caught:
        mixed(tmp_path / "pack", graph, {"it": {case: 1.0}})
    error = caught.value
    assert error.message == message
    assert (error.where.file, error.where.adapter) == (graph, case)
    assert error.hint is not None
    assert error.hint.startswith(hint)
    assert not (tmp_path / "pack").exists()


def other_sizes(folder: Path, case: str, **fields: Any) -> Path:
    """A copy of a prompt for a base of other sizes, its values cut from the right."""
    copy = folder / "resized"
    shutil.copytree(KINDS / case, copy)
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(config), encoding="utf-8")
    width = config["token_dim"]
    if case == "prefix_tuning":
        width *= 2 * config["num_layers"]
    shape = (config["num_virtual_tokens"], width)
    save_file({"prompt_embeddings": np.ones(shape, np.float32)}, copy / "adapter_model.safetensors")
    return copy


@pytest.mark.parametrize(
    ("case", "fields", "message"),
    [
        (
            "prompt_tuning",
            {"token_dim": 12},
            r"the input 'inputs_embeds' is float32 \[-1, -1, 16\], expected floats "
            r"\[batch, tokens, dim\] with 12 at axis 2",
        ),
        (
            "prefix_tuning",
            {"num_attention_heads": 4},
            r"the input 'past_key_values\.0\.key' is float32 \[-1, 2, -1, 4\], expected floats "
            r"\[batch, heads, past, head dim\] with 4 at axis 1, 2 at axis 3",
        ),
        (
            "prefix_tuning",
            {"token_dim": 12},
            r"the input 'past_key_values\.0\.key' .* with 2 at axis 1, 6 at axis 3",
        ),
        (
            "prefix_tuning",
            {"num_layers": 3},
            "the adapter brings keys and values for 3 layers, but the graph has 4 inputs for "
            "them, expected 6",
        ),
        (
            "prefix_tuning",
            {"num_layers": 1},
            "the adapter brings keys and values for 1 layers, but the graph has 4 inputs for "
            "them, expected 2",
        ),
    ],
)
def test_a_base_of_other_sizes_is_refused(
    case: str, fields: dict[str, int], message: str, tmp_path: Path
) -> None:
    paths = {case: other_sizes(tmp_path, case, **fields)}
    graph = EMBEDS if case == "prompt_tuning" else CACHE
    with pytest.raises(GraphError, match=message) as caught:
        mixed(tmp_path / "pack", graph, {"it": {case: 1.0}}, paths=paths)
    assert caught.value.where.adapter == case
    assert caught.value.hint is not None


def test_an_input_of_tokens_is_no_place_for_rows(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("inputs_embeds", ("batch", "tokens", 16), "int64")
    graph.output(graph.node("Identity", [x], "/Identity"), ("batch", "tokens", 16), "int64")
    base = graph.save(tmp_path / "base.onnx")
    with pytest.raises(GraphError, match=r"'inputs_embeds' is int64 .*, expected floats"):
        mixed(tmp_path / "pack", base, {"it": {"prompt_tuning": 1.0}})
