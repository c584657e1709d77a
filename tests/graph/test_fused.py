"""Projections that one node computes for several modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.errors import AttachPointError
from lora_quant.graph.attach.fused import are_fused, fused_module, fused_parts
from lora_quant.graph.attach.resolver import Placement
from lora_quant.graph.records import ModulePart
from tests.builders import attention
from tests.graph.helpers import opened, request, resolve

PREFIX = "model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"q_proj": 8, "k_proj": 4, "v_proj": 4}, {"q_proj": 0, "k_proj": 8, "v_proj": 12}),
        ({"v_proj": 4, "q_proj": 8}, {"q_proj": 0, "v_proj": 12}),
        ({"q_proj": 8}, {"q_proj": 0}),
        ({"k_proj": 4}, {"k_proj": 8}),
        ({"v_proj": 4}, {"v_proj": 12}),
        ({"gate_proj": 8}, {"gate_proj": 0}),
        ({"up_proj": 8}, {"up_proj": 8}),
    ],
)
def test_rows_of_the_parts(sizes: dict[str, int], expected: dict[str, int]) -> None:
    given = {f"{PREFIX}.{leaf}": size for leaf, size in sizes.items()}
    assert fused_parts(given, 16) == tuple(
        ModulePart(f"{PREFIX}.{leaf}", offset, sizes[leaf]) for leaf, offset in expected.items()
    )


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"q_proj": 7}, "sizes (q_proj 7, k_proj 4, v_proj 4) do not add up to the node's 16"),
        ({"q_proj": 16}, "sizes (q_proj 16, k_proj 0, v_proj 0) do not add up"),
        ({"k_proj": 9}, "sizes (q_proj -2, k_proj 9, v_proj 9) do not add up"),
        ({"k_proj": 4, "v_proj": 2}, "k_proj and v_proj have different sizes"),
        ({"up_proj": 6}, "gate and up would have 10 and 6 rows; expected equal halves"),
        ({"q_proj": 8, "qkv_proj": 16}, "order of their output rows is not known (q_proj, qkv"),
    ],
)
def test_rows_that_cannot_be_told(sizes: dict[str, int], reason: str) -> None:
    result = fused_parts(sizes, 16)
    assert isinstance(result, str)
    assert reason in result


def test_names_of_what_is_fused() -> None:
    assert fused_module("a.q_proj") == "a.qkv_proj"
    assert fused_module("up_proj") == "gate_up_proj"
    assert fused_module("a.o_proj") is None
    assert are_fused("a.q_proj", "a.v_proj")
    assert not are_fused("a.q_proj", "b.v_proj")
    assert not are_fused("a.q_proj", "a.q_proj")
    assert not are_fused("a.o_proj", "a.o")


def test_parts_of_several_adapters(tmp_path: Path) -> None:
    base = opened(attention(layers=1, style="packed").model(), tmp_path)
    requests = [
        request(f"{PREFIX}.v_proj", 8, 4),
        request("model.layers.0.attn.v_proj", 8, 4, adapter="legal"),
        request(f"{PREFIX}.q_proj", 8, 8, adapter="legal"),
    ]
    resolution = resolve(base, requests)
    (point,) = resolution.points
    assert point.name == "model.layers.0.attn.qkv_proj"
    assert point.parts == (
        ModulePart(f"{PREFIX}.q_proj", 0, 8),
        ModulePart("model.layers.0.attn.v_proj", 12, 4),
    )
    assert resolution.placements == {
        f"{PREFIX}.q_proj": Placement(0, 0),
        f"{PREFIX}.v_proj": Placement(0, 1),
        "model.layers.0.attn.v_proj": Placement(0, 1),
    }


def test_an_adapter_of_the_fused_module_itself(tmp_path: Path) -> None:
    base = opened(attention(layers=1, style="packed").model(), tmp_path)
    (point,) = resolve(base, [request(f"{PREFIX}.qkv_proj", 8, 16)]).points
    assert point.parts == (ModulePart(f"{PREFIX}.qkv_proj", 0, 16),)
    both = [request(f"{PREFIX}.qkv_proj", 8, 16), request(f"{PREFIX}.q_proj", adapter="legal")]
    with pytest.raises(AttachPointError, match="the order of their output rows is not known"):
        resolve(base, both)


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    base = opened(attention(layers=1, style="packed").model(), tmp_path)
    with pytest.raises(
        AttachPointError,
        match="modules of node '/model/layers.0/attn/qkv_proj/MatMul' do not fit it: it computes "
        r"16 output features, and their sizes \(q_proj 9,",
    ) as caught:
        resolve(base, [request(f"{PREFIX}.q_proj", 8, 9)])
    assert "export the graph without fusing projections" in str(caught.value)
