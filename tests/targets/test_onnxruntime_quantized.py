"""The target `onnxruntime` with codes: what files hold, how near they come, and bases in Q/DQ.

A use case is compared with PEFT by what its adapters change: 10 log10 of the power of the change
over that of the error. For normal values of deviation d, min-max grids reach about 3 d, so that n
steps to each side have noise (3 d / n)**2 / 12: n = 127 gives 43 dB, 32767 gives 92, and 7 blocks
of 4 bits 18; two weights are 3 dB worse. Each is asked for with 5 dB to spare.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant import (
    AdapterRunConfig,
    BuildOptions,
    LoraConfig,
    Session,
    UseCaseRunConfig,
    build,
)
from lora_quant.api import BuildResult
from lora_quant.config.options import LoraWeights
from lora_quant.errors import ConfigError, GraphError
from tests.builders import save
from tests.graph.quantized_bases import BASES, Base, built, sample
from tests.mixes import mixed
from tests.run_adapter import LEVELS, parameters, run, same, session_of
from tests.run_graph import largest
from tests.sample import (
    ALPHAS,
    CONFIG,
    CONFIG_ALL,
    SAMPLE,
    TONE,
    Document,
    copy_sample,
    edit_json,
    edit_yaml,
    entries,
    keep_use_cases,
    path_of,
)

Array = NDArray[Any]
Packs = Callable[[str], BuildResult]
TARGETS = ("qairt", "onnxruntime")
TOKENS = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"].astype(np.int64)
LOGITS = load_file(SAMPLE / "reference" / "logits.safetensors")
ADAPTED = tuple(name for name in ALPHAS if name != "base")
# Ranks of the padded tensors that the modules of a use case fill.
FILLED = {"tone": range(4), "legal": range(8), "style": range(6), "both": range(12)}
SHORTER = "model.layers.0.mlp.down_proj."  # by style's rank_pattern
LEAST = {"as-encoded": 35.0, "int8": 35.0, "int16": 84.0, "int4": 10.0, "all": 35.0, "none": 30.0}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    """The sample by mode or by how weights are stored, each built once."""
    folder = tmp_path_factory.mktemp("quantized")

    @cache
    def made(name: str) -> BuildResult:
        config = CONFIG_ALL if name == "all" else CONFIG
        options = BuildOptions(targets=TARGETS, lora_weights=name)  # type: ignore[arg-type]
        if name in ("all", "none"):
            options = BuildOptions(targets=TARGETS, mode=name)  # type: ignore[arg-type]
        return build(config, folder / name, options)

    return made


def files(pack: BuildResult) -> Path:
    return pack.output / "onnxruntime"


def logits(session: Any, adapter: Path | None) -> Array:
    rows = [run(session, adapter, {"input_ids": row[None]}) for row in TOKENS]
    return np.concatenate(rows)


def decibels(pack: BuildResult, use_case: str) -> float:
    """Signal to noise of what the adapters change."""
    session = session_of(files(pack) / "model.onnx")
    got = logits(session, files(pack) / f"{use_case}.onnx_adapter").astype(np.float64)
    change = LOGITS[use_case].astype(np.float64) - LOGITS["base"]
    error = got - LOGITS[use_case]
    return float(10 * np.log10((change**2).sum() / (error**2).sum()))


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("use_case", ADAPTED)
def test_every_use_case_is_near_pefts_model(name: str, use_case: str, packs: Packs) -> None:
    assert decibels(packs(name), use_case) >= LEAST[name]


@pytest.mark.parametrize("name", ["int8", "int16", "int4"])
def test_an_adapter_is_worth_as_much_beside_another_that_is_switched_off(
    name: str, packs: Packs
) -> None:
    """Channels of B have their peaks among 12 ranks instead of 8: 1.63 against 1.42 deviations.

    That is 1.2 dB of noise at most. The B of tone is six times as large as that of legal: 15 dB.
    """
    only = [AdapterRunConfig(name="tone", alpha=0.0), AdapterRunConfig(name="legal", alpha=1.0)]
    with Session(packs(name).output) as session:
        config = UseCaseRunConfig(name="both", adapters=only)
        rows = [session.run({"input_ids": row[None]}, config) for row in TOKENS]
    got = np.concatenate([values for row in rows for values in row.values()]).astype(np.float64)
    change = LOGITS["legal"].astype(np.float64) - LOGITS["base"]
    beside = 10 * np.log10((change**2).sum() / ((got - LOGITS["legal"]) ** 2).sum())
    assert beside >= decibels(packs(name), "legal") - 2


def test_encodings_of_each_use_case_are_better_than_shared_ones(packs: Packs) -> None:
    """legal's ranges are the smallest of all: the union over use cases costs it most."""
    own, shared = decibels(packs("as-encoded"), "legal"), decibels(packs("none"), "legal")
    assert own >= shared + 5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LEAST)
def test_without_an_adapter_the_graph_is_the_base_bit_for_bit(
    name: str, level: str, packs: Packs
) -> None:
    session = session_of(files(packs(name)) / "model.onnx", level)
    expected = logits(session_of(SAMPLE / "model" / "model.onnx", level), None)
    assert same(logits(session, None), expected)
    assert same(logits(session, files(packs(name)) / "base.onnx_adapter"), expected)


@pytest.mark.parametrize("use_case", ADAPTED)
def test_codes_stand_for_the_trained_values_to_half_a_step(use_case: str, packs: Packs) -> None:
    """The other target's file has the values, padded, and its encodings the steps.

    A step is rounded to float32, and so is the value that codes give: each by 2**-24 of it.
    """
    pack = packs("as-encoded")
    place = pack.output / "qairt" / use_case
    padded = load_file(place / "lora_weights.safetensors")
    grids = entries(place / "quant_overrides.json")
    held = parameters(files(pack) / f"{use_case}.onnx_adapter")
    codes = [name for name in held if name.endswith("_quantized")]
    assert codes
    for name in codes:
        weight = name.removesuffix("_quantized")
        axis = 1 if "lora_A" in weight else 0
        filled = FILLED[use_case]
        if use_case == "style" and weight.startswith(SHORTER):
            filled = range(3)
        if use_case == "both" and weight.rpartition(".lora_")[0] not in TONE:
            filled = range(4, 12)
        scale = np.array(grids[weight]["scale"], np.float64)
        if axis == 1:
            scale = scale[list(filled)]
        np.testing.assert_array_equal(held[f"{weight}_scale"], scale.astype(np.float32))
        trained = np.take(padded[weight], list(filled), axis).astype(np.float64)
        real = held[name].astype(np.float64) - held[f"{weight}_zero_point"]
        real *= held[f"{weight}_scale"]
        assert real.shape == trained.shape
        bound = scale / 2 + 2.0**-23 * np.abs(trained)
        assert (np.abs(real - trained) <= bound).all()


@pytest.mark.parametrize("use_case", ADAPTED)
def test_activations_have_the_grids_of_the_use_case(use_case: str, packs: Packs) -> None:
    pack = packs("as-encoded")
    grids = entries(pack.output / "qairt" / use_case / "quant_overrides.json")
    held = parameters(files(pack) / f"{use_case}.onnx_adapter")
    codes = {name.removesuffix("_quantized") for name in held if name.endswith("_quantized")}
    scales = {name.removesuffix("_scale") for name in held if name.endswith("_scale")} - codes
    modules = {name.rpartition(".lora_")[0] for name in codes}
    assert len(scales) == 3 * len(modules), "a, m and l"
    assert all(any(s.startswith(path_of(module)) for module in modules) for s in scales)
    for tensor in scales:
        (scale,), (offset,) = grids[tensor]["scale"], grids[tensor]["offset"]
        assert held[f"{tensor}_scale"].tolist() == [np.float32(scale)]
        assert held[f"{tensor}_zero_point"].tolist() == [-offset]
        assert held[f"{tensor}_zero_point"].dtype == np.uint16


def test_mode_none_leaves_grids_fixed(packs: Packs) -> None:
    """But for A's: it has a scale for each rank, and the ranks of a use case are its own."""
    held = parameters(files(packs("none")) / "both.onnx_adapter")
    scales = [name for name in held if name.endswith(("_scale", "_zero_point"))]
    assert scales
    assert all(".lora_A.weight_" in name for name in scales)
    graph = onnx.load(str(files(packs("none")) / "model.onnx"), load_external_data=False).graph
    fixed = {t.name for t in graph.initializer} - {value.name for value in graph.input}
    assert f"{TONE[0]}.lora_B.weight_scale" in fixed


def test_the_manifest_tells_grids_from_values(packs: Packs) -> None:
    (target,) = (t for t in packs("as-encoded").manifest.targets if t.name == "onnxruntime")
    by_name = {one.name: one for one in target.inputs}
    a = f"{TONE[0]}.lora_A.weight"
    told = [by_name[f"{a}{end}"] for end in ("_quantized", "_scale", "_zero_point")]
    assert [(one.role, one.part, one.of) for one in told] == [
        ("a_weight", "values", None),
        ("a_weight", "scale", a),
        ("a_weight", "zero_point", a),
    ]
    assert [(one.dtype, one.shape) for one in told] == [
        ("int8", (64, -1)),
        ("float32", (-1,)),
        ("int8", (-1,)),
    ]
    activations = [one for one in target.inputs if one.role == "activation"]
    assert {one.part for one in activations} == {"scale", "zero_point"}
    assert all(one.shape == (1,) for one in activations)


def test_files_get_smaller_with_the_weights(packs: Packs) -> None:
    held = {
        name: sum(
            values.nbytes
            for tensor, values in parameters(files(packs(name)) / "legal.onnx_adapter").items()
            if tensor.endswith("_quantized")
        )
        for name in ("int16", "int8", "int4")
    }
    assert held["int16"] == 2 * held["int8"]
    # 16 ranks are a block, of which legal fills 8, and 12 ranks are stored.
    assert held["int4"] < held["int8"]


A_WEIGHT, B_WEIGHT = (f"{TONE[0]}.lora_{side}.weight" for side in "AB")


def in_blocks(folder: Path, opset: int) -> Path:
    """base and tone of the sample, with blocks of 32 inputs for one A and of 4 ranks for its B."""
    config = keep_use_cases(copy_sample(folder), ["base", "tone"])
    model = config.parent / "model" / "model.onnx"
    graph = onnx.version_converter.convert_version(onnx.load(str(model)), opset)
    (model.parent / "model.data").unlink()
    save(graph, model, external=True)
    file = config.parent / "encodings" / "tone.encodings"

    def change(document: Document) -> None:
        for entry in document["param_encodings"]:
            per_channel = entry.get("scale", [])
            name = entry["name"].removeprefix("base_model.")
            if name == A_WEIGHT:
                scale, size = np.repeat(per_channel, 2).tolist(), 32
            elif name == B_WEIGHT:
                scale, size = per_channel, 4
            else:
                continue
            entry.update(enc_type="PER_BLOCK", block_size=size, scale=scale)
            entry["offset"] = [-128] * len(scale)

    edit_json(file, change)
    edit_yaml(config, lambda d: [u.pop("quant_updatable_tensors", None) for u in d["use-case"]])
    return config


def test_ranks_that_share_a_scale_stay_together(tmp_path: Path) -> None:
    config = in_blocks(tmp_path, 21)
    result = build(config, tmp_path / "out", BuildOptions(targets=TARGETS, rank_multiple=4))
    held = parameters(files(result) / "tone.onnx_adapter")
    assert held[f"{A_WEIGHT}_scale"].shape == held[f"{A_WEIGHT}_zero_point"].shape == (2, 4)
    assert held[f"{B_WEIGHT}_scale"].shape == (1, 64)
    graph = onnx.load(str(files(result) / "model.onnx"), load_external_data=False).graph
    defaults = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert defaults[f"{B_WEIGHT}_quantized"] == (4, 64), "as many ranks as share a scale"
    assert decibels(result, "tone") >= LEAST["as-encoded"]
    expected = logits(session_of(config.parent / "model" / "model.onnx"), None)
    assert same(logits(session_of(files(result) / "model.onnx"), None), expected)


def test_blocks_need_an_opset_that_has_them(tmp_path: Path) -> None:
    options = BuildOptions(targets=TARGETS, rank_multiple=4)
    with pytest.raises(GraphError, match="blocks of 32 values needs opset 21") as caught:
        build(in_blocks(tmp_path, 17), tmp_path / "out", options)
    assert caught.value.where.tensor == A_WEIGHT
    assert not (tmp_path / "out").exists()


def adapter(folder: Path, base: Base) -> Path:
    """Low rank of size 1 at every module of one of the quantized bases."""
    rng = np.random.default_rng(7)
    _, weights = built(base)
    tensors = {}
    modules = [name.removesuffix(".weight") for name in weights if not name.endswith("bias")]
    for module in modules:
        stored = weights.get(module, weights.get(f"{module}.weight"))
        assert stored is not None
        is_conv = stored.ndim == 4
        out, first = base_sizes(base, module, stored)
        kernel = (3, 3) if is_conv else ()
        shapes = {"lora_A": (3, first, *kernel), "lora_B": (out, 3, *(1 for _ in kernel))}
        for side, shape in shapes.items():
            tensors[f"base_model.model.{module}.{side}.weight"] = rng.normal(0, 0.3, shape).astype(
                np.float32
            )
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": {modules!r}}}'.replace(
            "'", '"'
        ),
        encoding="utf-8",
    )
    return folder


def base_sizes(base: Base, module: str, stored: Array) -> tuple[int, int]:
    """Outputs and inputs of a module; all have 16 or 40 inputs, and 8 outputs but for `first`."""
    return (16 if module == "first" else 8), (40 if base.x[-1] == 40 else 16)


FORMS: tuple[LoraWeights, ...] = ("float", "int8", "int16", "int4")
# As in tests/graph/test_quantized_bases_exact.py: a second reader of signed activations changes
# how ONNX Runtime computes the base on x86-64.
SIGNED_LEVELS = ("none", "basic")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_on_a_quantized_base_idle_branches_change_nothing(
    base: Base, form: LoraWeights, tmp_path: Path
) -> None:
    file = save(built(base)[0], tmp_path / "base.onnx")
    options: dict[str, Any] = {"targets": ("onnxruntime",), "lora_weights": form}
    given = {"it": {"it": 1.0}}
    paths = {"it": adapter(tmp_path / "it", base)}
    if form == "int4" and len(base.x) == 4:
        with pytest.raises(ConfigError, match="no operator for 4 bits"):
            mixed(tmp_path / "pack", file, given, paths=paths, **options)
        return
    result = mixed(tmp_path / "pack", file, given, paths=paths, **options)
    x = {"x": sample(base)}
    for level in SIGNED_LEVELS if base.codes is np.int8 else LEVELS:
        wanted = run(session_of(file, level), None, x)
        session = session_of(files(result) / "model.onnx", level)
        assert same(run(session, None, x), wanted)
        assert same(run(session, files(result) / "base.onnx_adapter", x), wanted)
        assert not np.array_equal(run(session, files(result) / "it.onnx_adapter", x), wanted)


def with_encodings(folder: Path, base: Base, model: Path, lora: Path) -> LoraConfig:
    """a, m and l of every module on grids of 8 bits; LoRA weights on those of their values."""
    op = "Conv" if len(base.x) == 4 else "MatMul"
    listed = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    names = [
        f"/{module}/{leaf}_output_0"
        for module in listed["target_modules"]
        for leaf in (f"lora_A/{op}", "lora_scale/Mul", f"lora_B/{op}")
    ]
    items = []
    for use_case, tensors in (("base", ["x"]), ("it", ["x", *names])):
        grid = {"enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": False}
        grid |= {"scale": [0.05], "offset": [-128]}
        document = {
            "version": "1.0.0",
            "producer": "test",
            "quantizer_args": {},
            "activation_encodings": [{"name": name, **grid} for name in tensors],
            "param_encodings": [],
        }
        file = folder / f"{use_case}.encodings"
        file.write_text(json.dumps(document), encoding="utf-8")
        adapters = ["it"] if use_case == "it" else []
        items.append(
            {
                "name": use_case,
                "adapter_names": adapters,
                "adapter_alphas": [1.0] * len(adapters),
                "model_name": str(model),
                "quant_overrides": str(file),
            }
        )
    return LoraConfig.model_validate(
        {"adapter": [{"name": "it", "lora_config": str(lora)}], "use-case": items}
    )


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_branches_of_eight_bits_on_a_quantized_base(base: Base, tmp_path: Path) -> None:
    """ONNX Runtime computes all of it in integers from `extended` on.

    With the adapter, levels may round l, h and y to neighbouring steps of 0.05 (where another layer
    follows, that is multiplied and added up: such bases are not held against each other).
    """
    file = save(built(base)[0], tmp_path / "base.onnx")
    config = with_encodings(tmp_path, base, file, adapter(tmp_path / "it", base))
    options = BuildOptions(targets=("onnxruntime",), activation_bits=8)
    result = build(config, tmp_path / "pack", options)
    activations = [i for i in result.manifest.targets[0].inputs if i.role == "activation"]
    assert {one.dtype for one in activations if one.part == "zero_point"} == {"uint8"}
    x = {"x": sample(base)}
    switched = []
    for level in SIGNED_LEVELS if base.codes is np.int8 else LEVELS:
        wanted = run(session_of(file, level), None, x)
        session = session_of(files(result) / "model.onnx", level)
        assert same(run(session, None, x), wanted)
        assert same(run(session, files(result) / "base.onnx_adapter", x), wanted)
        switched.append(run(session, files(result) / "it.onnx_adapter", x))
        assert not np.array_equal(switched[-1], wanted)
        assert same(run(session, None, x), wanted)
    if not any(one.of and one.of.startswith("/first/") for one in activations):
        assert all(largest(other, switched[0]) <= 3 * 0.05 for other in switched[1:])
