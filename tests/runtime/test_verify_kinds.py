"""`verify` knows every form that an adapter takes, and finds what is wrong with it by running.

A tensor that is off by 1 per cent moves the output by a hundredth of what it does there; the
tolerance is a ten thousandth of what all adapters do, so that it is found.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest
from safetensors.numpy import save_file

from lora_quant.api import build
from lora_quant.cli.render_verification import show_verification
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.manifest import read_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.reference.parameter_places import ParameterPlaces
from lora_quant.runtime.verify.verify import verify
from tests.builders import attention
from tests.runtime.kinds import CASES, KINDS, Tensors, edit_weights, effect, failed, pack_of
from tests.validation.packs import edit_manifest, rehash

APPROXIMATE = BuildOptions(approximate=True, approximate_rank=6, max_error=0.9)
MERGE = BuildOptions(merge="it")
IN_ORDER = BuildOptions(stacking="in-order")

SWITCHED = {
    "g and c of DoRA, whose norms are of the base": "lora_dora",
    "DoRA beside biases": "lora_dora_bias",
    "g of a base with biases": "ia3_bias",
    "g and h": "ia3_feedforward",
    "g of a convolution": "ia3_conv",
    "h of a grouped convolution": "ia3_conv_grouped_feedforward",
    "c alone": "beft",
    "c beside low rank": "lora_bias",
    "an embedding": "lora_embedding",
    "DoRA on an embedding": "lora_dora_embedding",
    "an embedding whose table came with it": "lora_embedding_table",
    "an embedding that is tied": "lora_embedding_tied",
    "a grouped convolution": "lora_conv_grouped",
    "DoRA on a grouped convolution": "lora_dora_grouped",
    "low rank within groups": "loha_conv_grouped",
    "Gemm": "lora_gpt2",
    "two modules in one node": "lora_mha",
    "the singular vectors of the base": "lora_pissa",
    "a whole head": "lora_modules_to_save",
    "norms": "ln_tuning_llama",
    "norms and biases": "lora_bias_all_norms",
    "rows of a table": "lora_trainable_tokens",
    "rows of tables that are tied": "trainable_tokens_tied",
    "a task": "poly_task2",
    "a router": "lily",
    "a module without any rank": "adalora_trained",
    "gates": "lora_alora",
}


@pytest.mark.parametrize("case", SWITCHED.values(), ids=SWITCHED.keys())
def test_a_good_pack_is_verified(case: str, tmp_path: Path) -> None:
    result = verify(pack_of(tmp_path, [case]))
    assert result.ok
    assert result.base_exact
    assert result.without_effect == ()
    assert effect(result) > 1e-2


@pytest.mark.parametrize(
    "case",
    [
        "lora_dora",
        "lora_dora_embedding",
        "ia3_bias",
        "ia3_conv_grouped",
        "oft_default",
        "hira_embedding",
        "boft_bias",
        "lora_modules_to_save",
        "ln_tuning_gpt2",
        "lora_embedding_table",
    ],
)
def test_a_merged_pack_is_verified(case: str, tmp_path: Path) -> None:
    result = verify(pack_of(tmp_path, [case], MERGE))
    assert result.ok
    assert result.base_exact is None
    assert [e.use_case for e in result.errors] == ["it"]
    assert effect(result) > 1e-2


@pytest.mark.parametrize(
    "cases",
    [
        ["lora_dora", "lora_dora_patterns"],
        ["lora_dora_patterns", "lora_dora"],
        ["lora_plain", "lora_dora"],
        ["ia3_bias", "ia3_second"],
        ["lora_dora", "lora_alora"],
        ["lora_alora", "lora_dora"],
    ],
    ids=" then ".join,
)
def test_adapters_that_act_one_after_the_other(cases: list[str], tmp_path: Path) -> None:
    result = verify(pack_of(tmp_path, cases, IN_ORDER))
    assert result.ok
    assert effect(result) > 1e-2


def test_strengths_multiply_low_rank_and_what_is_added(tmp_path: Path) -> None:
    assert verify(pack_of(tmp_path, ["lora_bias", "beft_qwen"], strengths=[-0.7, 1.6])).ok


@pytest.mark.parametrize(
    ("case", "role"),
    [
        ("lora_dora", "g"),
        ("lora_dora_bias", "c"),
        ("ia3_feedforward", "h"),
        ("ia3_conv", "g"),
        ("lora_bias", "c"),
        ("lora_embedding", "a_weight"),
        ("lora_conv_grouped", "b_weight"),
        ("lora_modules_to_save", "replaced"),
        ("ln_tuning_gpt2", "replaced"),
        ("lily", "router"),
        ("lily", "router_expansion"),
        ("lora_alora", "b_weight"),
    ],
)
def test_a_tensor_that_is_off_by_1_percent_is_found(case: str, role: str, tmp_path: Path) -> None:
    pack = pack_of(tmp_path, [case])
    names = [t.name for t in read_manifest(pack).tensors if t.role == role]

    def edit(tensors: Tensors) -> None:
        for name in names:
            tensors[name] *= tensors[name].dtype.type(1.01)

    edit_weights(pack, edit)
    result = verify(pack)
    assert not result.ok
    assert failed(result) == {"it"}
    assert result.base_exact


def test_the_groups_of_a_convolution_are_told_apart(tmp_path: Path) -> None:
    """B reads the ranks of the other group: all its values are there, in the wrong place."""
    pack = pack_of(tmp_path, ["lora_conv_grouped"])
    edit_weights(pack, lambda t: t.update({"grouped.lora_B.weight": _other_group(t)}))
    assert failed(verify(pack)) == {"it"}


def _other_group(tensors: Tensors) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    B = tensors["grouped.lora_B.weight"]
    return np.ascontiguousarray(np.roll(B, B.shape[1] // 2, axis=1))


def test_the_base_alone_with_a_replaced_parameter_is_found(tmp_path: Path) -> None:
    """The use case without the adapter has to bring the base's own values back."""
    pack = pack_of(tmp_path, ["ln_tuning_llama"])
    it = pack / "qairt" / "it" / "lora_weights.safetensors"
    (pack / "qairt" / "base" / "lora_weights.safetensors").write_bytes(it.read_bytes())
    rehash(pack)
    result = verify(pack)
    assert failed(result) == {"base"}
    assert result.base_exact, "as it is initialised, the graph is the base"


def test_gates_are_run_on_off_and_per_token(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = verify(pack_of(tmp_path, ["lora_alora"]))
    of_it = {e.gates: e for e in result.errors if e.use_case == "it"}
    assert list(of_it) == ["on", "off", "every second token"]
    assert of_it["off"].effect == 0, "without its gate the adapter is off: this is the base"
    assert of_it["every second token"].effect != of_it["on"].effect
    show_verification(result, as_json=False)
    printed = capfd.readouterr().out
    assert "gates: on, off, and on for every second token" in printed


def test_a_slot_that_should_be_gated_and_is_not_is_found(tmp_path: Path) -> None:
    """The host feeds 1 for what is not gated, so that the adapter cannot be switched off."""
    pack = pack_of(tmp_path, ["lora_alora"])
    edit_manifest(pack, lambda m: m["use_cases"][1]["slots"][0].update(gated=False))
    wrong = {e.gates for e in verify(pack).errors if not e.ok}
    assert wrong == {"off", "every second token"}


def test_approximated_layers_are_held_against_the_exact_update(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pack = pack_of(tmp_path, ["oft_default"], APPROXIMATE)
    result = verify(pack)
    assert result.ok
    limit = read_manifest(pack).adapters[0].max_error
    assert limit is not None
    assert max(layer.error for layer in result.layers) == pytest.approx(limit, rel=1e-6)
    (of_it,) = (e for e in result.errors if e.use_case == "it")
    assert of_it.from_exact is not None
    assert of_it.from_exact > of_it.bound, "the low rank is not the exact update, and says so"
    show_verification(result, as_json=False)
    printed = " ".join(capfd.readouterr().out.split())
    assert f"low rank of {len(result.layers)} approximated layers" in printed
    assert "from exact is how far the output is from the exact update" in printed
    show_verification(result, as_json=True)
    details = json.loads(capfd.readouterr().out)["details"]
    assert len(details["layers"]) == len(result.layers)
    assert details["targets"][0]["errors"][1]["from_exact"] == of_it.from_exact


@pytest.mark.parametrize("suffix", ["lora_A.weight", "lora_B.weight", "expansion"])
def test_an_approximation_that_is_worse_than_recorded_is_found(suffix: str, tmp_path: Path) -> None:
    """The compiled graph computes what the pack has: only the layers tell that it is wrong."""
    pack = pack_of(tmp_path, ["oft_default"], APPROXIMATE)

    def edit(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith(suffix):
                tensors[name] *= np.float32(0.5)

    edit_weights(pack, edit)
    result = verify(pack)
    assert not result.ok
    assert {layer.module for layer in result.layers if not layer.ok}


def test_a_weight_of_a_merged_graph_that_is_wrong_is_found(tmp_path: Path) -> None:
    pack = pack_of(tmp_path, ["oft_default"], MERGE)
    path = pack / "qairt" / "model.onnx"
    model = onnx.load(str(path))
    name = model.graph.node[_first_matmul(model)].input[1]
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, str(path))
    rehash(pack)
    result = verify(pack)
    assert failed(result) == {"it"}


def _first_matmul(model: onnx.ModelProto) -> int:
    held = {t.name for t in model.graph.initializer}
    return next(
        number
        for number, node in enumerate(model.graph.node)
        if node.op_type == "MatMul" and node.input[1] in held
    )


def test_what_cannot_be_verified_is_named_and_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pack = pack_of(tmp_path, ["lora_modules_to_save"])

    def refuse(*_: object) -> None:
        raise VerificationError("the parameter cannot be told", where=Where(module="lm_head"))

    monkeypatch.setattr(ParameterPlaces, "find", refuse)
    result = verify(pack)
    assert not result.ok
    assert [one.use_case for one in result.unverified] == ["it"]
    assert [e.use_case for e in result.errors] == ["base"]
    show_verification(result, as_json=False)
    printed = capfd.readouterr().out
    assert "NOT VERIFIED use case 'it'" in printed
    assert "verification failed" in printed


def test_a_pack_tells_the_task_of_its_adapters(tmp_path: Path) -> None:
    pack_of(tmp_path, ["poly_task2"])
    config = read_lora_config(tmp_path / "lora_config.yaml")
    result = build(config, tmp_path / "other")
    assert [a.task_id for a in result.manifest.adapters] == [2]
    assert verify(result.output).ok


def test_gates_in_the_layout_of_ranks(tmp_path: Path) -> None:
    result = verify(pack_of(tmp_path, ["lora_alora"], BuildOptions(alpha_layout="rank")))
    assert result.ok
    assert effect(result) > 1e-2


def test_a_gated_adapter_beside_one_that_is_not(tmp_path: Path) -> None:
    """The gate of the other slot stays 1: off is the other adapter alone."""
    result = verify(pack_of(tmp_path, ["lora_plain", "lora_alora"], strengths=[0.5, -2.0]))
    assert result.ok
    effects = {e.gates: e.effect for e in result.errors if e.use_case == "it"}
    assert effects["off"] > 1e-2
    assert len(set(effects.values())) == len(effects)


@pytest.mark.parametrize("case", ["lora_dora", "ia3_feedforward", "lily", "lora_alora"])
def test_opsets_that_give_axes_as_inputs(case: str, tmp_path: Path) -> None:
    original = onnx.load(str(KINDS / "bases" / CASES[case]["base"] / "model.onnx"))
    onnx.save(onnx.version_converter.convert_version(original, 18), str(tmp_path / "model.onnx"))
    result = verify(pack_of(tmp_path, [case], graph=tmp_path / "model.onnx"))
    assert result.ok
    assert effect(result) > 1e-2


@pytest.mark.parametrize("external", [False, True])
def test_vectors_of_the_parts_of_a_fused_projection(external: bool, tmp_path: Path) -> None:
    """q and v of one qkv node have vectors of their own; k has none."""
    attention(style="packed").save(tmp_path / "model.onnx", external=external)
    path = "model.layers.0.attn"
    rng = np.random.default_rng(3)
    values = {
        f"base_model.model.{path}.{leaf}.ia3_l": rng.normal(size=(size, 1)).astype(np.float32)
        for leaf, size in (("q_proj", 8), ("k_proj", 4), ("v_proj", 4))
    }
    folder = tmp_path / "scaled"
    folder.mkdir()
    save_file(values, folder / "adapter_model.safetensors")
    fields = {"peft_type": "IA3", "feedforward_modules": [], "fan_in_fan_out": False}
    fields["target_modules"] = ["q_proj", "k_proj", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    config = tmp_path / "lora_config.yaml"
    config.write_text(
        "adapter: [{name: scaled, lora_config: scaled}]\n"
        "use-case:\n"
        "- {name: it, adapter_names: [scaled], adapter_alphas: [1.0], model_name: model.onnx}\n",
        encoding="utf-8",
    )
    pack = build(config, tmp_path / "pack").output
    result = verify(pack)
    assert result.ok
    assert result.base_exact
    assert effect(result) > 1e-2
    edit_weights(pack, lambda t: t.update({k: np.roll(v, 4) for k, v in t.items()}))
    assert failed(verify(pack)) == {"it"}
