"""Adapters that meet on a module: what acts in order, what is refused, and with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant.errors import AttachPointError, ConfigError, UnsupportedAdapterError
from tests.builders import GraphBuilder, attention
from tests.mixes import KINDS, graph_of, merged_outputs, mixed, outputs
from tests.run_graph import largest

Array = NDArray[Any]
Step = Callable[[Array, Array], Array]
IN, OUT = 5, 4
FC = "base_model.model.fc"


def one_layer(folder: Path) -> tuple[Path, Array, Array]:
    """x [2, 3, IN] -> MatMul -> Add -> y; the path, W [IN, OUT] and b."""
    graph = GraphBuilder(seed=3)
    x = graph.input("x", ("batch", "tokens", IN))
    x = graph.matmul("/fc/MatMul", x, in_features=IN, out_features=OUT, weight="fc.weight")
    y = graph.node("Add", [x, graph.weight("fc.bias", OUT)], "/fc/Add", "y")
    graph.output(y, ("batch", "tokens", OUT))
    path = graph.save(folder / "base.onnx")
    weights = {name: values.astype(np.float64) for name, values in graph.weights.items()}
    return path, weights["fc.weight"], weights["fc.bias"]


def write(folder: Path, tensors: dict[str, Array], **config: Any) -> Path:
    folder.mkdir(parents=True)
    values = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    save_file(values, folder / "adapter_model.safetensors")
    text = json.dumps({"target_modules": ["fc"]} | config)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder


def lora(folder: Path, seed: int, *, bias: bool = False) -> Step:
    """y + 2 (B A x + b_B)"""
    rng = np.random.default_rng(seed)
    A, B, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, IN), (OUT, 2), (OUT,)))
    tensors = {f"{FC}.lora_A.weight": A, f"{FC}.lora_B.weight": B}
    if bias:
        tensors[f"{FC}.lora_B.bias"] = b
    write(folder, tensors, peft_type="LORA", r=2, lora_alpha=4, lora_bias=bias)
    wide = [values.astype(np.float64) for values in (A, B, b * bias)]
    return lambda x, y: y + 2 * (x @ wide[0].T @ wide[1].T + wide[2])


def ia3(folder: Path, seed: int) -> Step:
    """l * y"""
    scale = np.random.default_rng(seed).uniform(0.5, 1.5, size=(OUT, 1)).astype(np.float32)
    tensors = {f"{FC}.ia3_l": scale}
    write(folder, tensors, peft_type="IA3", feedforward_modules=[])
    wide = scale[:, 0].astype(np.float64)
    return lambda _, y: y * wide


def ia3_input(folder: Path, seed: int) -> Array:
    """h of W (h * x)"""
    scale = np.random.default_rng(seed).uniform(0.5, 1.5, size=(1, IN)).astype(np.float32)
    tensors = {f"{FC}.ia3_l": scale}
    write(folder, tensors, peft_type="IA3", feedforward_modules=["fc"])
    h: Array = scale[0].astype(np.float64)
    return h


def inputs(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


MAKERS: dict[str, Callable[[Path, int], Step]] = {
    "lora": lora,
    "bias": lambda folder, seed: lora(folder, seed, bias=True),
    "ia3": ia3,
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    kinds=st.lists(st.sampled_from(sorted(MAKERS)), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_in_order_means_one_adapter_after_the_other(
    kinds: list[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each step of the reference works on what the steps before it gave, bias included.

    Numbers stay below 2**10 for 4 steps, and no output sums more than 16 products: 32 roundings.
    """
    folder = tmp_path_factory.mktemp("stack")
    graph, W, b = one_layer(folder)
    names = [f"{kind}{number}" for number, kind in enumerate(kinds)]
    steps = [MAKERS[kind](folder / names[n], seed + n) for n, kind in enumerate(kinds)]
    paths = {name: folder / name for name in names}
    use_cases = {"it": dict.fromkeys(names, 1.0)}
    result = mixed(folder / "pack", graph, use_cases, paths=paths, stacking="in-order")
    x = inputs(2, 3, IN)
    wide = x.astype(np.float64)
    expected = wide @ W + b
    for step in steps:
        expected = step(wide, expected)
    ours = outputs(result, "it", {"x": x})
    size = max(1.0, float(np.abs(expected).max()))
    assert size < 2**10
    assert largest(ours, expected) <= 32 * 2.0**-24 * 2**6 * size


def test_two_scales_of_one_input_are_multiplied(tmp_path: Path) -> None:
    graph, W, b = one_layer(tmp_path)
    h = ia3_input(tmp_path / "a", 1) * ia3_input(tmp_path / "b", 2)
    paths = {name: tmp_path / name for name in "ab"}
    given = {"it": {"a": 1.0, "b": 1.0}, "one": {"a": 1.0}}
    result = mixed(tmp_path / "pack", graph, given, paths=paths, stacking="in-order")
    x = inputs(2, 3, IN)
    expected = (x.astype(np.float64) * h) @ W + b
    # 5 products of numbers below 8, and h rounded once
    assert largest(outputs(result, "it", {"x": x}), expected) <= 8 * 2.0**-24 * 8
    assert largest(outputs(result, "one", {"x": x}), expected) >= 0.01


def test_two_scales_of_one_input_are_refused_without_an_order(tmp_path: Path) -> None:
    graph, *_ = one_layer(tmp_path)
    for number, name in enumerate("ab"):
        ia3_input(tmp_path / name, number)
    paths = {name: tmp_path / name for name in "ab"}
    with pytest.raises(UnsupportedAdapterError, match="'a' and 'b' meet on one module"):
        mixed(tmp_path / "pack", graph, {"it": {"a": 1.0, "b": 1.0}}, paths=paths)


@pytest.mark.parametrize("other", sorted(MAKERS))
@pytest.mark.parametrize("stacking", ["refuse", "in-order"])
@pytest.mark.parametrize("first", ["h", "other"])
def test_a_scaled_input_meets_nothing_else(
    other: str, stacking: str, first: str, tmp_path: Path
) -> None:
    """Whether the other adapter reads the scaled input or the plain one is not settled in PEFT."""
    graph, *_ = one_layer(tmp_path)
    ia3_input(tmp_path / "h", 1)
    MAKERS[other](tmp_path / "other", 2)
    paths = {name: tmp_path / name for name in ("h", "other")}
    names = [first, *(name for name in paths if name != first)]
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(
            tmp_path / "pack",
            graph,
            {"it": dict.fromkeys(names, 1.0)},
            paths=paths,
            stacking=stacking,
        )
    error = caught.value
    assert error.message == (
        f"adapters {names[0]!r} and {names[1]!r} meet on one module whose input one of them scales"
    )
    assert (error.where.use_case, error.where.module) == ("it", "fc")
    assert error.hint == "use them in separate use cases"


def test_use_cases_that_do_not_mix_them_share_a_pack(tmp_path: Path) -> None:
    graph, W, b = one_layer(tmp_path)
    h = ia3_input(tmp_path / "h", 1)
    steps = {name: MAKERS[name](tmp_path / name, 2) for name in MAKERS}
    paths = {name: tmp_path / name for name in ("h", *MAKERS)}
    use_cases = {name: {name: 1.0} for name in paths}
    result = mixed(tmp_path / "pack", graph, use_cases, paths=paths)
    x = inputs(2, 3, IN)
    wide = x.astype(np.float64)
    plain = wide @ W + b
    expected = {"h": (wide * h) @ W + b, "base": plain}
    expected |= {name: step(wide, plain) for name, step in steps.items()}
    for name, values in expected.items():
        # sums of 5 and 2 products of numbers below 64
        assert largest(outputs(result, name, {"x": x}), values) <= 16 * 2.0**-24 * 64


def test_a_scaled_input_of_one_part_of_a_fused_projection_is_refused(tmp_path: Path) -> None:
    graph = attention(layers=1, style="packed").save(tmp_path / "base.onnx")
    name = "base_model.model.model.layers.0.self_attn.k_proj.ia3_l"
    path = write(
        tmp_path / "h",
        {name: np.full((1, 8), 2.0)},
        peft_type="IA3",
        target_modules=["k_proj"],
        feedforward_modules=["k_proj"],
    )
    with pytest.raises(
        AttachPointError,
        match="the adapter scales its inputs, which other projections of the node read too",
    ):
        mixed(tmp_path / "pack", graph, {"it": {"h": 1.0}}, paths={"h": path})


def packed(leaf: str, tensors: dict[str, Array]) -> dict[str, Array]:
    level = f"base_model.model.model.layers.0.self_attn.{leaf}"
    return {f"{level}.{name}": values for name, values in tensors.items()}


def test_parts_of_a_fused_projection_do_not_meet(tmp_path: Path) -> None:
    """One adapter scales q, another adds low rank to v: each works on its own rows."""
    graph = attention(layers=1, style="packed")
    rng = np.random.default_rng(5)
    scale = rng.uniform(0.5, 1.5, size=(8, 1)).astype(np.float32)
    A, B = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8), (4, 2)))
    g = write(
        tmp_path / "g",
        packed("q_proj", {"ia3_l": scale}),
        peft_type="IA3",
        target_modules=["q_proj"],
        feedforward_modules=[],
    )
    low = write(
        tmp_path / "low",
        packed("v_proj", {"lora_A.weight": A, "lora_B.weight": B}),
        peft_type="LORA",
        target_modules=["v_proj"],
        r=2,
        lora_alpha=2,
    )
    file = graph.save(tmp_path / "base.onnx")
    given = {"it": {"g": 1.0, "low": 0.5}}
    result = mixed(tmp_path / "pack", file, given, paths={"g": g, "low": low})
    x = inputs(2, 3, 8)
    wide = x.astype(np.float64)
    W, W_o = (values.astype(np.float64) for values in graph.weights.values())
    qkv = wide @ W
    qkv[..., :8] *= scale[:, 0].astype(np.float64)
    qkv[..., 12:] += 0.5 * wide @ A.T.astype(np.float64) @ B.T.astype(np.float64)
    # sums of 8, 2 and 16 products of numbers below 64
    allowed = 32 * 2.0**-24 * 64
    assert largest(outputs(result, "it", {"x": x}), wide + qkv @ W_o) <= allowed


@pytest.mark.parametrize("strength", [0.0, 0.999, 2.0])
def test_a_strength_of_a_scale_is_refused(strength: float, tmp_path: Path) -> None:
    graph, *_ = one_layer(tmp_path)
    ia3(tmp_path / "g", 1)
    with pytest.raises(ConfigError) as caught:
        mixed(tmp_path / "pack", graph, {"it": {"g": strength}}, paths={"g": tmp_path / "g"})
    assert caught.value.message == (
        f"adapter 'g' has the strength {strength:g}, expected 1: it scales the activations of "
        "'fc', where a strength has no meaning"
    )


def refusal(folder: Path, base: str, names: Sequence[str], **options: Any) -> str:
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(folder / "refused", graph_of(base), {"it": dict.fromkeys(names, 1.0)}, **options)
    assert caught.value.hint == "use them in separate use cases"
    return caught.value.message


def test_a_rotation_meets_nothing_even_if_it_has_a_low_rank(tmp_path: Path) -> None:
    """PEFT gives W H1 H2 for two HRA; the sum of W (H1 - 1) and W (H2 - 1) is another matrix."""
    told = "in a form whose update is not one that others can be added to"
    assert refusal(tmp_path, "llama", ["hra_linear", "lora_plain"]).endswith(
        f"'hra_linear' is of kind HRA, {told}"
    )
    message = refusal(tmp_path, "llama", ["lora_plain", "road_2"], merge="it")
    assert message.endswith(f"'road_2' is of kind ROAD, {told}")


def test_blocks_meet_others_unless_they_read_the_weight(tmp_path: Path) -> None:
    use_cases = {"it": {"miss_std": 1.0, "bone_std": 0.5, "lora_plain": 1.0}}
    assert mixed(tmp_path / "pack", graph_of("llama"), use_cases).manifest.max_rank > 0
    assert "'bone_bat' is of kind BONE" in refusal(
        tmp_path, "llama", ["bone_bat", "lora_plain"], merge="it"
    )


def test_a_replaced_bias_belongs_to_one_adapter(tmp_path: Path) -> None:
    names = ["lora_bias_only", "lora_dora_bias"]
    assert refusal(tmp_path, "qwen", names, stacking="in-order") == (
        "adapters 'lora_bias_only' and 'lora_dora_bias' both replace "
        "'model.layers.0.self_attn.q_proj.bias'"
    )


def test_a_replaced_bias_does_not_meet_the_scale_of_another(tmp_path: Path) -> None:
    names = ["lora_bias_only", "ia3_bias"]
    message = refusal(tmp_path, "qwen", names, stacking="in-order")
    assert message == (
        "adapter 'lora_bias_only' replaces 'model.layers.0.self_attn.q_proj.bias', which is of a "
        "module that adapter 'ia3_bias' scales as the base has it"
    )


@pytest.mark.parametrize(
    ("first", "second", "parameter", "module"),
    [
        ("lora_modules_to_save", "LM", "lm_head.weight", "lm_head"),
        (
            "trainable_tokens",
            "lora_embed_tokens",
            "model.embed_tokens.weight",
            "model.embed_tokens",
        ),
        (
            "lora_embedding_table",
            "lora_embed_tokens",
            "model.embed_tokens.weight",
            "model.embed_tokens",
        ),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("merge", [None, "it"])
def test_a_replaced_weight_does_not_meet_another_adapters_update_of_it(
    first: str,
    second: str,
    parameter: str,
    module: str,
    turned: bool,
    merge: str | None,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(2)
    paths: dict[str, Path] = {}
    if second == "LM":
        table = load_file(KINDS / "bases" / "llama" / "weights.safetensors")["lm_head.weight"]
        out, inner = table.shape
        head = {
            f"base_model.model.lm_head.lora_{letter}.weight": rng.normal(size=shape)
            for letter, shape in (("A", (2, inner)), ("B", (out, 2)))
        }
        path = write(tmp_path / second, head, peft_type="LORA", target_modules=["lm_head"], r=2)
        paths = {second: path}
    names = [second, first] if turned else [first, second]
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(
            tmp_path / "pack",
            graph_of("llama"),
            {"it": dict.fromkeys(names, 1.0)},
            paths=paths,
            merge=merge,
        )
    assert caught.value.message == (
        f"adapter {first!r} replaces {parameter!r}, which is the weight of a module that adapter "
        f"{second!r} updates"
    )
    assert caught.value.where.module == module
    assert caught.value.hint == "use them in separate use cases"


def test_a_replaced_weight_and_an_update_of_it_share_a_pack_in_separate_use_cases(
    tmp_path: Path,
) -> None:
    given = {"rows": {"trainable_tokens": 1.0}, "low": {"lora_embed_tokens": 0.5}}
    assert mixed(tmp_path / "pack", graph_of("llama"), given).manifest.max_rank > 0


def saved(folder: Path, name: str, values: Array, **config: Any) -> Path:
    """An adapter that replaces one parameter and adapts no module."""
    given = {"peft_type": "LORA", "target_modules": [], "r": 2} | config
    return write(folder, {f"base_model.model.{name}": values}, **given)


def refused(folder: Path, graph: Path, **options: Any) -> UnsupportedAdapterError:
    """What is said of the adapters of the folder in one use case."""
    paths = {file.parent.name: file.parent for file in sorted(folder.glob("*/adapter_config.json"))}
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(folder / "pack", graph, {"it": dict.fromkeys(paths, 1.0)}, paths=paths, **options)
    assert caught.value.hint == "use them in separate use cases"
    assert caught.value.where.use_case == "it"
    return caught.value


def test_a_bias_under_two_spellings_belongs_to_one_adapter(tmp_path: Path) -> None:
    graph, _, b = one_layer(tmp_path)
    saved(tmp_path / "a", "fc.bias", b + 1, bias="all")
    saved(tmp_path / "b", "net.fc.bias", b + 2, bias="all")
    assert refused(tmp_path, graph).message == (
        "adapters 'a' and 'b' replace 'fc.bias' and 'net.fc.bias', which are one parameter of the "
        "base"
    )


def test_a_tied_head_belongs_to_one_adapter(tmp_path: Path) -> None:
    """Trained tokens are put into the head as well, which another adapter replaces as a whole."""
    shutil.copytree(KINDS / "lora_trainable_tokens_tied", tmp_path / "a")
    table = load_file(KINDS / "bases" / "llama_tied" / "weights.safetensors")[
        "model.embed_tokens.weight"
    ]
    saved(tmp_path / "b", "lm_head.weight", table + 1, modules_to_save=["lm_head"])
    assert refused(tmp_path, graph_of("llama_tied")).message == (
        "adapters 'a' and 'b' replace 'model.embed_tokens.weight' and 'lm_head.weight', which are "
        "one parameter of the base"
    )


def reading(folder: Path, kind: str) -> Path:
    """An adapter of `fc` whose update is computed from the base's weight or bias."""
    rng = np.random.default_rng(9)
    config: dict[str, Any] = {"peft_type": kind.split()[0]}
    if kind == "HRA":
        config["r"] = 2
        tensors = {f"{FC}.hra_u": rng.normal(size=(IN, 2))}
    elif kind == "ROAD":
        tensors = {f"{FC}.road_{name}": rng.normal(size=2) for name in ("theta", "alpha")}
        config |= {"variant": "road_1", "group_size": 4}
    else:
        tensors = {f"{FC}.glora_{path}.zeros": np.zeros((OUT, IN)) for path in "AB"}
        tensors |= {f"{FC}.glora_{path}.X": rng.normal(size=1) for path in "DE"}
        form = "none" if kind.endswith("without C") else "vector"
        column = rng.normal(size=(IN, 1))
        tensors |= (
            {f"{FC}.glora_C.zeros": 0 * column} if form == "none" else {f"{FC}.glora_C.X": column}
        )
        config |= {"config_A_B": "none", "config_C": form, "config_D_E": "constant"}
    return write(folder, tensors, **config)


@pytest.mark.parametrize("parameter", ["fc.weight", "fc.bias", "net.fc.bias"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("HRA", {}),
        ("HRA", {"merge": "it"}),
        ("ROAD", {"merge": "it"}),
        ("GLORA", {}),
        ("GLORA without C", {}),
        ("GLORA without C", {"merge": "it"}),
    ],
    ids=str,
)
def test_what_an_update_is_computed_from_is_not_replaced_by_another_adapter(
    kind: str, options: dict[str, Any], parameter: str, tmp_path: Path
) -> None:
    graph, W, b = one_layer(tmp_path)
    reading(tmp_path / "other", kind)
    values = W.T + 1 if parameter.endswith("weight") else b + 1
    saved(tmp_path / "saved", parameter, values, modules_to_save=["fc"])
    error = refused(tmp_path, graph, **options)
    assert error.message == (
        f"adapter 'saved' replaces {parameter!r}, which is of a module whose update in adapter "
        "'other' is computed from what the base has"
    )
    assert error.where.module == "fc"


def test_a_tied_weight_that_another_update_is_computed_from_is_not_replaced(tmp_path: Path) -> None:
    """The rows of trained tokens are those of the head, which nobody names."""
    shutil.copytree(KINDS / "lora_trainable_tokens_tied", tmp_path / "tokens")
    tensors = {"base_model.model.lm_head.hra_u": np.eye(16)[:, :2]}
    write(tmp_path / "other", tensors, peft_type="HRA", r=2, target_modules=["lm_head"])
    assert refused(tmp_path, graph_of("llama_tied")).message == (
        "adapter 'tokens' replaces 'source.lm_head.weight', which is of a module whose update in "
        "adapter 'other' is computed from what the base has"
    )


def miss(folder: Path, seed: int) -> Step:
    """y + block' x: with a rank of IN there is one block"""
    block = np.random.default_rng(seed).normal(size=(IN, OUT)).astype(np.float32)
    write(folder, {f"{FC}.miss_block": block}, peft_type="MISS", r=IN)
    wide = block.astype(np.float64)
    return lambda x, y: y + x @ wide


@pytest.mark.parametrize("kind", ["lora", "miss"])
@pytest.mark.parametrize("merge", [None, "it"])
def test_low_rank_stands_beside_a_bias_that_another_adapter_replaces(
    kind: str, merge: str | None, tmp_path: Path
) -> None:
    """MiSS asks the base for its sizes, and is lowered with it, but reads no values."""
    graph, W, b = one_layer(tmp_path)
    step = {"lora": lora, "miss": miss}[kind](tmp_path / "low", 4)
    saved(tmp_path / "saved", "fc.bias", b + 1, bias="all")
    paths = {name: tmp_path / name for name in ("low", "saved")}
    use_cases = {"it": {"low": 1.0, "saved": 1.0}}
    result = mixed(tmp_path / "pack", graph, use_cases, paths=paths, merge=merge)
    x = inputs(2, 3, IN)
    wide = x.astype(np.float64)
    ours = outputs(result, "it", {"x": x}) if merge is None else merged_outputs(result, {"x": x})
    # sums of 5, 5 and 2 products of numbers below 64
    assert largest(ours, step(wide, wide @ W + b + 1)) <= 16 * 2.0**-24 * 64
