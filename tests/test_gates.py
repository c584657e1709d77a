"""Adapters whose low rank depends on the tokens: aLoRA's gate and LiLY's router, compiled.

Against PEFT's outputs the tolerance is that of test_kinds_compiled. Where the same graph is fed in
two ways that multiply by the same numbers, outputs are equal bit for bit.
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

from lora_quant.errors import UnsupportedAdapterError
from tests.builders import attention
from tests.mixes import KINDS, graph_of, mixed, outputs, use_case_of
from tests.run_graph import largest

Array = NDArray[Any]
RELATIVE = 1e-5
EFFECT = 1e-2
CASES: dict[str, dict[str, Any]] = json.loads((KINDS / "cases.json").read_text(encoding="utf-8"))
GATE = np.array(CASES["lora_alora"]["gate"], np.float32)
LLAMA = graph_of("llama")
LAYOUTS = pytest.mark.parametrize("layout", ["slot", "rank"])


def oracle(case: str) -> tuple[dict[str, Array], dict[str, Array]]:
    expected = load_file(KINDS / case / "expected.safetensors")
    return {"input_ids": expected["input_ids"].astype(np.int64)}, expected


def changed(folder: Path, case: str, **fields: Any) -> Path:
    """A copy of an adapter with other fields in its configuration."""
    copy = folder / f"{case}_changed"
    shutil.copytree(KINDS / case, copy)
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | fields), encoding="utf-8")
    return copy


def is_peft(ours: Array, theirs: Array) -> bool:
    return largest(ours, theirs) <= RELATIVE * float(np.abs(theirs).max())


@LAYOUTS
def test_the_gate_is_fed_as_the_invocation_tokens_say(layout: str, tmp_path: Path) -> None:
    inputs, expected = oracle("lora_alora")
    given = {"it": {"lora_alora": 1.0}}
    result = mixed(tmp_path / "pack", LLAMA, given, alpha_layout=layout)
    ours = outputs(result, "it", inputs, {"lora_alora": GATE})
    assert is_peft(ours, expected["logits"])
    ungated = outputs(result, "it", inputs, {"lora_alora": np.ones_like(GATE)})
    assert not is_peft(ungated, expected["logits"])


@LAYOUTS
def test_an_open_gate_is_the_adapter_without_one(layout: str, tmp_path: Path) -> None:
    inputs, _ = oracle("lora_alora")
    plain = changed(tmp_path, "lora_alora", alora_invocation_tokens=None)
    gated = mixed(tmp_path / "gated", LLAMA, {"it": {"lora_alora": 0.7}}, alpha_layout=layout)
    ungated = mixed(
        tmp_path / "plain",
        LLAMA,
        {"it": {"plain": 0.7}},
        paths={"plain": plain},
        alpha_layout=layout,
    )
    assert ungated.manifest.alpha is not None
    assert ungated.manifest.alpha.gate is None
    ours = outputs(gated, "it", inputs, {"lora_alora": np.ones_like(GATE)})
    np.testing.assert_array_equal(ours, outputs(ungated, "it", inputs))


@LAYOUTS
def test_a_closed_gate_is_the_base(layout: str, tmp_path: Path) -> None:
    inputs, _ = oracle("lora_alora")
    result = mixed(tmp_path / "pack", LLAMA, {"it": {"lora_alora": 1.0}}, alpha_layout=layout)
    closed = {"lora_alora": np.zeros_like(GATE)}
    ours = outputs(result, "it", inputs, closed)
    np.testing.assert_array_equal(ours, outputs(result, "base", inputs, closed))
    open_gate = {"lora_alora": np.ones_like(GATE)}
    np.testing.assert_array_equal(ours, outputs(result, "base", inputs, open_gate))


@LAYOUTS
def test_a_gate_closes_its_own_slot_only(layout: str, tmp_path: Path) -> None:
    inputs, _ = oracle("lora_alora")
    both = {"lora_alora": 1.0, "lora_rslora": 0.5}
    given = {"both": both, "other": {"lora_rslora": 0.5}}
    plain = changed(tmp_path, "lora_alora", alora_invocation_tokens=None)
    result = mixed(tmp_path / "pack", LLAMA, given, alpha_layout=layout)
    ungated = mixed(
        tmp_path / "plain",
        LLAMA,
        {"both": {"lora_alora": 1.0, "lora_rslora": 0.5}},
        paths={"lora_alora": plain},
        alpha_layout=layout,
    )
    ones, zeros = np.ones_like(GATE), np.zeros_like(GATE)
    alone = outputs(result, "other", inputs, {"lora_alora": ones})
    closed = outputs(result, "both", inputs, {"lora_alora": zeros})
    opened = outputs(result, "both", inputs, {"lora_alora": ones})
    # B sums over other ranks, of which those of the closed slot are zero, in another order
    assert is_peft(closed, alone)
    np.testing.assert_array_equal(opened, outputs(ungated, "both", inputs))
    ours = outputs(result, "both", inputs, {"lora_alora": GATE})
    first = int(GATE[0].argmax())
    assert is_peft(ours[:, :first], closed[:, :first])
    assert is_peft(ours[1], closed[1])
    difference = np.abs(ours[0, first:] - closed[0, first:]).max(axis=-1)
    assert difference.min() >= EFFECT * float(np.abs(closed).max())


@LAYOUTS
def test_the_manifest_names_the_gate_and_who_is_gated(layout: str, tmp_path: Path) -> None:
    given = {"both": {"lora_alora": 1.0, "lora_rslora": 0.5}, "other": {"lora_rslora": 1.0}}
    result = mixed(tmp_path / "pack", LLAMA, given, alpha_layout=layout, alpha_name="strength")
    alpha = result.manifest.alpha
    assert alpha is not None
    assert alpha.gate is not None
    assert (alpha.gate.tensor, alpha.gate.shape) == ("strength_gate", alpha.shape)
    tokens = json.loads((KINDS / "lora_alora" / "adapter_config.json").read_text())
    told = {a.name: a.invocation_tokens for a in result.manifest.adapters}
    assert told == {"lora_alora": tuple(tokens["alora_invocation_tokens"]), "lora_rslora": ()}
    assert [slot.gated for slot in use_case_of(result, "both").slots] == [True, False]
    assert [slot.gated for slot in use_case_of(result, "other").slots] == [False]
    graph = onnx.load(str(result.output / "qairt" / "model.onnx")).graph
    (gate,) = (value for value in graph.input if value.name == "strength_gate")
    sizes = gate.type.tensor_type.shape.dim
    assert len(sizes) == 3
    assert not sizes[0].HasField("dim_value")
    assert not sizes[1].HasField("dim_value")
    assert sizes[2].dim_value == alpha.shape[-1]
    assert {f.rule for f in result.findings} >= {"adapter/invocation-tokens"}


@pytest.mark.parametrize("case", ["lora_alora", "lily"])
def test_what_depends_on_the_tokens_is_not_merged(case: str, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedAdapterError,
        match="what this module adds depends on the tokens: it cannot be put into a weight",
    ) as caught:
        mixed(tmp_path / "pack", LLAMA, {"it": {case: 1.0}}, merge="it")
    assert (caught.value.where.use_case, caught.value.where.adapter) == ("it", case)
    assert caught.value.hint == "build without --merge"


@pytest.mark.parametrize("case", ["lily", "lily_shared"])
@LAYOUTS
def test_a_router_averages_over_each_sequence(case: str, layout: str, tmp_path: Path) -> None:
    """PEFT averages over the whole batch: a batch of one is the same model for both."""
    inputs, expected = oracle(case)
    result = mixed(tmp_path / "pack", LLAMA, {"it": {case: 1.0}}, alpha_layout=layout)
    ours = outputs(result, "it", inputs)
    assert is_peft(ours, expected["logits_alone"])
    for row in range(len(ours)):
        one = outputs(result, "it", {"input_ids": inputs["input_ids"][row : row + 1]})
        assert is_peft(one, expected["logits_alone"][row : row + 1])
    of_the_batch = largest(ours, expected["logits"])
    assert of_the_batch >= EFFECT * float(np.abs(ours).max())
    base = outputs(result, "base", inputs)
    assert largest(base, ours) >= EFFECT * float(np.abs(ours).max())


@pytest.mark.parametrize("strength", [0.5, -2.0, 0.0])
def test_a_strength_multiplies_what_the_router_weighs(strength: float, tmp_path: Path) -> None:
    inputs, _ = oracle("lily")
    config = json.loads((KINDS / "lily" / "adapter_config.json").read_text(encoding="utf-8"))
    result = mixed(tmp_path / "pack", LLAMA, {"it": {"lily": strength}})
    if not strength:
        base = outputs(result, "base", inputs)
        np.testing.assert_array_equal(outputs(result, "it", inputs), base)
        return
    scaled = changed(tmp_path, "lily", scaling=config["scaling"] * strength)
    other = mixed(tmp_path / "other", LLAMA, {"it": {"it": 1.0}}, paths={"it": scaled})
    # both are powers of two times one factor: the same numbers, whichever holds it
    np.testing.assert_array_equal(outputs(result, "it", inputs), outputs(other, "it", inputs))


def test_two_routers_do_not_meet_on_a_module(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedAdapterError, match="adapters 'lily' and 'again' both route on one module"
    ) as caught:
        mixed(
            tmp_path / "pack",
            LLAMA,
            {"it": {"lily": 1.0, "again": 1.0}},
            paths={"again": KINDS / "lily"},
        )
    assert caught.value.where.use_case == "it"
    assert caught.value.hint == "use them in separate use cases"


def test_all_routers_have_as_many_experts(tmp_path: Path) -> None:
    given = {"one": {"lily": 1.0}, "other": {"lily_shared": 1.0}}
    with pytest.raises(
        UnsupportedAdapterError,
        match=r"different numbers of experts: 2 \('lily'\) and 3 \('lily_shared'\)",
    ) as caught:
        mixed(tmp_path / "pack", LLAMA, given)
    assert caught.value.hint == "build them as separate packs"


IN, KV = 8, 4
PREFIX = "base_model.model.model.layers.0.self_attn."
OUT = {"q_proj": IN, "k_proj": KV, "v_proj": KV}


def routed(folder: Path, sizes: dict[str, int], *, rank: int, experts: int) -> dict[str, Array]:
    """Write a LiLY adapter of the projections of one layer; returns its tensors."""
    rng = np.random.default_rng(rank)
    tensors = {}
    for leaf, out in sizes.items():
        shapes = {
            "lily_A": (rank, IN),
            "lily_B": (experts * rank, out),
            "lily_router": (experts, rank),
        }
        for part, shape in shapes.items():
            tensors[f"{PREFIX}{leaf}.{part}.weight"] = rng.normal(size=shape).astype(np.float32)
    config = {"peft_type": "LILY", "r": rank, "num_B": experts, "scaling": 1.5}
    return written(folder, tensors, config | {"target_modules": list(sizes)})


def low_rank(folder: Path, sizes: dict[str, int], *, rank: int) -> dict[str, Array]:
    rng = np.random.default_rng(rank)
    tensors = {}
    for leaf, out in sizes.items():
        for part, shape in {"lora_A": (rank, IN), "lora_B": (out, rank)}.items():
            tensors[f"{PREFIX}{leaf}.{part}.weight"] = rng.normal(size=shape).astype(np.float32)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": list(sizes)}
    return written(folder, tensors, config)


def written(folder: Path, tensors: dict[str, Array], config: dict[str, Any]) -> dict[str, Array]:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return {name.removeprefix(PREFIX): values for name, values in tensors.items()}


def routed_update(x: Array, lily: dict[str, Array], leaf: str) -> Array:
    """1.5 sum_e p_e B_e A x by the formula of the kind, float64; x `[batch, tokens, in]`."""
    A, B, router = (
        lily[f"{leaf}.{part}.weight"].astype(np.float64)
        for part in ("lily_A", "lily_B", "lily_router")
    )
    hidden = x @ A.T
    powers = np.exp(hidden @ router.T)
    shares = (powers / powers.sum(-1, keepdims=True)).mean(axis=1)
    experts = B.reshape(len(router), len(A), -1)
    made: Array = 1.5 * np.einsum("be,eio,bti->bto", shares, experts, hidden)
    return made


@pytest.mark.parametrize("style", ["path", "packed"])
def test_a_router_beside_low_rank_weighs_its_own_ranks_of_its_own_part(
    style: str, tmp_path: Path
) -> None:
    """q and v route, q and k have plain low rank; `packed` computes all three in one node.

    Every output is a sum of about 40 products of numbers below 64: 40 roundings of 2**-24 each.
    """
    graph = attention(layers=1, hidden=IN, kv=KV, style=style)
    file = graph.save(tmp_path / "base.onnx")
    lily = routed(tmp_path / "lily", {"q_proj": IN, "v_proj": KV}, rank=2, experts=3)
    lora = low_rank(tmp_path / "lora", {"q_proj": IN, "k_proj": KV}, rank=3)
    paths = {name: tmp_path / name for name in ("lily", "lora")}
    given = {"it": {"lora": 0.5, "lily": 2.0}}
    result = mixed(tmp_path / "pack", file, given, paths=paths)
    x = np.random.default_rng(4).normal(size=(2, 5, IN)).astype(np.float32) / 4
    stored = [w.astype(np.float64) for w in graph.weights.values()]
    W, W_o = np.concatenate(stored[:-1], axis=1), stored[-1]
    wide = x.astype(np.float64)
    parts = {}
    for leaf, out in OUT.items():
        parts[leaf] = np.zeros((2, 5, out))
        if f"{leaf}.lily_A.weight" in lily:
            parts[leaf] += 2.0 * routed_update(wide, lily, leaf)
        if f"{leaf}.lora_A.weight" in lora:
            A, B = (
                lora[f"{leaf}.{part}.weight"].astype(np.float64) for part in ("lora_A", "lora_B")
            )
            parts[leaf] += 0.5 * 4 / 3 * wide @ A.T @ B.T
    qkv = wide @ W + np.concatenate(list(parts.values()), axis=-1)
    expected = wide + qkv @ W_o
    ours = outputs(result, "it", {"x": x})
    assert largest(ours, expected) <= 40 * 2.0**-24 * 64
    assert largest(outputs(result, "base", {"x": x}), expected) >= 1.0
