"""Soft prompts: the pack's file against the adapter's own, fed to graphs that take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.cli.render_verification import show_verification
from lora_quant.config.manifest import read_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.errors import VerificationError
from lora_quant.runtime.feeds.inputs import Lengths, random_inputs
from lora_quant.runtime.verify.verify import verify
from tests.adapters.builders import pair, write
from tests.builders import GraphBuilder
from tests.mixes import mixed
from tests.runtime.kinds import KINDS, Tensors, edit_tensors, failed
from tests.validation.packs import edit_manifest, rehash

Q0 = "model.layers.0.self_attn.q_proj"
# As the adapters among the fixtures have them.
DIM, LAYERS, HEADS, HEAD_DIM = 16, 2, 2, 4


def with_embeds() -> GraphBuilder:
    """Every token sees the mean of all: a prompt reaches the text behind it."""
    graph = GraphBuilder()
    x = graph.input("inputs_embeds", ("batch", "sequence", DIM))
    q = graph.matmul(f"/{Q0.replace('.', '/')}/MatMul", x, in_features=DIM, out_features=DIM)
    mean = graph.node("ReduceMean", [q], "mean", axes=[1], keepdims=1)
    graph.output(graph.node("Add", [q, mean], "last"), ("batch", "sequence", DIM))
    return graph


def with_cache() -> GraphBuilder:
    """Adds the means over the past and what is read now, each key and value with its own factor."""
    graph = GraphBuilder()
    x = graph.input("x", ("batch", "sequence", DIM))
    y = graph.matmul(f"/{Q0.replace('.', '/')}/MatMul", x, in_features=DIM, out_features=DIM)
    kv = graph.matmul("/kv/MatMul", x, in_features=DIM, out_features=HEADS * HEAD_DIM)
    heads = graph.constant("heads", np.array([0, 0, HEADS, HEAD_DIM], np.int64))
    split = graph.node("Reshape", [kv, heads], "split")
    now = graph.node("Transpose", [split], "now", perm=[0, 2, 1, 3])
    flat = graph.constant("flat", np.array([0, 1, HEADS * HEAD_DIM], np.int64))
    for layer in range(LAYERS):
        for part in ("key", "value"):
            name = f"{layer}/{part}"
            shape = ("batch", HEADS, "past_sequence", HEAD_DIM)
            past = graph.input(f"past_key_values.{layer}.{part}", shape)
            joined = graph.node("Concat", [past, now], f"{name}/all", axis=2)
            mean = graph.node("ReduceMean", [joined], f"{name}/mean", axes=[2], keepdims=1)
            row = graph.node("Reshape", [mean, flat], f"{name}/row")
            mixed = graph.weight(f"{name}/mix", HEADS * HEAD_DIM, DIM)
            y = graph.node("Add", [y, graph.node("MatMul", [row, mixed], f"{name}/mixed")], name)
    graph.output(y, ("batch", "sequence", DIM))
    return graph


GRAPHS = {"prompt_tuning": with_embeds, "prefix_tuning": with_cache}
BASES = {"prompt_tuning": "llama_embeds", "prefix_tuning": "llama_cache"}
"""Graphs that attend over the prompt in more nodes than these, and that the engine fuses."""


def prompt_pack(folder: Path, case: str, target: str = "qairt") -> Path:
    """A pack with a prompt alone, one beside a LoRA, and a use case without either."""
    GRAPHS[case]().save(folder / "model.onnx")
    write(folder / "tone", pair(Q0, features=(DIM, DIM)), target_modules=["q_proj"])
    named = {"base": [], "prompt": [case], "both": ["tone", case]}
    document = {
        "adapter": [
            {"name": case, "lora_config": str(KINDS / case)},
            {"name": "tone", "lora_config": "tone"},
        ],
        "use-case": [
            {
                "name": name,
                "adapter_names": names,
                "adapter_alphas": [1.0] * len(names),
                "model_name": "model.onnx",
            }
            for name, names in named.items()
        ],
    }
    config = folder / "lora_config.yaml"
    config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return build(config, folder / "pack", BuildOptions(targets=(target,))).output


@pytest.fixture(params=GRAPHS)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_good_prompt_is_verified(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = verify(prompt_pack(tmp_path, case))
    assert result.ok
    assert result.prompts == ("prompt", "both")
    by_name = {e.use_case: e for e in result.errors}
    assert by_name["prompt"].effect > 0.1
    assert by_name["prompt"].error == 0, "both sides are one graph, with the same values fed"
    assert by_name["both"].effect > 0.1
    show_verification(result, as_json=False)
    assert "effect is against a prompt of zeros" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("target", ["qairt", "onnxruntime"])
def test_a_value_of_the_prompt_that_is_wrong_is_found(
    target: str, case: str, tmp_path: Path
) -> None:
    pack = prompt_pack(tmp_path, case, target)
    assert verify(pack).ok

    def edit(tensors: Tensors) -> None:
        for values in tensors.values():
            values.reshape(-1)[-1] += np.float32(0.1)

    edit_tensors(pack / target / "prompt" / "prompt.safetensors", edit)
    rehash(pack)
    assert failed(verify(pack)) == {"prompt"}


def test_keys_in_the_place_of_values_are_found(tmp_path: Path) -> None:
    pack = prompt_pack(tmp_path, "prefix_tuning")

    def edit(tensors: Tensors) -> None:
        values = tensors["past_key_values"]
        tensors["past_key_values"] = np.ascontiguousarray(values[[1, 0, 3, 2]])

    edit_tensors(pack / "qairt" / "prompt" / "prompt.safetensors", edit)
    rehash(pack)
    assert failed(verify(pack)) == {"prompt"}


def test_a_prompt_of_another_shape_is_refused(case: str, tmp_path: Path) -> None:
    pack = prompt_pack(tmp_path, case)

    def edit(tensors: Tensors) -> None:
        for name, values in tensors.items():
            tensors[name] = np.ascontiguousarray(values[:1])

    edit_tensors(pack / "qairt" / "prompt" / "prompt.safetensors", edit)
    rehash(pack)
    with pytest.raises(VerificationError, match="the soft prompt's file has"):
        verify(pack)


def test_a_record_of_another_shape_is_refused(case: str, tmp_path: Path) -> None:
    pack = prompt_pack(tmp_path, case)
    prompt = read_manifest(pack).use_cases[1].prompt
    assert prompt is not None
    shape = [*prompt.shape[:-2], prompt.shape[-2] - 1, prompt.shape[-1]]
    edit_manifest(pack, lambda m: m["use_cases"][1]["prompt"].update(shape=shape))
    with pytest.raises(VerificationError, match="the manifest has a soft prompt of shape"):
        verify(pack)


def test_given_inputs_hold_the_whole_sequence(tmp_path: Path) -> None:
    pack = prompt_pack(tmp_path, "prompt_tuning")
    tokens = len(load_file(pack / "qairt" / "prompt" / "prompt.safetensors")["prefix_embeds"])
    rng = np.random.default_rng(0)
    for length, fits in ((tokens, False), (tokens + 1, True)):
        path = tmp_path / f"{length}.npz"
        np.savez(path, inputs_embeds=rng.normal(size=(2, length, DIM)).astype(np.float32))
        if fits:
            assert verify(pack, inputs=path).ok
            continue
        with pytest.raises(VerificationError, match="leaves no room for the soft prompt") as e:
            verify(pack, inputs=path)
        assert e.value.hint is not None
        assert "--inputs FILE" in e.value.hint


def test_lengths_of_a_past_reach_masks_and_positions() -> None:
    graph = GraphBuilder()
    graph.input("input_ids", ("batch", "sequence"), "int64")
    graph.input("attention_mask", ("batch", "total_sequence"), "int64")
    graph.input("position_ids", ("batch", "sequence"), "int64")
    graph.input("past_key_values.0.key", ("batch", 2, "past_sequence", 4))
    found = random_inputs(graph.model(), 0, Lengths(tokens=3, past=5))
    assert found["input_ids"].shape == (1, 3)
    assert found["attention_mask"].shape == (1, 8)
    assert found["position_ids"].tolist() == [[5, 6, 7]]
    assert found["past_key_values.0.key"].shape == (1, 2, 5, 4)


@pytest.mark.parametrize(("case", "base"), sorted(BASES.items()))
def test_a_pack_of_prompts_alone_is_verified(case: str, base: str, tmp_path: Path) -> None:
    """No weight changes, so that only the engine's fusions tell what rounding costs.

    Its adapter files hold nothing: there is no input that they could replace.
    """
    graph = KINDS / "bases" / base / "model.onnx"
    result = mixed(tmp_path / "pack", graph, {"it": {case: 1.0}}, targets=("qairt", "onnxruntime"))
    (target,) = (t for t in result.manifest.targets if t.name == "onnxruntime")
    assert target.inputs == ()
    assert [f.use_case for f in target.files if f.role == "adapter"] == ["base", "it"]
    verified = verify(result.output)
    assert verified.ok
    errors = {(t.target, e.use_case): e for t in verified.targets for e in t.errors}
    assert errors["onnxruntime", "it"].effect > 0.1
    assert errors["onnxruntime", "base"].bound < 1e-5 * errors["onnxruntime", "base"].magnitude
