"""Adapters written as plain LoRA: every kind against PEFT's own delta, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant import lower
from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.adapter_report import AdapterReport
from lora_quant.adapters.lowered import Dense, Lowered, Need
from lora_quant.adapters.plain.plain_lora import PlainShape, plain_pair
from lora_quant.errors import (
    NOWHERE,
    AdapterError,
    ConfigError,
    InputMissingError,
    LoraQuantError,
    PackError,
    UnsupportedAdapterError,
)
from lora_quant.findings import Severity
from lora_quant.lower import inspect_adapter, lower_adapter
from tests.adapters.all_rules import all_rules
from tests.adapters.builders import Q0, Q1, V0, pair, write
from tests.adapters.fixture_base import KINDS, fixture_base

Array = NDArray[Any]
CASES: dict[str, dict[str, Any]] = {
    name: case
    for name, case in json.loads((KINDS / "cases.json").read_text("utf-8")).items()
    if not name.startswith("_")
}
# A and B are rounded to float32 once each: 2**-24 of every product.
HALF_UNIT = 2.0**-24
# What tests/adapters/test_conformance.py allows a rule beside PEFT, with and without the base.
EXACT, WITH_WEIGHT = 1e-6, 5e-6
# Kinds whose file is not enough: refused when they are read (see test_conformance.py).
INCOMPLETE = {"frod_seeded", "unilora_gpt2", "unilora_seeded"}
PREFIX = "base_model.model."


def written(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return config, load_file(folder / "adapter_model.safetensors")


def factors(tensors: dict[str, Array], module: str) -> tuple[Array, Array]:
    """B `[out, r]` and A `[r, ...]` in float64, found by name."""
    names = ("lora_B.weight", "lora_A.weight")
    if f"{PREFIX}{module}.lora_embedding_A" in tensors:
        names = ("lora_embedding_B", "lora_embedding_A")
    B, A = (tensors[f"{PREFIX}{module}.{name}"].astype(np.float64) for name in names)
    return B.reshape(B.shape[:2]), A


def product(B: Array, A: Array) -> Array:
    """B A, of a convolution of several groups on the diagonal: `[out, in / groups, *kernel]`."""
    groups = A.shape[0] // B.shape[1]
    flat = A.reshape(len(A), -1)
    if groups == 1:
        return (B @ flat).reshape(len(B), *A.shape[1:])
    rows, rank, inputs = len(B) // groups, B.shape[1], A.shape[1] // groups
    parts = [
        (B[g * rows : (g + 1) * rows] @ flat[g * rank : (g + 1) * rank]).reshape(
            rows, *A.shape[1:]
        )[:, g * inputs : (g + 1) * inputs]
        for g in range(groups)
    ]
    return np.concatenate(parts)


def base_of(case: str) -> Path:
    folder: str = CASES[case]["base"]
    return KINDS / "bases" / folder / "weights.safetensors"


def lowered_case(case: str, output: Path, **options: Any) -> AdapterReport:
    task = CASES[case].get("task_id")
    return lower_adapter(KINDS / case, output, task=task, **options)


def base_if_needed(case: str) -> Path | None:
    """The base's checkpoint, where the adapter's files do not tell everything."""
    report = inspect_of(case)
    is_told = all(m.kernel is not None and m.in_features for m in report.modules)
    return None if is_told and report.needs is Need.NOTHING else base_of(case)


def order_of(case: str, beside: Path) -> Path:
    """The order of the modules in the model, which TinyLoRA counts in."""
    path = beside.with_name("modules.json")
    modules = CASES[case].get("module_order", [])
    path.write_text(json.dumps({module: [] for module in modules}), encoding="utf-8")
    return path


def plain_cases() -> list[str]:
    """The cases whose kind is A and B, by PEFT's own results: there is nothing but a delta."""
    return [
        name
        for name, case in CASES.items()
        if case["class"] in ("exact", "base") and name not in INCOMPLETE
    ]


@pytest.mark.parametrize("case", plain_cases())
def test_the_product_of_the_factors_is_pefts_delta(case: str, tmp_path: Path) -> None:
    report = inspect_of(case)
    out = tmp_path / "out"
    if report.obstacle is not None:
        with pytest.raises(UnsupportedAdapterError, match="plain LoRA cannot hold"):
            lowered_case(case, out, base=base_of(case))
        assert not out.exists()
        return
    report = lowered_case(case, out, base=base_if_needed(case), attach_points=order_of(case, out))
    assert report.max_error is None
    config, tensors = written(out)
    expected = load_file(KINDS / case / "expected.safetensors")
    base = fixture_base(CASES[case]["base"])
    limit = WITH_WEIGHT if report.needs is Need.WEIGHT else EXACT
    deltas = {k.partition(":")[2]: v for k, v in expected.items() if k.startswith("delta:")}
    if case == "lora_experts_old":  # PEFT puts these modules into one weight of all experts
        deltas = {k: v for k, v in deltas.items() if "experts" not in k}
    for module, delta in deltas.items():
        B, A = factors(tensors, module)
        ours, theirs = product(B, A), delta.astype(np.float64)
        if ours.shape != theirs.shape:
            theirs = theirs.T
        weight = base.weight(module)
        table = tensors.get(f"{PREFIX}{module}.base_layer.weight")
        if table is not None:  # PEFT's delta is against the base's own table
            theirs = theirs + weight - (table.T if table.shape != weight.shape else table)
        # PEFT adds its delta to the base in float32, which rounds the sum once.
        rounding = HALF_UNIT * np.abs(weight + theirs)
        ours_rounded = 2 * HALF_UNIT * product(np.abs(B), np.abs(A))
        allowed = limit * np.abs(theirs).max() + rounding + ours_rounded
        assert (np.abs(ours - theirs) <= allowed).all(), module
    assert set(config["target_modules"]) >= set(deltas)


def test_most_exact_kinds_can_be_plain_lora() -> None:
    """Otherwise the test above would compare nothing."""
    free = [c for c in plain_cases() if inspect_of(c).obstacle is None]
    assert len(free) > 0.8 * len(plain_cases())


def inspect_of(case: str) -> AdapterReport:
    return inspect_adapter(KINDS / case, task=CASES[case].get("task_id"))


@pytest.mark.parametrize("case", plain_cases())
def test_reading_it_back_gives_the_same_adapter(case: str, tmp_path: Path) -> None:
    if inspect_of(case).obstacle is not None:
        return
    out = tmp_path / "out"
    lowered_case(case, out, base=base_if_needed(case), attach_points=order_of(case, out))
    _, tensors = written(tmp_path / "out")
    again = load_adapter("again", tmp_path / "out", all_rules())
    assert not [f for f in again.findings if f.severity is not Severity.NOTE]
    for module in again.shapes:
        found = again.lower(module)
        assert isinstance(found, Lowered)
        assert (found.s == 1).all()
        B, A = factors(tensors, module)
        np.testing.assert_array_equal(found.A, A)
        np.testing.assert_array_equal(found.B, B)


@pytest.mark.parametrize("case", ["ia3_out", "lora_dora", "oft_default", "lora_dora_conv2d"])
def test_an_approximation_of_full_rank_is_the_whole_update(case: str, tmp_path: Path) -> None:
    """At full rank one factor is the update itself, so that only roundings are left."""
    report = lowered_case(
        case, tmp_path / "out", base=base_of(case), approximate_rank=10_000, max_error=1e-12
    )
    assert report.max_error is not None
    assert report.obstacle is not None
    _, tensors = written(tmp_path / "out")
    expected = load_file(KINDS / case / "expected.safetensors")
    for key, values in expected.items():
        kind, _, module = key.partition(":")
        if kind not in ("weight", "delta"):
            continue
        weight = fixture_base(CASES[case]["base"]).weight(module).astype(np.float64)
        theirs = values - weight if kind == "weight" else values.astype(np.float64)
        B, A = factors(tensors, module)
        rounding = HALF_UNIT * np.abs(weight + theirs)
        ours_rounded = 2 * HALF_UNIT * product(np.abs(B), np.abs(A))
        allowed = WITH_WEIGHT * np.abs(theirs).max() + rounding + ours_rounded
        assert (np.abs(product(B, A) - theirs) <= allowed).all(), module


def test_an_approximation_reports_its_error(tmp_path: Path) -> None:
    report = lowered_case(
        "lora_dora", tmp_path / "out", base=base_of("lora_dora"), approximate_rank=6, max_error=0.5
    )
    _, tensors = written(tmp_path / "out")
    expected = load_file(KINDS / "lora_dora" / "expected.safetensors")
    for module in report.modules:
        weight = fixture_base("llama").weight(module.module).astype(np.float64)
        key = f"weight:{module.module}"
        whole = expected[key] - weight if key in expected else expected[f"delta:{module.module}"]
        left = np.linalg.norm(whole - product(*factors(tensors, module.module)))
        assert module.error is not None
        # PEFT's weights are float32: their rounding is up to 2**-24 |W| / |delta| of the delta.
        slack = 2 * HALF_UNIT * np.linalg.norm(weight) / np.linalg.norm(whole)
        assert abs(left / np.linalg.norm(whole) - module.error) <= slack + WITH_WEIGHT
        assert module.rank == 6
    (finding,) = [f for f in report.findings if f.rule == "adapter/approximated"]
    assert f"{report.max_error:.3g}" in finding.message


def test_an_error_above_the_limit_is_refused_with_the_rank_that_is_needed(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="rank 2 leaves a relative error of") as caught:
        lowered_case(
            "oft_default",
            tmp_path / "out",
            base=base_of("oft_default"),
            approximate_rank=2,
            max_error=0.1,
        )
    assert "this module needs rank" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


def test_a_grouped_convolution_gets_the_ranks_of_every_group() -> None:
    rng = np.random.default_rng(3)
    A, B = rng.normal(size=(2, 3, 2, 2)), rng.normal(size=(8, 2))
    s = np.array([0.5, 4.0])
    shape = PlainShape(rank=4, in_features=6, out_features=8, kernel=(2, 2), groups=2)
    found = plain_pair(Lowered(A, B, s), shape, NOWHERE)
    assert found.A.shape == (4, 6, 2, 2)
    delta = np.einsum("or,r,rikl->oikl", B, s, A)
    ours = product(found.B.astype(np.float64), found.A.astype(np.float64))
    allowed = 2 * HALF_UNIT * np.einsum("or,r,rikl->oikl", abs(B), s, abs(A)) * (1 + HALF_UNIT)
    assert (np.abs(ours - delta) <= allowed).all()


@given(groups=st.integers(1, 4), per_group=st.integers(1, 3), rows=st.integers(1, 3))
def test_every_rank_keeps_its_scale(groups: int, per_group: int, rows: int) -> None:
    """Column j of group g is rank g * per_group + j. Small whole numbers are exact."""
    rank, out = groups * per_group, groups * rows
    s = np.arange(1.0, rank + 1)
    lowered = Lowered(np.ones((rank, groups)), np.ones((out, per_group)), s)
    shape = PlainShape(rank, groups, out, groups=groups)
    B = plain_pair(lowered, shape, NOWHERE).B
    for row in range(out):
        first = (row // rows) * per_group
        np.testing.assert_array_equal(B[row], s[first : first + per_group])


def test_what_float32_cannot_hold_is_refused() -> None:
    lowered = Lowered(np.ones((1, 2)), np.full((2, 1), 1e300), np.ones(1))
    with pytest.raises(AdapterError, match="B with its scale does not fit float32"):
        plain_pair(lowered, PlainShape(1, 2, 2), NOWHERE)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_is_as_stored_and_the_scale_is_in_b(dtype: Any, tmp_path: Path) -> None:
    tensors = pair(Q0, dtype=dtype)
    write(tmp_path / "in", tensors, lora_alpha=3)
    lower_adapter(tmp_path / "in", tmp_path / "out")
    config, found = written(tmp_path / "out")
    assert {t.dtype for t in found.values()} == {np.dtype(np.float32)}
    a, b = f"{PREFIX}{Q0}.lora_A.weight", f"{PREFIX}{Q0}.lora_B.weight"
    np.testing.assert_array_equal(found[a], tensors[a].astype(np.float32))
    scaled = (tensors[b].astype(np.float64) * 0.75).astype(np.float32)
    np.testing.assert_array_equal(found[b], scaled)
    assert config["lora_alpha"] == config["r"] == 4


def test_the_configuration_has_scale_one_for_every_module(tmp_path: Path) -> None:
    tensors = {**pair(Q0, rank=4), **pair(V0, rank=2), **pair(Q1, rank=4)}
    write(
        tmp_path / "in",
        tensors,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 2},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    lower_adapter(tmp_path / "in", tmp_path / "out")
    config, _ = written(tmp_path / "out")
    escaped = "^" + V0.replace(".", r"\.")
    assert config["rank_pattern"] == config["alpha_pattern"] == {escaped: 2}
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 4, False)
    assert config["target_modules"] == [Q0, V0, Q1]
    assert config["base_model_name_or_path"] == "tiny"
    assert config["task_type"] == "CAUSAL_LM"
    assert "peft_version" not in config


def test_of_two_ranks_that_are_as_common_the_larger_is_r(tmp_path: Path) -> None:
    tensors = {**pair(Q0, rank=4), **pair(V0, rank=8)}
    write(
        tmp_path / "in",
        tensors,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 8},
    )
    lower_adapter(tmp_path / "in", tmp_path / "out")
    assert written(tmp_path / "out")[0]["r"] == 8


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        lowered_case("lora_patterns", tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 2


def test_a_module_without_a_bias_gets_zeros_beside_others_with_one(tmp_path: Path) -> None:
    report = lowered_case("beft", tmp_path / "out", base=base_of("beft"))
    assert report.adapter_class == "low-rank"
    config, tensors = written(tmp_path / "out")
    assert config["lora_bias"] is True
    assert config["r"] == 1
    expected = load_file(KINDS / "beft" / "adapter_model.safetensors")
    for name, values in expected.items():
        module = name.removesuffix(".beft_bias")
        np.testing.assert_array_equal(tensors[f"{module}.lora_B.bias"], values.reshape(-1))
        assert not tensors[f"{module}.lora_B.weight"].any()


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        ("lora_modules_to_save", {"modules_to_save": ["lm_head"], "bias": "none"}),
        ("lora_bias_all", {"modules_to_save": None, "bias": "all"}),
        ("lora_bias_only", {"modules_to_save": None, "bias": "lora_only"}),
        ("lora_trainable_tokens", {"trainable_token_indices": {"embed_tokens": [1, 30, 4]}}),
    ],
)
def test_replaced_parameters_pass_through(
    case: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    lowered_case(case, tmp_path / "out")
    config, tensors = written(tmp_path / "out")
    assert {name: config[name] for name in fields} == fields
    given_ = load_file(KINDS / case / "adapter_model.safetensors")
    passed = [name for name in given_ if ".lora_" not in name]
    assert passed
    for name in passed:
        np.testing.assert_array_equal(tensors[name], given_[name])
        assert tensors[name].dtype == given_[name].dtype


@pytest.mark.parametrize(
    ("case", "words", "hint"),
    [
        ("lora_dora", "scales the outputs of the base's modules (6 of its 6", "--approximate"),
        ("ia3_feedforward", "scales the outputs of the base's modules", "--approximate"),
        ("oft_default", "its update has no low rank (", "--merge"),
        ("prompt_tuning", "it is a soft prompt", "lora-quant build"),
        ("ln_tuning_llama", "it replaces parameters and adapts no module", "lora-quant build"),
        ("lora_alora", "gated per token (aLoRA)", "lora-quant build"),
        ("lily", "a router weighs its ranks", "lora-quant build"),
        ("lora_mha", "MultiheadAttention's out_proj twice", "lora-quant build"),
        ("lora_experts_one", "it adapts parameters (target_parameters)", "lora-quant build"),
    ],
)
def test_what_plain_lora_cannot_hold_is_refused_with_the_way_out(
    case: str, words: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        lowered_case(case, tmp_path / "out")
    error: LoraQuantError = caught.value
    assert error.message.startswith("plain LoRA cannot hold this adapter of kind ")
    assert words in error.message
    assert hint in (error.hint or "")
    assert error.where.adapter == case
    assert not list(tmp_path.iterdir())
    assert words in f"{inspect_of(case).obstacle} ("


def test_a_base_is_asked_for_by_what_is_needed_of_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match="with the weight of the base's module"):
        lowered_case("lora_pissa", tmp_path / "out")
    with pytest.raises(UnsupportedAdapterError, match="do not tell the size of this module"):
        lowered_case("beft", tmp_path / "out")
    with pytest.raises(UnsupportedAdapterError, match="with the weight of the base's module"):
        lowered_case("ia3_out", tmp_path / "out", approximate_rank=4, max_error=0.9)
    assert not list(tmp_path.iterdir())


def test_the_base_may_be_an_onnx_graph(tmp_path: Path) -> None:
    graph = KINDS / "bases" / CASES["lora_pissa"]["base"] / "model.onnx"
    lowered_case("lora_pissa", tmp_path / "graph", base=graph)
    lowered_case("lora_pissa", tmp_path / "weights", base=base_of("lora_pissa"))
    one, other = (written(tmp_path / name)[1] for name in ("graph", "weights"))
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


def test_groups_are_those_of_the_graph_and_unknown_of_a_checkpoint(tmp_path: Path) -> None:
    folder = KINDS / "bases" / "groupnet"
    graph = lowered_case("loha_conv_grouped", tmp_path / "graph", base=folder / "model.onnx")
    assert not [f for f in graph.findings if f.rule == "adapter/groups-not-told"]
    A = written(tmp_path / "graph")[1][f"{PREFIX}grouped.lora_A.weight"]
    assert A.shape == (8, 8, 3, 3)
    assert not A[:4, 4:].any()
    assert not A[4:, :4].any()
    checkpoint = lowered_case("loha_conv_grouped", tmp_path / "checkpoint", base=folder)
    (finding,) = [f for f in checkpoint.findings if f.rule == "adapter/groups-not-told"]
    assert "were written for one group" in finding.message


def test_a_base_without_a_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="the base has no module"):
        lowered_case("lora_plain", tmp_path / "out", base=base_of("lora_conv2d"))
    with pytest.raises(InputMissingError, match="there is no such base model"):
        lowered_case("lora_plain", tmp_path / "out", base=tmp_path / "absent")
    assert not list(tmp_path.iterdir())


def test_a_kind_that_counts_its_modules_asks_for_their_order(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match="in the order of the model's definition"):
        lowered_case("tinylora_saved", tmp_path / "out", base=base_of("tinylora_saved"))
    order = order_of("tinylora_saved", tmp_path / "out")
    given_ = json.loads(order.read_text("utf-8"))
    shorter = {name.removeprefix("model."): nodes for name, nodes in given_.items()}
    for name, document in (("same", given_), ("shorter", shorter)):
        order.write_text(json.dumps(document), encoding="utf-8")
        lowered_case(
            "tinylora_saved",
            tmp_path / name,
            base=base_of("tinylora_saved"),
            attach_points=order,
        )
    one, other = (tmp_path / n / "adapter_model.safetensors" for n in ("same", "shorter"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("suffix", [".bin", ".gguf", ".json"])
def test_a_base_in_another_format_is_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"{}")
    with pytest.raises(ConfigError, match=f"a {suffix} file, expected ONNX or safetensors"):
        inspect_adapter(KINDS / "lora_plain", file)


@pytest.mark.parametrize(
    ("file", "name"),
    [("", "tone"), ("adapter_config.json", "tone"), ("adapter_model.safetensors", "tone")],
)
def test_an_adapter_is_called_like_its_folder(file: str, name: str, tmp_path: Path) -> None:
    write(tmp_path / "tone", pair(Q0))
    assert inspect_adapter(tmp_path / "tone" / file).name == name


def test_flat_names_of_kohya_are_refused(tmp_path: Path) -> None:
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {
        f"{stem}.lora_down.weight": np.ones((2, 3), np.float32),
        f"{stem}.lora_up.weight": np.ones((4, 2), np.float32),
        f"{stem}.alpha": np.array(2.0, np.float32),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    assert inspect_adapter(tmp_path / "style.safetensors").name == "style"
    with pytest.raises(UnsupportedAdapterError, match="underscores for dots") as caught:
        lower_adapter(tmp_path / "style.safetensors", tmp_path / "out")
    assert "diffusers" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"approximate_rank": 4}, "approximate_rank is given without max_error"),
        ({"max_error": 0.1}, "max_error is given without approximate_rank"),
        ({"approximate_rank": 0, "max_error": 0.1}, "approximate_rank is 0, expected at least 1"),
        ({"approximate_rank": 4, "max_error": 1.0}, "max_error is 1.0, expected from 0 to less"),
    ],
)
def test_options_that_contradict_are_refused(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        lowered_case("lora_plain", tmp_path / "out", **options)
    assert words in caught.value.message


def test_an_output_is_replaced_only_if_it_is_an_adapter_and_only_with_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    lowered_case("lora_plain", out)
    before = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(PackError, match="already holds an adapter"):
        lowered_case("lora_patterns", out)
    assert (out / "adapter_model.safetensors").read_bytes() == before
    lowered_case("lora_patterns", out, force=True)
    assert (out / "adapter_model.safetensors").read_bytes() != before
    (out / "notes.txt").write_text("mine")
    with pytest.raises(PackError, match=r"'notes\.txt'; it will not be replaced"):
        lowered_case("lora_plain", out, force=True)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(PackError, match="taken by something that is not a folder"):
        lowered_case("lora_plain", file, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


@pytest.mark.parametrize("name", ["", "adapter_model.safetensors", "adapter_config.json"])
def test_the_adapter_itself_is_never_the_output(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", pair(Q0))
    with pytest.raises(PackError, match="that of the adapter itself"):
        lower_adapter(folder / name, tmp_path / "x" / ".." / "in", force=True)


def test_a_failure_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    lowered_case("lora_plain", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise AdapterError("the file was changed")

    monkeypatch.setattr(lower, "plain_pair", fail)
    with pytest.raises(AdapterError, match="the file was changed"):
        lowered_case("lora_patterns", out, force=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nan_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    tensors = pair(Q0)
    tensors[f"{PREFIX}{Q0}.lora_A.weight"][1, 2] = np.nan
    write(tmp_path / "in", tensors)
    with pytest.raises(AdapterError, match="values are not finite"):
        lower_adapter(tmp_path / "in", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "case", [c for c in CASES if CASES[c]["class"] != "refuse" and c not in INCOMPLETE]
)
def test_every_case_that_can_be_read_can_be_inspected(case: str) -> None:
    report = inspect_of(case)
    assert report.kind == CASES[case]["kind"]
    assert report.format == "peft"
    assert (report.adapter_class == "prompt") is (CASES[case]["class"] == "prompt")
    assert report.modules or report.parameters or report.prompt
    if CASES[case]["class"] == "dense":
        assert report.adapter_class == "dense"


def test_a_base_tells_the_sizes_that_an_adapter_does_not() -> None:
    alone = inspect_adapter(KINDS / "ia3_out")
    assert {m.in_features for m in alone.modules} == {None}
    told = inspect_adapter(KINDS / "ia3_out", base_of("ia3_out"))
    assert {(m.in_features, m.out_features) for m in told.modules} == {(16, 24), (16, 16), (16, 8)}


def test_a_dense_module_stays_dense_without_approximation() -> None:
    adapter = load_adapter("x", KINDS / "oft_default", all_rules())
    module = next(iter(adapter.shapes))
    assert isinstance(adapter.lower(module, fixture_base("llama")), Dense)
    report = inspect_adapter(KINDS / "oft_default")
    assert all(m.dense and m.rank == 0 for m in report.modules)
