"""Encodings of g, h and c, of what they give, and of the outputs that they take over.

The numbers are worked out from the values in the pack and from the base's file alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant.errors import EncodingsError
from tests.adapters.fixture_base import KINDS
from tests.passes.kind_builds import (
    Built,
    activation,
    base_encodings,
    build_kinds,
    ends,
    model_of,
    weight,
)
from tests.sample import Document

MODES = ("none", "adapter_only", "all")
Q = "source.model.layers.0.self_attn.q_proj"

DOWN = "source.model.layers.0.mlp.down_proj"
BASE = base_encodings(model_of("llama"))
# The base with biases at q and v: DoRA has a c there.
BIASED = base_encodings(model_of("qwen"))
# What float32 loses of a scale that is rounded to it, and of 1 / n.
FLOAT32 = 2.0**-24


def tensors(module: str, last: str = "MatMul") -> dict[str, str]:
    """Role -> tensor name in a graph with vectors and a branch at the module.

    `last` is the operator that gives the base's own output: MatMul, or Add where it has a bias.
    """
    source, model, layers, number, *path = module.split(".")
    prefix = "/" + "/".join([source, model, f"{layers}.{number}", *path])
    return {
        "y": f"{prefix}/{last}_output_0",
        "y_base": f"{prefix}/{last}_output_0_base",
        "hx": f"{prefix}/lora_h/Mul_output_0",
        "gh": f"{prefix}/lora_g/Mul_output_0",
        "gc": f"{prefix}/lora_c/Add_output_0",
        "a": f"{prefix}/lora_A/MatMul_output_0",
        "m": f"{prefix}/lora_scale/Mul_output_0",
        "l": f"{prefix}/lora_B/MatMul_output_0",
        **{letter: f"{module}.lora_{letter}.weight" for letter in "ghcAB"},
    }


Q_BIASED = tensors(Q, "Add")


def same_grid(entry: Document, other: Document) -> bool:
    return {k: v for k, v in entry.items() if k != "name"} == {
        k: v for k, v in other.items() if k != "name"
    }


def scaled_ends(entry: Document, values: NDArray[Any]) -> tuple[float, float]:
    """The outermost products of a grid's range and a vector's."""
    products = [end * float(value) for end in ends(entry) for value in (values.min(), values.max())]
    return min(products), max(products)


def moved_ends(entry: Document, values: NDArray[Any]) -> tuple[float, float]:
    """The ends of a grid's range, each moved by the vector's."""
    low, high = ends(entry)
    return low + float(values.min()), high + float(values.max())


def in_all_modes(
    folder: Path, base: str, use_cases: Mapping[str, tuple[str, ...]]
) -> dict[str, Built]:
    found = {}
    for mode in MODES:
        (folder / mode).mkdir()
        found[mode] = build_kinds(folder / mode, base, use_cases, mode=mode)
    return found


@pytest.fixture(scope="module")
def dora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """DoRA on a base without biases: g alone."""
    use_cases = {"dora": ("lora_dora",), "plain": ("lora_plain",)}
    return in_all_modes(tmp_path_factory.mktemp("dora"), "llama", use_cases)


WITH_C = {"dora": ("lora_dora_rslora",), "plain": ("lora_biased_base",)}


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """DoRA on a base with biases at q and v: g, and c = (1 - g) b."""
    return in_all_modes(tmp_path_factory.mktemp("biased"), "qwen", WITH_C)


@pytest.fixture(params=["dora", "biased"])
def either(request: pytest.FixtureRequest) -> dict[str, Built]:
    found: dict[str, Built] = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_every_added_tensor_has_an_encoding_or_is_reported(
    mode: str, either: dict[str, Built]
) -> None:
    built = either[mode]
    missing = built.rules("dora")["encodings/missing-activation"]
    assert {name.rsplit("/", 2)[-2] for name in missing} == {"lora_A", "lora_scale", "lora_B"}
    added = {name for name in built.added() if "lora" in name or name.endswith("_base")}
    for use_case in ("base", "dora", "plain"):
        found = set(built.overrides(use_case))
        assert added - found == missing
        assert built.listed(use_case) <= found
        assert set(built.base()) == found


@pytest.mark.parametrize("mode", MODES)
def test_the_base_s_own_output_has_the_grid_of_y(
    mode: str, dora: dict[str, Built], biased: dict[str, Built]
) -> None:
    for built, names, base in ((dora, tensors(Q), BASE), (biased, Q_BIASED, BIASED)):
        for use_case in ("base", "dora", "plain"):
            found = built[mode].overrides(use_case)
            assert same_grid(found[names["y_base"]], base[names["y"]])
            assert same_grid(found[names["y"]], base[names["y"]])


@pytest.mark.parametrize("mode", MODES)
def test_without_a_bias_there_is_no_c(mode: str, dora: dict[str, Built]) -> None:
    built = dora[mode]
    for use_case in ("base", "dora", "plain"):
        names = built.added() | set(built.overrides(use_case)) | built.listed(use_case)
        assert tensors(Q)["gh"] in names
        assert not [name for name in names if "lora_c" in name]
    assert not [name for name in built.weights("dora") if "lora_c" in name]


@pytest.mark.parametrize("letter", ["g", "c"])
def test_a_computed_vector_covers_its_values(letter: str, biased: dict[str, Built]) -> None:
    """Symmetric, per tensor: max(-min / 128, max / 127) in float32."""
    built, name = biased["adapter_only"], Q_BIASED[letter]
    values = built.weights("dora")[name].astype(np.float64)
    entry = built.overrides("dora")[name]
    assert values.any()
    assert entry["scale"] == [float(np.float32(max(-values.min() / 128, values.max() / 127)))]
    assert (entry["bw"], entry["is_sym"], entry["offset"]) == (8, True, [-128])


def test_what_g_gives_has_the_range_of_the_products(
    dora: dict[str, Built], biased: dict[str, Built]
) -> None:
    """g > 0 here, so that only the step changes: no rounding but that of one product."""
    for builds, names, base in ((dora, tensors(Q), BASE), (biased, Q_BIASED, BIASED)):
        built = builds["adapter_only"]
        g = built.weights("dora")[names["g"]]
        found = built.overrides("dora")
        assert g.min() > 0
        largest = scaled_ends(base[names["y"]], g)
        assert ends(found[names["gh"]]) == pytest.approx(largest, rel=1e-12)
        assert names["gh"] in built.rules("dora")["encodings/computed-activation"]


def test_c_moves_both_ends_of_what_g_gives(biased: dict[str, Built]) -> None:
    """An asymmetric grid misses an end by half a step at most."""
    built, names = biased["adapter_only"], Q_BIASED
    c = built.weights("dora")[names["c"]]
    found = built.overrides("dora")
    step = found[names["gc"]]["scale"][0]
    assert c.min() < -step
    assert c.max() > step
    moved = moved_ends(found[names["gh"]], c)
    assert ends(found[names["gc"]]) == pytest.approx(moved, abs=0.51 * step)
    assert names["gc"] in built.rules("dora")["encodings/computed-activation"]


@pytest.mark.parametrize("use_case", ["base", "plain"])
def test_idle_vectors_pass_their_grid_on(
    use_case: str, dora: dict[str, Built], biased: dict[str, Built]
) -> None:
    built = biased["adapter_only"]
    found = built.overrides(use_case)
    for role in ("gh", "gc"):
        assert same_grid(found[Q_BIASED[role]], BIASED[Q_BIASED["y"]])
    for letter in "gc":
        assert found[Q_BIASED[letter]] == built.base()[Q_BIASED[letter]]
    without_c = dora["adapter_only"].overrides(use_case)
    assert same_grid(without_c[tensors(Q)["gh"]], BASE[tensors(Q)["y"]])
    assert without_c[tensors(Q)["g"]] == dora["adapter_only"].base()[tensors(Q)["g"]]


@pytest.mark.parametrize("mode", MODES)
def test_an_idle_g_is_exactly_one(mode: str, dora: dict[str, Built]) -> None:
    """The grid of the base has a step of 1 / n, within what float32 loses of it."""
    name = tensors(Q)["g"]
    for found in (dora[mode].base(), dora[mode].overrides("base"), dora[mode].overrides("plain")):
        (scale,) = found[name]["scale"]
        assert 127 * scale >= 1.0 - FLOAT32
        assert abs(round(1 / scale) * scale - 1.0) <= FLOAT32
    assert (dora[mode].weights("plain")[name] == 1.0).all()


def test_mode_none_has_one_grid_that_covers_all_use_cases(dora: dict[str, Built]) -> None:
    names, built = tensors(Q), dora["none"]
    found = built.base()
    for use_case in ("base", "dora", "plain"):
        assert built.overrides(use_case) == found
        assert built.listed(use_case) == set()
        values = built.weights(use_case)[names["g"]]
        (scale,) = found[names["g"]]["scale"]
        # holding 1 may round a count up by 2**-20; float32 adds 2**-24
        assert np.abs(values).max() <= 127 * scale * (1 + 2.0**-19)
        low, high = scaled_ends(BASE[names["y"]], values)
        step = found[names["gh"]]["scale"][0]
        assert ends(found[names["gh"]])[0] <= low + step / 2
        assert ends(found[names["gh"]])[1] >= high - step / 2


@pytest.mark.parametrize("mode", ["adapter_only", "all"])
def test_lists_hold_vectors_and_what_they_give(mode: str, biased: dict[str, Built]) -> None:
    names = Q_BIASED
    listed = biased[mode].listed("dora")
    assert {names[role] for role in ("g", "c", "gh", "gc", "A", "B")} <= listed
    assert (names["y_base"] in listed) == (names["y"] in listed) == (mode == "all")


def test_without_any_branch_there_is_no_alpha(tmp_path: Path) -> None:
    """IA3 alone: y is what g gives, under its old name and with the base's grid."""
    built, names = build_kinds(tmp_path, "llama", {"ia3": ("ia3_out",)}), tensors(Q)
    found = built.overrides("ia3")
    assert not [name for name in found if "alpha" in name]
    assert set(built.listed("ia3")) == {name for name in found if name.endswith(".lora_g.weight")}
    assert names["gh"] not in found
    assert same_grid(found[names["y"]], BASE[names["y"]])
    assert same_grid(found[names["y_base"]], BASE[names["y"]])
    assert found.keys() == built.base().keys() == built.overrides("base").keys()
    (told,) = built.findings
    assert (told.rule, told.where.use_case) == ("encodings/output-may-clip", "ia3")
    assert "6 outputs that an adapter scales up keep the range of the base" in told.message


def test_mode_all_lets_the_output_have_the_range_of_the_products(tmp_path: Path) -> None:
    built = build_kinds(tmp_path, "llama", {"ia3": ("ia3_out",)}, mode="all")
    names = tensors(Q)
    low, high = scaled_ends(BASE[names["y"]], built.weights("ia3")[names["g"]])
    entry = built.overrides("ia3")[names["y"]]
    # An asymmetric grid misses an end by half a step at most.
    assert ends(entry) == pytest.approx((low, high), abs=0.51 * entry["scale"][0])
    assert same_grid(built.overrides("base")[names["y"]], BASE[names["y"]])
    assert same_grid(built.overrides("ia3")[names["y_base"]], BASE[names["y"]])


def test_h_scales_the_range_of_what_one_node_reads(tmp_path: Path) -> None:
    use_cases = {"ia3": ("ia3_feedforward",), "plain": ("lora_plain",)}
    built, names = build_kinds(tmp_path, "llama", use_cases), tensors(DOWN)
    x = BASE["/source/model/layers.0/mlp/Mul_output_0"]
    h = built.weights("ia3")[names["h"]]
    found = built.overrides("ia3")
    low, high = scaled_ends(x, h)
    assert ends(found[names["hx"]]) == pytest.approx(
        (low, high), abs=0.51 * found[names["hx"]]["scale"][0]
    )
    assert same_grid(built.overrides("plain")[names["hx"]], x)
    assert same_grid(built.overrides("base")[names["hx"]], x)
    # down_proj has neither g nor c nor low rank: its output is nobody else's.
    assert names["y_base"] not in found
    told = built.rules("ia3")["encodings/computed-activation"]
    assert names["hx"] in told


def test_c_moves_both_ends(tmp_path: Path) -> None:
    use_cases = {"beft": ("beft",), "plain": ("lora_plain",)}
    built, names = build_kinds(tmp_path, "llama", use_cases), tensors(Q)
    c = built.weights("beft")[names["c"]]
    entry = built.overrides("beft")[names["gc"]]
    moved = moved_ends(BASE[names["y"]], c)
    assert ends(entry) == pytest.approx(moved, abs=0.51 * entry["scale"][0])
    assert same_grid(built.overrides("plain")[names["gc"]], BASE[names["y"]])


def test_a_c_of_zeros_passes_its_grid_on(tmp_path: Path) -> None:
    """Its own grid has the smallest width, 1e-5: a grid of zeros is not valid."""
    adapter = tmp_path / "adapter"
    shutil.copytree(KINDS / "beft", adapter)
    values = load_file(adapter / "adapter_model.safetensors")
    values["base_model.model.model.layers.0.self_attn.q_proj.beft_bias"][:] = 0.0
    save_file(values, adapter / "adapter_model.safetensors")
    use_cases = {"beft": ("beft",), "plain": ("lora_plain",)}
    built = build_kinds(tmp_path, "llama", use_cases, adapters={"beft": adapter})
    names, found = tensors(Q), built.overrides("beft")
    assert same_grid(found[names["gc"]], BASE[names["y"]])
    # The width is kept 2**-20 above 1e-5, so that float32 (2**-24) does not go below it.
    assert found[names["c"]]["scale"] == [pytest.approx(1e-5 / 255, rel=2.0**-19)]
    assert found[names["c"]]["scale"][0] >= 1e-5 / 255


def test_vectors_of_a_convolution(tmp_path: Path) -> None:
    built = build_kinds(tmp_path, "convnet", {"ia3": ("ia3_conv",)})
    found = built.overrides("ia3")
    weights = built.weights("ia3")
    assert {"point.lora_g.weight", "wide.lora_h.weight"} <= {
        name.removeprefix("source.") for name in weights
    }
    for name, values in weights.items():
        (scale,) = found[name]["scale"]
        assert -128 * scale * (1 + FLOAT32) <= values.min()
        assert values.max() <= 127 * scale * (1 + FLOAT32)


# Each activation reaches farther than the base's grid at one end.
GIVEN = {
    Q_BIASED["g"]: weight([0.02]),
    Q_BIASED["c"]: weight([0.002]),
    Q_BIASED["gh"]: activation(-20.0, 6.0),
    Q_BIASED["gc"]: activation(-4.0, 30.0),
}


@pytest.mark.parametrize("mode", MODES)
def test_given_encodings_of_vectors_are_taken(tmp_path: Path, mode: str) -> None:
    built = build_kinds(tmp_path, "qwen", WITH_C, {"dora": GIVEN}, mode=mode)
    found = built.overrides("dora")
    idle = BIASED[Q_BIASED["y"]]
    if mode == "none":
        for name in (Q_BIASED["gh"], Q_BIASED["gc"]):
            (low, high), (idle_low, idle_high) = ends(GIVEN[name]), ends(idle)
            step = found[name]["scale"][0]
            assert ends(found[name])[0] <= min(low, idle_low) + step / 2
            assert ends(found[name])[1] >= max(high, idle_high) - step / 2
        return
    for name, entry in GIVEN.items():
        assert same_grid(found[name], entry)
    for name in (Q_BIASED["gh"], Q_BIASED["gc"]):
        assert same_grid(built.overrides("plain")[name], idle)


def test_c_is_added_to_the_given_range_of_what_g_gives(tmp_path: Path) -> None:
    """An asymmetric grid misses an end by half a step at most."""
    given = {name: entry for name, entry in GIVEN.items() if name != Q_BIASED["gc"]}
    built = build_kinds(tmp_path, "qwen", {"dora": WITH_C["dora"]}, {"dora": given})
    c = built.weights("dora")[Q_BIASED["c"]]
    entry = built.overrides("dora")[Q_BIASED["gc"]]
    assert min(-c.min(), c.max()) > entry["scale"][0]
    moved = moved_ends(GIVEN[Q_BIASED["gh"]], c)
    assert ends(entry) == pytest.approx(moved, abs=0.51 * entry["scale"][0])


def test_an_idle_vector_takes_the_bits_that_others_are_given(tmp_path: Path) -> None:
    """8 bits for gh in one use case: what passes 16 bits on elsewhere has 8 there as well."""
    name = tensors(Q)["gh"]
    built = build_kinds(
        tmp_path,
        "llama",
        {"dora": ("lora_dora",), "plain": ("lora_plain",)},
        {"dora": {name: activation(-5.0, 6.0, bits=8)}},
    )
    entry = built.overrides("plain")[name]
    assert entry["bw"] == 8
    assert ends(entry) == pytest.approx(ends(BASE[tensors(Q)["y"]]), abs=0.51 * entry["scale"][0])


def test_strict_none_refuses_different_given_grids(tmp_path: Path) -> None:
    files = {
        "one": {tensors(Q)["g"]: weight([0.02])},
        "two": {tensors(Q)["g"]: weight([0.03])},
    }
    use_cases = {"one": ("ia3_out",), "two": ("ia3_out",)}
    with pytest.raises(EncodingsError, match="1 branch tensors are given different") as caught:
        build_kinds(tmp_path, "llama", use_cases, files, mode="none", strict_none=True)
    assert caught.value.where.tensor == tensors(Q)["g"]
    computed = build_kinds(tmp_path, "llama", use_cases, mode="none", strict_none=True)
    assert computed.overrides("one") == computed.overrides("two")


@pytest.mark.parametrize(("scale", "rules"), [(0.02, set()), (0.03, {"encodings/one-is-rounded"})])
def test_a_grid_that_all_files_share_is_left_to_them(
    scale: float, rules: set[str], tmp_path: Path
) -> None:
    """50 steps of 0.02 are 1, no number of steps of 0.03 is: 1 becomes 0.99, which is named."""
    given = {tensors(Q)["g"]: weight([scale])}
    use_cases = {"one": ("ia3_out",), "two": ("ia3_out",)}
    built = build_kinds(
        tmp_path, "llama", use_cases, dict.fromkeys(use_cases, given), mode="none", strict_none=True
    )
    assert same_grid(built.base()[tensors(Q)["g"]], given[tensors(Q)["g"]])
    found = {f.rule for f in built.findings if f.where.tensor == tensors(Q)["g"]}
    assert found == rules


def test_more_than_scale_and_offset_of_g_may_not_differ(tmp_path: Path) -> None:
    files = {
        "one": {tensors(Q)["g"]: weight([0.02])},
        "two": {tensors(Q)["g"]: weight([0.0001], bits=16)},
    }
    with pytest.raises(EncodingsError, match="bits: 8 and 16") as caught:
        build_kinds(tmp_path, "llama", {"one": ("ia3_out",), "two": ("ia3_out",)}, files)
    assert (caught.value.where.use_case, caught.value.where.tensor) == ("two", tensors(Q)["g"])


def test_a_wrong_number_of_scales_is_refused(tmp_path: Path) -> None:
    given = {tensors(Q)["g"]: weight([0.02] * 3)}
    with pytest.raises(EncodingsError, match="the encoding covers 3 channels") as caught:
        build_kinds(tmp_path, "llama", {"ia3": ("ia3_out",)}, {"ia3": given})
    assert (caught.value.where.use_case, caught.value.where.tensor) == ("ia3", tensors(Q)["g"])


def test_a_g_that_its_grid_clips_is_named(tmp_path: Path) -> None:
    given = {tensors(Q)["g"]: weight([0.0001])}
    built = build_kinds(tmp_path, "llama", {"ia3": ("ia3_out",)}, {"ia3": given})
    assert built.rules("ia3")["encodings/weight-clips"] == {tensors(Q)["g"]}


def test_rows_of_a_fused_projection_that_no_adapter_scales_stay_exact(tmp_path: Path) -> None:
    """IA3 on q of a packed qkv: k and v are multiplied by ones, which the grid of g holds."""
    model = Path(__file__).parents[1] / "fixtures" / "exports" / "genai_fp32" / "model.onnx"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = json.loads((KINDS / "ia3_out" / "adapter_config.json").read_text("utf-8"))
    config.update(target_modules=["q_proj"], feedforward_modules=[])
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    values = np.linspace(0.3, 1.7, 32, dtype=np.float32)[:, None]
    tensor = "base_model.model.model.layers.0.self_attn.q_proj.ia3_l"
    save_file({tensor: values}, adapter / "adapter_model.safetensors")
    built = build_kinds(tmp_path, model, {"on": ("ia3",)}, {"base": {}}, {"ia3": adapter})
    ((name, g),) = built.weights("on").items()
    assert (g[32:] == 1.0).all()
    (scale,) = built.overrides("on")[name]["scale"]
    assert scale == float(np.float32(1 / 74))  # floor(127 / 1.7)


def test_a_grid_per_channel_is_taken_with_the_axis_of_the_vector(tmp_path: Path) -> None:
    """A 1.0.0 file does not tell the axis, which a 2.0.0 file has to."""
    scales = [0.02 + i / 1000 for i in range(16)]
    given = {tensors(Q)["g"]: weight(scales)}
    built = build_kinds(
        tmp_path, "llama", {"ia3": ("ia3_out",)}, {"ia3": given}, encodings_version="2.0.0"
    )
    text = (built.folder / "ia3" / "quant_overrides.json").read_text(encoding="utf-8")
    found = {entry["name"]: entry for entry in json.loads(text)["encodings"]}
    assert found[tensors(Q)["g"]]["axis"] == 0
    assert found[tensors(Q)["g"]]["y_scale"] == scales
