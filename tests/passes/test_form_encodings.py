"""Encodings of branches that are no matrix products, and of every kind in every version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adapters.builders import pair, write
from tests.builders import GraphBuilder
from tests.passes.kind_builds import activation, build_kinds, ends, weight
from tests.passes.test_vector_encodings import same_grid
from tests.passes.test_versions import grids


def test_the_table_of_an_embedding_has_one_grid(tmp_path: Path) -> None:
    """Rows are looked up, and a has the range of all of them; m is s times that."""
    built = build_kinds(tmp_path, "embnet", {"on": ("lora_embedding",)})
    found, weights = built.overrides("on"), built.weights("on")
    table = weights["emb.lora_A.weight"].astype(np.float64)
    assert found["emb.lora_A.weight"]["enc_type"] == "PER_TENSOR"
    assert found["emb.lora_A.weight"]["scale"] == [
        float(np.float32(max(-table.min() / 128, table.max() / 127)))
    ]
    a, m = found["/emb/lora_A/Gather_output_0"], found["/emb/lora_scale/Mul_output_0"]
    # An asymmetric grid misses an end by half a step at most.
    assert ends(a) == pytest.approx((table.min(), table.max()), abs=0.51 * a["scale"][0])
    s = float(weights["lora_alpha.expansion"].max())
    assert ends(m) == pytest.approx(tuple(s * end for end in ends(a)), rel=2.0**-23)
    told = built.rules("on")["encodings/computed-activation"]
    assert told == {"/emb/lora_A/Gather_output_0", "/emb/lora_scale/Mul_output_0"}
    assert len(found["emb.lora_B.weight"]["scale"]) == 12


def test_given_encodings_of_an_embedding_are_taken(tmp_path: Path) -> None:
    given = {
        "emb.lora_A.weight": weight([0.25]),
        "/emb/lora_A/Gather_output_0": activation(-3.0, 4.0),
        "/emb/lora_scale/Mul_output_0": activation(-5.0, 6.0),
    }
    built = build_kinds(tmp_path, "embnet", {"on": ("lora_embedding",)}, {"on": given})
    for name, entry in given.items():
        assert same_grid(built.overrides("on")[name], entry)


def test_a_dense_b_of_groups_has_a_grid_per_output(tmp_path: Path) -> None:
    """What a foreign file says of the grouped B holds for ours: the rest of ours is zero."""
    built = build_kinds(tmp_path, "groupnet", {"on": ("lora_conv_grouped",)})
    found, weights = built.overrides("on"), built.weights("on")
    for name in ("grouped.lora_A.weight", "grouped.lora_B.weight"):
        values = weights[name].astype(np.float64).reshape(len(weights[name]), -1)
        exact = np.maximum(-values.min(axis=1) / 128, values.max(axis=1) / 127)
        assert found[name]["scale"] == [float(scale) for scale in exact.astype(np.float32)]
    scales = [0.01 * (1 + i) for i in range(12)]
    given = {"base_model.grouped.lora_B.weight": weight(scales)}
    folder = tmp_path / "given"
    folder.mkdir()
    built = build_kinds(folder, "groupnet", {"on": ("lora_conv_grouped",)}, {"on": given})
    assert built.overrides("on")["grouped.lora_B.weight"]["scale"] == scales


@pytest.mark.parametrize("mode", ["none", "adapter_only", "all"])
def test_a_transposed_x_has_the_grid_of_x(mode: str, tmp_path: Path) -> None:
    """Gemm with transA reads x as [in, rows]; its branch reads the transpose."""
    graph = GraphBuilder()
    x = graph.input("x", (7, 3))
    y = graph.node("Gemm", [x, graph.weight("fc.weight", 7, 6)], "/fc/Gemm", transA=1)
    graph.output(y, (3, 6))
    model = graph.save(tmp_path / "model.onnx")
    adapter = write(tmp_path / "a", pair("fc", features=(7, 6)), target_modules=["fc"])
    own = {"x": activation(-4.0, 4.0), y: activation(-9.0, 9.0)}
    calibrated = {"x": activation(-3.0, 3.0)} if mode == "all" else {}
    built = build_kinds(
        tmp_path, model, {"on": ("a",)}, {"base": own, "on": calibrated}, {"a": adapter}, mode=mode
    )
    name = "/fc/lora_x/Transpose_output_0"
    assert same_grid(built.overrides("base")[name], own["x"])
    assert same_grid(built.overrides("on")[name], calibrated.get("x", own["x"]))
    assert (name in built.listed("on")) == (mode != "none")


KINDS = {
    "llama": ("lora_dora", "ia3_feedforward", "adalora_linear", "lily", "ln_tuning_llama"),
    "convnet": ("ia3_conv", "lora_conv2d"),
    "embnet": ("lora_embedding",),
    "groupnet": ("lora_conv_grouped",),
}


@pytest.mark.parametrize("base", list(KINDS))
@pytest.mark.parametrize("version", ["0.6.1", "2.0.0"])
def test_every_version_holds_the_same_grids(base: str, version: Any, tmp_path: Path) -> None:
    use_cases = {kind: (kind,) for kind in KINDS[base]}
    found = []
    for number, asked in enumerate((None, version)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(build_kinds(folder, base, use_cases, encodings_version=asked))
    for use_case in ("base", *use_cases):
        name = Path(use_case, "quant_overrides.json")
        assert grids(found[1].folder / name) == grids(found[0].folder / name)
        assert found[1].listed(use_case) == found[0].listed(use_case)
    name = Path("base_encodings.json")
    assert grids(found[1].folder / name) == grids(found[0].folder / name)


@pytest.mark.parametrize("mode", ["none", "adapter_only", "all"])
def test_many_kinds_share_one_graph(mode: str, tmp_path: Path) -> None:
    """The same tensors for every use case, and none but the listed ones differs from the base."""
    use_cases = {kind: (kind,) for kind in (*KINDS["llama"], "lora_plain")}
    built = build_kinds(tmp_path, "llama", use_cases, mode=mode)
    base = built.base()
    for use_case in ("base", *use_cases):
        found, listed = built.overrides(use_case), built.listed(use_case)
        assert found.keys() == base.keys()
        assert listed <= found.keys()
        assert {name for name in found if found[name] != base[name]} <= listed
        for name, values in built.weights(use_case).items():
            if name not in found:
                continue
            scale = np.array(found[name]["scale"])
            axis = None if scale.size == 1 else 1
            low, high = (
                f(values.astype(np.float64), axis=None if axis is None else 0)
                for f in (np.min, np.max)
            )
            # 2**-19: a grid that holds 1 counts steps to within 2**-20
            assert (low >= -128 * scale * (1 + 2.0**-19)).all(), name
            assert (high <= 127 * scale * (1 + 2.0**-19)).all(), name
