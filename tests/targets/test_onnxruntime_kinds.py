"""What is not plain LoRA, through the target `onnxruntime`, against PEFT's own outputs.

Tolerances are those of test_kinds_compiled. With its defaults, and with the file of a use case
without adapters, every graph is its base bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant import BuildOptions, build
from lora_quant.api import BuildResult
from tests import test_compositions as compositions
from tests import test_exports as exports
from tests.builders import attention
from tests.mixes import KINDS, graph_of, mixed
from tests.run_adapter import parameters, run, same, session_of
from tests.run_graph import largest
from tests.test_gates import IN, KV, low_rank
from tests.test_kinds_compiled import CASES, EFFECT, RELATIVE, compiled, oracle

Array = NDArray[Any]
TARGET = ("onnxruntime",)
GATE = np.array(CASES["lora_alora"]["gate"], np.float32)
# One or two of each way in which a kind differs from A and B at a linear layer.
KINDS_HERE = (
    *("adalora_trained", "delora_patterns", "gralora_hybrid", "vera_saved", "randlora_seeded"),
    *("lora_patterns", "lora_rslora", "loha_linear", "lokr_full", "vblora_topk", "tinylora_saved"),
    *("lora_conv1d", "lora_conv2d", "lora_conv_grouped", "lokr_conv2d_tucker", "hra_conv"),
    *("lora_embedding", "lora_dora_embedding", "lora_embedding_tied", "lora_mha", "beft_qwen"),
    *("lora_dora", "lora_dora_conv2d", "lora_dora_grouped", "lora_dora_bf16", "ia3_conv_grouped"),
    *("ia3_feedforward", "ia3_out", "ia3_gpt2", "glora_vector", "lora_bias", "lora_bias_all_norms"),
    *("lora_gpt2", "lora_dora_gpt2", "deft_para_relu", "peanut_deep", "poly_task2", "osf_rank"),
    *("lora_modules_to_save", "lora_norms_to_save", "lora_layer_replication", "ln_tuning_gpt2"),
    *("trainable_tokens_tied", "lora_trainable_tokens", "lora_pissa_rslora", "unilora_saved"),
)


def files(result: BuildResult) -> Path:
    return result.output / "onnxruntime"


def adapter_of(result: BuildResult, use_case: str) -> Path:
    return files(result) / f"{use_case}.onnx_adapter"


def is_peft(ours: Array, theirs: Array) -> bool:
    return largest(ours, theirs) <= RELATIVE * float(np.abs(theirs).max())


@pytest.mark.parametrize("case", KINDS_HERE)
def test_the_adapter_file_makes_the_base_pefts_model(case: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(case)
    result = compiled(case, tmp_path / "pack", BuildOptions(targets=TARGET))
    session = session_of(files(result) / "model.onnx")
    assert is_peft(run(session, adapter_of(result, "it"), inputs), theirs)
    base = run(session_of(graph_of(CASES[case]["base"])), None, inputs)
    assert largest(base, theirs) >= EFFECT * float(np.abs(theirs).max())
    assert same(run(session, None, inputs), base)
    assert same(run(session, adapter_of(result, "base"), inputs), base)


@pytest.mark.parametrize("name", compositions.SUMS)
def test_adapters_that_add_up_do_so_here(name: str, tmp_path: Path) -> None:
    inputs, theirs = compositions.oracle(name)
    graph = graph_of(compositions.CASES[name]["base"])
    first, *_ = compositions.CASES[name]["adapters"]
    given = {"it": compositions.use_case(name), "first": {first: 1.0}}
    result = mixed(tmp_path / "pack", graph, given, targets=TARGET)
    session = session_of(files(result) / "model.onnx")
    assert is_peft(run(session, adapter_of(result, "it"), inputs), theirs)
    alone = run(session, adapter_of(result, "first"), inputs)
    assert largest(alone, theirs) >= EFFECT * float(np.abs(theirs).max())


@pytest.mark.parametrize("name", compositions.IN_ORDER)
def test_adapters_that_act_in_order_do_so_here(name: str, tmp_path: Path) -> None:
    inputs, theirs = compositions.oracle(name)
    result = mixed(
        tmp_path / "pack",
        graph_of(compositions.CASES[name]["base"]),
        {"it": compositions.use_case(name)},
        targets=TARGET,
        stacking="in-order",
    )
    session = session_of(files(result) / "model.onnx")
    assert is_peft(run(session, adapter_of(result, "it"), inputs), theirs)


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_a_gate_is_an_input_of_one_number_for_each_slot(layout: str, tmp_path: Path) -> None:
    expected = load_file(KINDS / "lora_alora" / "expected.safetensors")
    tokens = {"input_ids": expected["input_ids"].astype(np.int64)}
    given = {"it": {"lora_alora": 1.0}, "other": {"lora_rslora": 1.0}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given, targets=TARGET, alpha_layout=layout)
    session = session_of(files(result) / "model.onnx")
    gate = np.ones((*GATE.shape, 2), np.float32)
    gate[..., 0] = GATE
    base = run(session_of(graph_of("llama")), None, tokens)
    for name, wanted in (("it", expected["logits"]), ("base", base)):
        ours = run(session, adapter_of(result, name), {**tokens, "lora_alpha_gate": gate})
        assert is_peft(ours, wanted)
    closed = run(
        session, adapter_of(result, "it"), {**tokens, "lora_alpha_gate": np.zeros_like(gate)}
    )
    assert same(closed, base)
    told = result.manifest.targets[0].alpha or result.manifest.alpha
    assert told is not None
    assert told.gate is not None
    assert told.gate.shape == (2,)


@pytest.mark.parametrize("case", ["lily", "lily_shared"])
def test_a_router_keeps_its_ranks_in_their_places(case: str, tmp_path: Path) -> None:
    """PEFT averages over the whole batch, ours over each sequence: see tests/test_gates.py."""
    expected = load_file(KINDS / case / "expected.safetensors")
    inputs = {"input_ids": expected["input_ids"].astype(np.int64)}
    result = mixed(tmp_path / "pack", graph_of("llama"), {"it": {case: 1.0}}, targets=TARGET)
    session = session_of(files(result) / "model.onnx")
    assert is_peft(run(session, adapter_of(result, "it"), inputs), expected["logits_alone"])
    base = run(session_of(graph_of("llama")), None, inputs)
    assert same(run(session, None, inputs), base)
    assert same(run(session, adapter_of(result, "base"), inputs), base)
    held = parameters(adapter_of(result, "it"))
    padded = {tensor.name: tensor.shape for tensor in result.manifest.tensors}
    routed = [name for name in held if name.endswith("lora_router.weight")]
    assert routed
    for name in routed:
        weight = name.replace("lora_router", "lora_A")
        assert held[weight].shape == padded[weight]


@pytest.mark.parametrize("style", ["path", "packed"])
def test_parts_of_a_fused_projection_have_their_ranks_side_by_side(
    style: str, tmp_path: Path
) -> None:
    """q and k have 3 ranks each, v has none; a second adapter brings 2 to v.

    Every output is a sum of about 40 products of numbers below 64: 40 roundings of 2**-24 each.
    """
    graph = attention(layers=1, hidden=IN, kv=KV, style=style)
    file = graph.save(tmp_path / "base.onnx")
    sizes = {"one": {"q_proj": IN, "k_proj": KV}, "two": {"v_proj": KV}}
    ranks = {"one": 3, "two": 2}
    tensors = {n: low_rank(tmp_path / n, sizes[n], rank=ranks[n]) for n in sizes}
    paths = {name: tmp_path / name for name in sizes}
    given = {"both": {"two": 2.0, "one": 0.5}, "one": {"one": 1.0}}
    result = mixed(tmp_path / "pack", file, given, paths=paths, targets=TARGET)
    x = np.random.default_rng(4).normal(size=(2, 5, IN)).astype(np.float32) / 4
    wide = x.astype(np.float64)
    stored = [w.astype(np.float64) for w in graph.weights.values()]
    W, W_o = np.concatenate(stored[:-1], axis=1), stored[-1]
    session = session_of(files(result) / "model.onnx")
    for use_case, mix in given.items():
        qkv = wide @ W
        for name, strength in mix.items():
            for leaf in sizes[name]:
                A, B = (
                    tensors[name][f"{leaf}.lora_{side}.weight"].astype(np.float64) for side in "AB"
                )
                first = {"q_proj": 0, "k_proj": IN, "v_proj": IN + KV}[leaf]
                update = strength * 4 / ranks[name] * wide @ A.T @ B.T
                qkv[..., first : first + B.shape[0]] += update
        ours = run(session, adapter_of(result, use_case), {"x": x})
        assert largest(ours, wide + qkv @ W_o) <= 40 * 2.0**-24 * 64
    held = parameters(adapter_of(result, "both"))
    shapes = {n: v.shape for n, v in held.items() if n.endswith("lora_A.weight")}
    expected = [(IN, 3 + 3 + 2)] if style == "packed" else [(IN, 2), (IN, 3), (IN, 3)]
    assert sorted(shapes.values()) == expected


@pytest.mark.parametrize("exporter", [*exports.ATOL, "genai_int4"])
def test_graphs_of_every_exporter_take_adapter_files(exporter: str, tmp_path: Path) -> None:
    """Fused projections, float16 and MatMulNBits; for int4 the padded graph is the reference."""
    options = BuildOptions(targets=("qairt", "onnxruntime"))
    result = build(exports.config_for(exporter), tmp_path / "out", options)
    inputs = load_file(exports.EXPORTS / exporter / "inputs.safetensors")
    session = session_of(files(result) / "model.onnx")
    base = run(session_of(exports.EXPORTS / exporter / "model.onnx"), None, inputs)
    assert same(run(session, None, inputs), base)
    expected = exports.LOGITS["adapter"]
    if exporter == "genai_int4":
        expected = exports.logits(result.output, exporter, "on", 1.0)
    on = run(session, adapter_of(result, "on"), inputs)
    assert largest(on, expected) < exports.ATOL.get(exporter, exports.ATOL["genai_fp32"])
    assert largest(base, on) > 50 * exports.ATOL.get(exporter, exports.ATOL["genai_fp32"])


def test_a_file_without_anything_to_change_is_loaded(tmp_path: Path) -> None:
    """IA3 has no low rank, so that there is no alpha either: the base's file holds nothing."""
    result = compiled("ia3_out", tmp_path / "pack", BuildOptions(targets=TARGET))
    assert parameters(adapter_of(result, "base")) == {}
    held = parameters(adapter_of(result, "it"))
    assert held
    assert all(name.endswith("lora_g.weight") for name in held)


def test_only_what_is_replaced_is_in_the_file(tmp_path: Path) -> None:
    given = {"norms": {"ln_tuning_llama": 1.0}, "plain": {"lora_rslora": 1.0}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given, targets=TARGET)
    replaced = {one.name for one in result.manifest.targets[0].inputs if one.role == "replaced"}
    assert replaced
    assert parameters(adapter_of(result, "norms")).keys() - replaced == {"lora_alpha"}
    assert not replaced & parameters(adapter_of(result, "plain")).keys()


def test_a_soft_prompt_is_a_file_of_its_own(tmp_path: Path) -> None:
    given = {"it": {"prompt_tuning": 1.0}, "plain": {"lora_rslora": 1.0}}
    result = mixed(tmp_path / "pack", graph_of("llama_embeds"), given, targets=TARGET)
    prompt = load_file(files(result) / "it" / "prompt.safetensors")["prefix_embeds"]
    expected = load_file(KINDS / "prompt_tuning" / "expected.safetensors")
    assert prompt.ndim == 2
    assert adapter_of(result, "it").is_file()
    table = load_file(KINDS / "bases" / "llama" / "weights.safetensors")
    rows = table["model.embed_tokens.weight"][expected["input_ids"].astype(np.int64)]
    before = np.broadcast_to(prompt, (len(rows), *prompt.shape))
    inputs = {"inputs_embeds": np.concatenate([before, rows], axis=1)}
    session = session_of(files(result) / "model.onnx")
    ours = run(session, adapter_of(result, "it"), inputs)
    assert is_peft(ours[:, -expected["logits"].shape[1] :], expected["logits"])
