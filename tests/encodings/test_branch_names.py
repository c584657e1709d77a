from pathlib import Path

import pytest

from lora_quant.encodings.branch_names import (
    Role,
    find_branch_names,
    module_of_path,
)
from lora_quant.encodings.files import read_encodings

ROOT = Path(__file__).parents[2]
AIMET = ROOT / "tests" / "fixtures" / "aimet"

Found = dict[str, tuple[str, Role | None]]


def found(names: list[str], *adapters: str) -> Found:
    return {n: (b.module, b.role) for n, b in find_branch_names(names, adapters=adapters).items()}


def test_aimets_sample_network() -> None:
    file = read_encodings(AIMET / "network" / "lora_adapter_a.v1.0.0.encodings")
    names = found(list(file.encodings))
    assert {n: r for n, (m, r) in names.items() if m == "q"} == {
        "/q/MatMul_output_0": Role.H_OUT,
        "/q/lora_A/MatMul_output_0": Role.A_OUT,
        "/q/lora_alpha/Mul_output_0": Role.M_OUT,
        "/q/lora_B/MatMul_output_0": Role.L_OUT,
        "/q/lora_add/Add_output_0": Role.Y_OUT,
        "q.lora_A.weight": Role.A,
        "q.lora_B.weight": Role.B,
    }
    assert {m for m, _ in names.values()} == {"q", "v", ""}
    assert names["lora_alpha"] == ("", None)


def test_a_peft_export_is_read_with_the_adapters_name() -> None:
    """ModuleDict drops lora_A and lora_B from node names, and the scale follows B."""
    fragment = read_encodings(AIMET / "deployment" / "net_adapter_a.encodings")
    base = read_encodings(AIMET / "deployment" / "net.encodings")
    names = found([*base.encodings, *fragment.encodings], "adapter_a")
    assert {n: r for n, (m, r) in names.items() if m == "point"} == {
        "/point/base_layer/Conv_output_0": Role.H_OUT,
        "/point/adapter_a/Conv_output_0": Role.A_OUT,
        "/point/adapter_a_1/Conv_output_0": Role.BA_OUT,
        "/point/Mul_output_0": Role.L_OUT,
        "/point/Add_output_0": Role.Y_OUT,
        "base_model.model.point.lora_A.weight": Role.A,
        "base_model.model.point.lora_B.weight": Role.B,
    }
    assert names["/first/base_layer/Add_output_0"] == ("first", Role.H_OUT)
    assert "/Relu_output_0" not in names


def test_a_use_case_of_a_language_model() -> None:
    """AIMET's weight names have `base_model.` before the module path of the nodes."""
    folder = ROOT / "samples" / "tiny_llama" / "encodings"
    names = found(list(read_encodings(folder / "both.encodings").encodings))
    module = "model.layers.0.self_attn.q_proj"
    node = "/model/layers.0/self_attn/q_proj"
    assert {n: r for n, (m, r) in names.items() if m == module} == {
        f"{node}/MatMul_output_0": Role.H_OUT,
        f"{node}/lora_A.0/MatMul_output_0": Role.A_OUT,
        f"{node}/mul_scale/Mul_output_0": Role.M_OUT,
        f"{node}/lora_B.0/MatMul_output_0": Role.L_OUT,
        f"{node}/add_lora_to_res/Add_output_0": Role.Y_OUT,
        "base_model.model.layers.0.self_attn.q_proj.lora_A.weight": Role.A,
        "base_model.model.layers.0.self_attn.q_proj.lora_B.weight": Role.B,
    }
    assert all(role is not None for _, role in names.values())
    assert "/model/layers.0/self_attn/Mul_output_0" not in names


def test_branches_inserted_by_aimets_lora_package() -> None:
    prefix = "base_model.model.model.layers.0.q_proj"
    flat = prefix.replace(".", "_")
    names = [f"{prefix}.lora_A.weight", f"{prefix}.lora_scale.tone", f"lora_a_out_{flat}",
             f"lora_b_out_{flat}", f"lora_scaled_{flat}", "lora_a_out_other"]  # fmt: skip
    roles = [Role.A, Role.SCALE, Role.A_OUT, Role.BA_OUT, Role.L_OUT]
    expected: Found = {n: ("model.layers.0.q_proj", r) for n, r in zip(names, roles, strict=False)}
    assert found(names) == {**expected, "lora_a_out_other": ("", None)}


@pytest.mark.parametrize(
    ("name", "module", "role", "adapter"),
    [
        ("base_model.model.q.lora_A.weight", "q", Role.A, None),
        ("model.q.lora_B.tone.weight", "model.q", Role.B, "tone"),
        ("point.scaling.1", "point", Role.SCALE, "1"),
        ("/q/lora_A/default/MatMul_output_0", "q", Role.A_OUT, "default"),
        ("/q/lora_B/default/Gemm_output_0", "q", Role.L_OUT, "default"),
        ("/q/lora_B.1/Conv_output_0", "q", Role.L_OUT, "1"),
        ("/q/lora_scale/Mul_output_0", "q", Role.M_OUT, None),
        ("/q/mul_scale_1/Mul_output_0", "q", Role.M_OUT, "1"),
        ("/q/add_lora_to_res_1/Add_output_0", "q", Role.Y_OUT, "1"),
        ("/layer2/layer2.0/q/lora_add/Add_output_0", "layer2.0.q", Role.Y_OUT, None),
    ],
)
def test_marked_names_speak_for_themselves(
    name: str, module: str, role: Role, adapter: str | None
) -> None:
    parsed = find_branch_names([name]).get(name)
    assert parsed is not None
    assert (parsed.tensor, parsed.module, parsed.role, parsed.adapter) == (
        name, module, role, adapter,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["lora_alpha", "/q/lora_A/Transpose_output_0", "q.lora_magnitude_vector", "lora_"]
)
def test_a_marked_name_in_no_known_spelling_is_told(name: str) -> None:
    parsed = find_branch_names([name]).get(name)
    assert parsed is not None
    assert (parsed.module, parsed.role) == ("", None)


@pytest.mark.parametrize("name", ["x", "q.weight", "/q/MatMul_output_0", "/Mul_output_0", ""])
def test_other_names_are_not_of_a_branch(name: str) -> None:
    assert find_branch_names([name]).get(name) is None


def test_an_add_beside_the_branchs_own_add_is_the_bias() -> None:
    names = ["/q/lora_A/MatMul_output_0", "/q/lora_scale/Mul_output_0", "/q/lora_add/Add_output_0",
             "/q/Add_output_0", "/q/Mul_output_0"]  # fmt: skip
    result = found(names)
    assert result["/q/Add_output_0"] == ("q", Role.H_OUT)
    assert "/q/Mul_output_0" not in result


def test_the_module_of_a_path_drops_repeated_parts() -> None:
    assert module_of_path("layer2/layer2.0/downsample/downsample.0/") == "layer2.0.downsample.0"
    assert module_of_path("") == ""
