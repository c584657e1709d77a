"""What a use case puts into the updatable weights: places, padding, ones and zeros.

Where factors are small whole numbers and scales powers of two, every sum is exact in float64 and
every cast to float32 is as well: such values are compared bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant.adapters.lowered import Lowered
from lora_quant.errors import AdapterError, Where
from lora_quant.graph.records import (
    AttachPoint,
    Branch,
    ConvGeometry,
    Form,
    LinearNode,
    ModulePart,
    TensorRecord,
)
from lora_quant.passes.factors import PlacedModule, expansion_matrix, place
from lora_quant.passes.slots import Slot
from tests.adapters.builders import pair, write
from tests.builders import GraphBuilder, attention
from tests.mixes import KINDS, controls, graph_of, mixed

Array = NDArray[Any]
IN = 3
Q, V = (f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qv")


def branch_of(parts: tuple[int, ...], max_rank: int, *, conv: bool, gain: float) -> Branch:
    """A branch over one fused linear layer, or over a convolution of kernel 2."""
    total, width = sum(parts), max_rank * len(parts)
    offsets = np.cumsum((0, *parts))
    linear = LinearNode(
        node="fc",
        op="Conv" if conv else "MatMul",
        form=Form.CONV if conv else Form.MATMUL,
        x="x",
        weight="w",
        product="y",
        in_features=IN,
        out_features=total,
        dtype="float32",
        weight_is_in_out=not conv,
        conv=ConvGeometry((2,), (1,), (0, 0)) if conv else None,
        gain=gain,
    )
    point = AttachPoint(
        name="fc",
        linear=linear,
        output="y",
        bias_node=None,
        parts=tuple(
            ModulePart(f"part{number}", int(offset), size)
            for number, (offset, size) in enumerate(zip(offsets[:-1], parts, strict=True))
        ),
    )
    shape_a = (width, IN, 2) if conv else (IN, width)
    shape_b = (total, width, 1) if conv else (width, total)
    return Branch(
        attach=point,
        a_weight=TensorRecord("fc.lora_A.weight", shape_a, "float32"),
        b_weight=TensorRecord("fc.lora_B.weight", shape_b, "float32"),
        x="x",
        h="h",
        a="a",
        m="m",
        l="l",
        y="y",
    )


def lowered(rng: np.random.Generator, rank: int, out: int, kernel: tuple[int, ...]) -> Lowered:
    """Whole numbers up to 8, and scales that are powers of two."""
    A = rng.integers(-8, 9, size=(rank, IN, *kernel)).astype(np.float32)
    B = rng.integers(-8, 9, size=(out, rank)).astype(np.float32)
    return Lowered(A, B, 2.0 ** rng.integers(-2, 3, size=rank).astype(np.float64))


def product(branch: Branch, A: Array, B: Array, E: Array, alpha: Array) -> Array:
    """`[out, in * kernel]` of a branch's tensors: B diag(alpha E) A, each part with its ranks."""
    linear = branch.attach.linear
    width = branch.a_weight.shape[0 if linear.form is Form.CONV else 1]
    if linear.form is not Form.CONV:
        A, B = A.T, B.T
    s = np.tile(alpha @ E.astype(np.float64), len(branch.attach.parts))
    flat = A.reshape(width, -1).astype(np.float64)
    made: Array = (B.reshape(len(B), width).astype(np.float64) * s) @ flat
    return made


@st.composite
def use_cases(draw: st.DrawFn) -> tuple[Branch, list[tuple[Lowered, Slot, int]], int]:
    """A branch, and adapters with slots that follow each other; some leave parts out."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parts = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    is_conv = draw(st.booleans()) and len(parts) == 1
    ranks = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    padding = draw(st.integers(0, 3))
    gain = draw(st.sampled_from([1.0, 2.0, -0.5]))
    strengths = st.sampled_from([1.0, 0.5, -0.25, 0.0, 2.0])
    branch = branch_of(parts, sum(ranks) + padding, conv=is_conv, gain=gain)
    found, start = [], 0
    for index, rank in enumerate(ranks):
        scale = 2.0 ** draw(st.integers(-2, 2))
        slot = Slot(index, f"a{index}", start, rank, draw(strengths), scale)
        for part, out in enumerate(parts):
            own = draw(st.integers(0, rank))
            if own:
                found.append((lowered(rng, own, out, (2,) if is_conv else ()), slot, part))
        start += rank
    return branch, found, len(ranks)


def placed(branch: Branch, found: list[tuple[Lowered, Slot, int]]) -> tuple[Array, Array]:
    A = np.zeros(branch.a_weight.shape, np.float32)
    B = np.zeros(branch.b_weight.shape, np.float32)
    for module, slot, part in found:
        place(A, B, branch, PlacedModule(module, slot, part, Where()))
    return A, B


@given(use_cases())
def test_what_is_placed_is_the_sum_of_the_adapters(
    drawn: tuple[Branch, list[tuple[Lowered, Slot, int]], int],
) -> None:
    branch, found, count = drawn
    linear = branch.attach.linear
    expected = np.zeros((linear.out_features, IN * (2 if linear.conv else 1)))
    for module, slot, part in found:
        rows = branch.attach.parts[part]
        update = (module.B * module.s) @ module.A.reshape(module.rank, -1)
        expected[rows.offset : rows.offset + rows.size] += slot.alpha * linear.gain * update
    width = branch.a_weight.shape[0 if linear.conv else 1] // len(branch.attach.parts)
    record = TensorRecord("lora_alpha.expansion", (count + 1, width), "float32")
    slots = {slot.index: slot for _, slot, _ in found}
    E = expansion_matrix(record, tuple(slots.values()))
    alpha = np.zeros(count + 1)
    for index, slot in slots.items():
        alpha[index] = slot.alpha
    A, B = placed(branch, found)
    np.testing.assert_array_equal(product(branch, A, B, E, alpha), expected)
    # whatever the order in which they are placed, the tensors are the same
    for again, first in zip(placed(branch, found[::-1]), (A, B), strict=True):
        np.testing.assert_array_equal(again, first)


@given(use_cases(), st.integers(1, 4))
def test_more_ranks_than_the_adapters_have_change_nothing(
    drawn: tuple[Branch, list[tuple[Lowered, Slot, int]], int], more: int
) -> None:
    branch, found, count = drawn
    linear = branch.attach.linear
    parts = tuple(part.size for part in branch.attach.parts)
    width = branch.a_weight.shape[0 if linear.conv else 1] // len(parts)
    wider = branch_of(parts, width + more, conv=linear.conv is not None, gain=linear.gain)
    results = []
    for one, columns in ((branch, width), (wider, width + more)):
        slots = {slot.index: slot for _, slot, _ in found}
        record = TensorRecord("E", (count, columns), "float32")
        E = expansion_matrix(record, tuple(slots.values()))
        alpha = np.zeros(count)
        for index, slot in slots.items():
            alpha[index] = slot.alpha
        results.append(product(one, *placed(one, found), E, alpha))
    first, second = results
    np.testing.assert_array_equal(first, second)


def weights_of(folder: Path, use_case: str) -> dict[str, Array]:
    return load_file(folder / "pack" / "qairt" / use_case / "lora_weights.safetensors")


def test_what_no_adapter_of_a_use_case_touches_is_neutral(tmp_path: Path) -> None:
    """g, h and the router's rest are ones, everything else is zero: the base, bit for bit."""
    given = {
        "dora": {"lora_dora": 1.0},
        "ff": {"ia3_feedforward": 1.0},
        "lily": {"lily": 1.0},
        "bias": {"beft": 1.0},
    }
    result = mixed(tmp_path / "pack", graph_of("llama"), given)
    roles = {tensor.name: tensor.role for tensor in result.manifest.tensors}
    assert set(roles.values()) == {
        "a_weight",
        "b_weight",
        "c",
        "expansion",
        "g",
        "h",
        "router",
        "router_expansion",
        "router_rest",
    }
    of_base = weights_of(tmp_path, "base")
    assert set(of_base) == set(roles)
    for name, values in of_base.items():
        is_one = roles[name] in ("g", "h", "router_rest")
        np.testing.assert_array_equal(values, np.full(values.shape, float(is_one), np.float32))
    active = {
        "dora": {"a_weight", "b_weight", "expansion", "g"},
        "ff": {"g", "h"},
        "lily": {"a_weight", "b_weight", "expansion"}
        | {"router", "router_expansion", "router_rest"},
        "bias": {"c"},
    }
    for use_case, expected in active.items():
        own = weights_of(tmp_path, use_case)
        moved = {roles[n] for n, values in own.items() if not np.array_equal(values, of_base[n])}
        assert moved == expected, use_case


def test_the_parts_of_a_fused_projection_have_ranks_of_their_own(tmp_path: Path) -> None:
    graph = attention(layers=1, style="packed").save(tmp_path / "base.onnx")
    q, v = pair(Q, features=(8, 8), rank=2), pair(V, features=(8, 4), rank=2)
    path = write(tmp_path / "tone", q | v, r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    given = {"it": {"tone": 1.0}}
    result = mixed(tmp_path / "pack", graph, given, paths={"tone": path})
    found = weights_of(tmp_path, "it")
    (a,) = (values for name, values in found.items() if name.endswith("lora_A.weight"))
    (b,) = (values for name, values in found.items() if name.endswith("lora_B.weight"))
    rank = result.manifest.max_rank
    # k has no tensors and no ranks; its rows are left alone
    assert (a.shape, b.shape) == ((8, 2 * rank), (2 * rank, 16))
    tensors = {name.removeprefix("base_model.model."): values for name, values in (q | v).items()}
    for number, (module, rows) in enumerate(((Q, slice(0, 8)), (V, slice(12, 16)))):
        ranks = slice(number * rank, (number + 1) * rank)
        np.testing.assert_array_equal(a[:, ranks], tensors[f"{module}.lora_A.weight"].T)
        np.testing.assert_array_equal(b[ranks, rows], tensors[f"{module}.lora_B.weight"].T)
        assert not np.delete(b[ranks], np.r_[rows], axis=1).any()


def test_slots_start_where_the_rank_multiple_says(tmp_path: Path) -> None:
    given = {"it": {"lora_plain": 1.0, "lora_patterns": 0.5}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given, rank_multiple=8)
    (slots,) = (u.slots for u in result.manifest.use_cases if u.name == "it")
    assert all(slot.start % 8 == 0 for slot in slots)
    assert result.manifest.max_rank % 8 == 0
    found = weights_of(tmp_path, "it")
    used = np.concatenate([np.arange(s.start, s.start + s.rank) for s in slots])
    idle = np.setdiff1d(np.arange(result.manifest.max_rank), used)
    assert len(idle)
    assert not found["lora_alpha.expansion"][:, idle].any()
    for name, values in found.items():
        if name.endswith("lora_B.weight"):
            assert not values[idle].any()


@pytest.mark.parametrize("tensor", ["A", "B"])
def test_a_factor_that_half_precision_cannot_hold_is_refused(tensor: str, tmp_path: Path) -> None:
    graph = attention(layers=1, dtype="float16").save(tmp_path / "base.onnx")
    tensors = pair(Q, features=(8, 8), rank=2)
    name = f"base_model.model.{Q}.lora_{tensor}.weight"
    tensors[name] = tensors[name] * 1e6
    path = write(tmp_path / "tone", tensors, r=2, lora_alpha=2)
    with pytest.raises(
        AdapterError, match=rf"values of lora_{tensor} reach .* float16 can hold"
    ) as c:
        mixed(tmp_path / "pack", graph, {"it": {"tone": 1.0}}, paths={"tone": path})
    assert (c.value.where.use_case, c.value.where.adapter, c.value.where.module) == (
        "it",
        "tone",
        Q,
    )
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("rank_or_slot", ["rank", "slot"])
def test_a_vector_that_half_precision_cannot_hold_is_refused(
    rank_or_slot: str, tmp_path: Path
) -> None:
    graph = attention(layers=1, dtype="float16").save(tmp_path / "base.onnx")
    folder = tmp_path / "scale"
    folder.mkdir()
    values = np.full((8, 1), 1e6, np.float32)
    save_file({f"base_model.model.{Q}.ia3_l": values}, folder / "adapter_model.safetensors")
    config = {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"g\.weight reach 1e\+06, more than float16"):
        mixed(
            tmp_path / "pack",
            graph,
            {"it": {"g": 1.0}},
            paths={"g": folder},
            alpha_layout=rank_or_slot,
        )


def test_the_gain_of_a_gemm_multiplies_the_update_as_it_does_the_weight(tmp_path: Path) -> None:
    """alpha x W: PyTorch's W is what the graph stores, so the update is scaled beside it."""
    graph = GraphBuilder()
    x = graph.input("x", (4, 6))
    inputs = [x, graph.weight("fc.weight", 6, 5)]
    graph.output(graph.node("Gemm", inputs, "/fc/Gemm", "y", alpha=0.5), (4, 5))
    file = graph.save(tmp_path / "base.onnx")
    tensors = pair("fc", rank=4)
    path = write(tmp_path / "tone", tensors, target_modules=["fc"])
    given = {"it": {"tone": 1.0}}
    result = mixed(tmp_path / "pack", file, given, paths={"tone": path})
    found = weights_of(tmp_path, "it")
    np.testing.assert_array_equal(
        found["fc.lora_B.weight"], tensors["base_model.model.fc.lora_B.weight"].T / 2
    )
    (alpha,) = (values for name, values in controls(result, "it").items() if name == "lora_alpha")
    np.testing.assert_array_equal(alpha, np.array([1, 0], np.float32))


def test_weights_do_not_depend_on_other_use_cases(tmp_path: Path) -> None:
    """Apart from padding: the same adapter beside others has the same numbers in its ranks."""
    alone = mixed(tmp_path / "pack", graph_of("llama"), {"it": {"lora_plain": 1.0}})
    first = weights_of(tmp_path, "it")
    second_folder = tmp_path / "second"
    second_folder.mkdir()
    given = {"it": {"lora_plain": 1.0}, "other": {"loha_linear": 1.0}, "dora": {"lora_dora": 1.0}}
    mixed(second_folder / "pack", graph_of("llama"), given)
    second = weights_of(second_folder, "it")
    rank = alone.manifest.max_rank
    for name, values in first.items():
        wide = second[name]
        if name.endswith("lora_A.weight"):
            wide = wide[:, :rank]
        elif name.endswith("lora_B.weight"):
            wide = wide[:rank]
        elif name.endswith("expansion"):
            wide = wide[: len(values), :rank]
        np.testing.assert_array_equal(wide, values)


def test_a_use_case_may_name_an_adapter_that_others_do_not_touch(tmp_path: Path) -> None:
    """Modules of one adapter alone: the other's ranks are zero there."""
    given = {"it": {"lora_embed_tokens": 1.0, "lora_plain": 1.0}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given)
    config = json.loads((KINDS / "lora_plain" / "adapter_config.json").read_text("utf-8"))
    (slots,) = (u.slots for u in result.manifest.use_cases if u.name == "it")
    for name, values in weights_of(tmp_path, "it").items():
        if name.endswith("lora_B.weight"):
            is_plain = any(f".{leaf}." in name for leaf in config["target_modules"])
            other = slots[0] if is_plain else slots[1]
            own = slots[1] if is_plain else slots[0]
            assert not values[other.start : other.start + other.rank].any()
            assert values[own.start : own.start + own.rank].any()
