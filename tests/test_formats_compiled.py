"""Adapters in the formats of other libraries, compiled onto small graphs and run.

Each graph has one node for every module of an adapter, with the weights of the fixture, an input
and an output of its own, named as an exporter names it. References are the libraries' merged
weights, or the tensors that they convert to; every output is compared in float64 with

    8 * 2**-24 * (the sum of the magnitudes of everything that is added up for it)

which is what about 8 roundings, in float32 factors, sums and the library's own steps, can make.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant.api import BuildResult
from lora_quant.errors import LoraQuantError
from tests.adapters.formats import gguf_bytes
from tests.builders import GraphBuilder
from tests.mixes import controls, mixed
from tests.run_graph import run_use_case

Array = NDArray[Any]
FIXTURES = Path(__file__).parent / "fixtures" / "formats"
MERGED = sorted(path.parent.name for path in FIXTURES.glob("*/merged.safetensors"))
# Converted by the library itself, and the scale that goes with it.
CONVERTED = {
    "aimet": 12 / 3,
    "diffusers": 1.0,
    "diffusers_metadata": 12 / 3**0.5,
    "gguf_llama": 12 / 3,
    "gguf_qwen2": 12 / 3,
    "torchtune_llama": 12 / 3,
}
ROUNDINGS = 8 * 2.0**-24


@dataclass(frozen=True)
class Layer:
    """One module: W `[out, in, *kernel]`, a table of an embedding `[V, dim]`; W' and b' beside."""

    W: Array
    b: Array | None
    expected: Array
    expected_bias: Array | None
    is_table: bool = False


def adapter_file(case: str) -> Path:
    """What a user names: the file, or the folder where a configuration lies beside it."""
    folder = FIXTURES / case
    names = ("adapter.safetensors", "adapter.gguf", "tone.safetensor")
    return next((folder / name for name in names if (folder / name).exists()), folder)


def graph_of(layers: Mapping[str, Layer]) -> GraphBuilder:
    """One input `x.<number>` and one output `y.<number>` for every layer."""
    graph = GraphBuilder()
    for number, (module, layer) in enumerate(layers.items()):
        name = "/" + re.sub(r"\.(?!\d)", "/", module)
        weight, y = f"{module}.weight", f"y.{number}"
        W, out = layer.W, layer.W.shape[0]
        if layer.is_table:
            x = graph.input(f"x.{number}", ("batch", "tokens"), "int64")
            graph.node("Gather", [graph.constant(weight, W), x], f"{name}/Gather", y)
            graph.output(y, ("batch", "tokens", W.shape[1]))
            continue
        if W.ndim == 4:
            x = graph.input(f"x.{number}", ("batch", W.shape[1], "height", "width"))
            inputs = [x, graph.constant(weight, W)]
            if layer.b is not None:
                inputs.append(graph.constant(f"{module}.bias", layer.b))
            pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
            graph.node("Conv", inputs, f"{name}/Conv", y, **pads)
            graph.output(y, ("batch", out, "height", "width"))
            continue
        x = graph.input(f"x.{number}", ("batch", "tokens", W.shape[1]))
        stored = graph.constant(weight, np.ascontiguousarray(W.T))
        if layer.b is None:
            graph.node("MatMul", [x, stored], f"{name}/MatMul", y)
        else:
            product = graph.node("MatMul", [x, stored], f"{name}/MatMul")
            bias = graph.constant(f"{module}.bias", layer.b)
            graph.node("Add", [bias, product], f"{name}/Add", y)
        graph.output(y, ("batch", "tokens", out))
    return graph


def inputs_of(layers: Mapping[str, Layer]) -> dict[str, Array]:
    rng = np.random.default_rng(2)
    found: dict[str, Array] = {}
    for number, layer in enumerate(layers.values()):
        W = layer.W
        if layer.is_table:
            found[f"x.{number}"] = rng.integers(0, len(W), size=(2, 5))
        elif W.ndim == 4:
            found[f"x.{number}"] = rng.normal(size=(2, W.shape[1], 5, 4)).astype(np.float32)
        else:
            found[f"x.{number}"] = rng.normal(size=(2, 5, W.shape[1])).astype(np.float32)
    return found


def answer(layer: Layer, x: Array, W: Array, b: Array | None) -> Array:
    """What a layer with these weights makes of x, float64."""
    if layer.is_table:
        rows: Array = W[x]
        return rows
    wide, weight = x.astype(np.float64), W.astype(np.float64)
    bias = np.zeros(len(W)) if b is None else b.astype(np.float64)
    if W.ndim == 2:
        made: Array = wide @ weight.T + bias
        return made
    padded = np.pad(wide, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    summed: Array = np.einsum("bihwkl,oikl->bohw", windows, weight)
    return summed + bias[:, None, None]


def compiled(folder: Path, layers: Mapping[str, Layer], path: Path) -> BuildResult:
    base = graph_of(layers).save(folder / "base.onnx")
    return mixed(folder / "pack", base, {"it": {"tone": 1.0}}, paths={"tone": path})


def check(result: BuildResult, layers: Mapping[str, Layer]) -> None:
    """Every output is the expected layer's; without the adapter it is the base's, and far off."""
    feeds = inputs_of(layers)
    model = result.output / "qairt" / "model.onnx"
    made = {}
    for use_case in ("it", "base"):
        weights = result.output / "qairt" / use_case / "lora_weights.safetensors"
        made[use_case] = run_use_case(model, weights, feeds | controls(result, use_case))
    for number, layer in enumerate(layers.values()):
        x, y = feeds[f"x.{number}"], f"y.{number}"
        theirs = answer(layer, x, layer.expected, layer.expected_bias)
        size = [np.abs(w) for w in (layer.W, layer.expected)]
        bias = None if layer.b is None else np.abs(layer.b)
        magnitude = sum(answer(layer, x if layer.is_table else np.abs(x), w, bias) for w in size)
        # an update of low rank is a sum of products that may cancel: as much again for each rank
        allowed = 4 * ROUNDINGS * float(np.max(magnitude))
        assert np.abs(made["it"][y] - theirs).max() <= allowed
        assert np.abs(made["base"][y] - theirs).max() >= 1e3 * allowed


def merged_layers(case: str) -> dict[str, Layer]:
    found: dict[str, dict[str, Array]] = {}
    for name, values in load_file(FIXTURES / case / "merged.safetensors").items():
        module, _, what = name.partition("|")
        found.setdefault(module, {})[what] = values
    return {
        module: Layer(v["W"], v.get("b"), v["W'"], v.get("b'"), module.endswith("embed_tokens"))
        for module, v in found.items()
    }


def test_the_fixtures_are_there() -> None:
    assert len(MERGED) == 13
    converted = {path.parent.name for path in FIXTURES.glob("*/peft.safetensors")}
    assert converted == set(CONVERTED)


@pytest.mark.parametrize("case", MERGED)
def test_a_compiled_layer_answers_as_in_its_library(case: str, tmp_path: Path) -> None:
    layers = merged_layers(case)
    result = compiled(tmp_path, layers, adapter_file(case))
    check(result, layers)
    (record,) = result.manifest.adapters
    assert record.format == ("mlx" if case.startswith("mlx") else "kohya")


def converted_layers(case: str, scale: float) -> dict[str, Layer]:
    """Random weights, and the update of the tensors that the library's own conversion gave."""
    tensors = {
        name.removeprefix("base_model.model."): values.astype(np.float64)
        for name, values in load_file(FIXTURES / case / "peft.safetensors").items()
    }
    rng = np.random.default_rng(8)
    layers = {}
    for name, A in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            update = scale * tensors[f"{module}.lora_B.weight"] @ A
        elif name.endswith(".lora_embedding_A"):
            module = name.removesuffix(".lora_embedding_A")
            update = scale * (tensors[f"{module}.lora_embedding_B"] @ A).T
        else:
            continue
        W = rng.normal(size=update.shape).astype(np.float32)
        is_table = name.endswith("embedding_A")
        layers[module] = Layer(W, None, W + update, None, is_table)
    return layers


@pytest.mark.parametrize("case", sorted(CONVERTED))
def test_a_compiled_layer_has_what_the_library_converts_to(case: str, tmp_path: Path) -> None:
    layers = converted_layers(case, CONVERTED[case])
    assert len(layers) >= 2
    result = compiled(tmp_path, layers, adapter_file(case))
    check(result, layers)
    (record,) = result.manifest.adapters
    assert case.startswith(record.format)


def test_a_gguf_file_of_its_own(tmp_path: Path) -> None:
    """Written byte by byte: alpha / rank = 8 / 2, A `[r, in]`, B `[out, r]`."""
    rng = np.random.default_rng(3)
    A, B = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 6), (5, 2)))
    path = gguf_bytes.write(
        tmp_path / "tone.gguf",
        {"blk.1.ffn_down.weight.lora_a": A, "blk.1.ffn_down.weight.lora_b": B},
    )
    W = rng.normal(size=(5, 6)).astype(np.float32)
    update = 4 * B.astype(np.float64) @ A.astype(np.float64)
    layers = {"model.layers.1.mlp.down_proj": Layer(W, None, W + update, None)}
    check(compiled(tmp_path, layers, path), layers)


def kohya_pair(flat: str, rng: np.random.Generator, out: int, width: int) -> dict[str, Array]:
    return {
        f"{flat}.lora_down.weight": rng.normal(size=(2, width)).astype(np.float32),
        f"{flat}.lora_up.weight": rng.normal(size=(out, 2)).astype(np.float32),
        f"{flat}.alpha": np.array(1, np.float32),
    }


def test_a_mapping_leads_from_flat_names_to_nodes(tmp_path: Path) -> None:
    """`blocks_1` is no end of `blocks_11`, and `to_out_0` is `to_out.0`."""
    rng = np.random.default_rng(4)
    paths = ["down_blocks.1.attn.to_q", "down_blocks.11.attn.to_q", "mid_block.attn.to_out.0"]
    tensors: dict[str, Array] = {}
    layers, mapping = {}, {}
    for path in paths:
        flat = path.replace(".", "_")
        pair = kohya_pair(f"lora_unet_{flat}", rng, 5, 6)
        tensors |= pair
        down, up, _ = (values.astype(np.float64) for values in pair.values())
        W = rng.normal(size=(5, 6)).astype(np.float32)
        layers[path] = Layer(W, None, W + 0.5 * up @ down, None)
        node = re.sub(r"\.(?!\d)", "/", path)
        mapping[f"unet.{flat}"] = [f"/{node}/MatMul"]
    save_file(tensors, tmp_path / "style.safetensors")
    base = graph_of(layers).save(tmp_path / "base.onnx")
    file = tmp_path / "map.json"
    file.write_text(json.dumps(mapping), encoding="utf-8")
    style = {"style": tmp_path / "style.safetensors"}
    given = {"it": {"style": 1.0}}
    result = mixed(tmp_path / "pack", base, given, paths=style, mapping=file)
    check(result, layers)


def test_a_flat_name_without_a_node_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    tensors = kohya_pair("lora_unet_down_blocks_1_attn_to_q", rng, 5, 6)
    save_file(tensors, tmp_path / "style.safetensors")
    W = rng.normal(size=(5, 6)).astype(np.float32)
    layers = {"unet.down_blocks_11_attn_to_q": Layer(W, None, W, None)}
    with pytest.raises(LoraQuantError, match="down_blocks_1_attn_to_q") as caught:
        compiled(tmp_path, layers, tmp_path / "style.safetensors")
    assert caught.value.where.module == "unet.down_blocks_1_attn_to_q"
    assert caught.value.hint is not None


def test_adapters_of_several_formats_add_up(tmp_path: Path) -> None:
    """An MLX folder at 0.5, whose scale is 3 as it is, and a GGUF file at -1 on one layer."""
    rng = np.random.default_rng(6)
    module = "model.layers.1.mlp.down_proj"
    first, second = (rng.normal(size=s).astype(np.float32) for s in ((6, 2), (2, 5)))
    folder = tmp_path / "mlx"
    folder.mkdir()
    tensors = {f"{module}.lora_a": first, f"{module}.lora_b": second}
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": 2, "scale": 3.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    A, B = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 6), (5, 3)))
    gguf = gguf_bytes.write(
        tmp_path / "tone.gguf",
        {"blk.1.ffn_down.weight.lora_a": A, "blk.1.ffn_down.weight.lora_b": B},
    )
    W = rng.normal(size=(5, 6)).astype(np.float32)
    wide = first.astype(np.float64) @ second.astype(np.float64)
    update = 0.5 * 3 * wide.T - 8 / 3 * B.astype(np.float64) @ A.astype(np.float64)
    layers = {module: Layer(W, None, W + update, None)}
    base = graph_of(layers).save(tmp_path / "base.onnx")
    given = {"it": {"mlx": 0.5, "gguf": -1.0}}
    result = mixed(tmp_path / "pack", base, given, paths={"mlx": folder, "gguf": gguf})
    check(result, layers)
    assert [record.format for record in result.manifest.adapters] == ["mlx", "gguf"]
