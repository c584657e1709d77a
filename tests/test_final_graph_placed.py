"""Packs for a graph that is final, with adapters whose A and B go into the ranks that it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from lora_quant.api import BuildResult, build
from lora_quant.config.lora_config import (
    AdapterConfig,
    LoraConfig,
    UseCaseInputConfig,
    read_lora_config,
)
from lora_quant.config.options import BuildOptions
from lora_quant.errors import ConfigError, GraphError, LoraQuantError, UnsupportedAdapterError
from lora_quant.graph.records import BranchedGraph, ConstantScale, TensorRecord
from lora_quant.passes.final.placement import placed_scales
from lora_quant.passes.slots import Slot
from lora_quant.runtime.verify.verify import verify
from lora_quant.validation.pack.check import check_pack
from tests.builders import GraphBuilder
from tests.run_graph import largest, run_use_case
from tests.sample import CONFIG, CONFIG_ALL, ROOT, SAMPLE

EXPORTS = ROOT / "tests" / "fixtures" / "exports"

Array = NDArray[Any]
Cases = Sequence[tuple[str, list[str], list[float]]]


def on_graph(config: LoraConfig, graph: Path, cases: Cases) -> LoraConfig:
    """The adapters of a configuration in use cases that all name one graph."""
    used = {name for _, names, _ in cases for name in names}
    use_cases = [
        UseCaseInputConfig(name=name, adapter_names=names, adapter_alphas=alphas, model=graph)
        for name, names, alphas in cases
    ]
    return config.model_copy(
        update={
            "adapter": [one for one in config.adapter if one.name in used],
            "use_cases": use_cases,
        }
    )


def final(config: LoraConfig, output: Path, **options: Any) -> BuildResult:
    return build(config, output, BuildOptions(create_lora_graph=False, **options))


def weights(pack: Path, use_case: str) -> dict[str, Array]:
    return load_file(pack / "qairt" / use_case / "lora_weights.safetensors")


def files(pack: Path) -> dict[str, bytes]:
    return {
        p.relative_to(pack).as_posix(): p.read_bytes()
        for p in (pack / "qairt").rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (CONFIG, {}),
        (CONFIG, {"mode": "none"}),
        (CONFIG_ALL, {"mode": "all"}),
        (CONFIG, {"alpha_layout": "rank"}),
        (CONFIG, {"rank_multiple": 8}),
    ],
)
def test_on_the_graph_of_a_first_build_the_same_adapters_give_the_same_files(
    tmp_path: Path, config: Path, options: dict[str, Any]
) -> None:
    given = read_lora_config(config)
    build(given, tmp_path / "first", BuildOptions(**options))
    graph = tmp_path / "first" / "qairt" / "model.onnx"
    again = given.model_copy(
        update={"use_cases": [u.model_copy(update={"model": graph}) for u in given.use_cases]}
    )
    options.pop("alpha_layout", None)  # the graph has its own
    final(again, tmp_path / "second", **options)
    assert files(tmp_path / "second") == files(tmp_path / "first")
    assert [f for f in check_pack(tmp_path / "second") if f.severity.value == "error"] == []
    assert verify(tmp_path / "second").ok


@pytest.mark.parametrize("export", ["dynamo", "genai_fp16", "genai_fp32", "genai_int4"])
def test_so_do_graphs_of_other_exporters_with_fused_and_quantized_nodes(
    tmp_path: Path, export: str
) -> None:
    adapter = {"name": "t", "lora_config": EXPORTS / "adapter"}
    config = LoraConfig.model_construct(
        adapter=[AdapterConfig.model_validate(adapter)], use_cases=[]
    )
    cases = [("base", [], []), ("on", ["t"], [0.5])]
    build(on_graph(config, EXPORTS / export / "model.onnx", cases), tmp_path / "first")
    graph = tmp_path / "first" / "qairt" / "model.onnx"
    final(on_graph(config, graph, cases), tmp_path / "second")
    assert files(tmp_path / "second") == files(tmp_path / "first")
    assert verify(tmp_path / "second").ok


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of the sample, whose graph is final for others."""
    out = tmp_path_factory.mktemp("first") / "first"
    build(CONFIG, out)
    return out


def test_encodings_of_the_first_build_are_taken_for_those_of_the_second(
    tmp_path: Path, first: Path
) -> None:
    given = read_lora_config(CONFIG)
    graph = first / "qairt" / "model.onnx"
    cases = []
    for use_case in given.use_cases:
        own = first / "qairt" / use_case.name / "quant_overrides.json"
        if not use_case.adapter_names:
            own = first / "qairt" / "base_encodings.json"
        changed = {"model": graph, "encodings": own, "quant_updatable_tensors": None}
        cases.append(use_case.model_copy(update=changed))
    final(given.model_copy(update={"use_cases": cases}), tmp_path / "second")
    assert files(tmp_path / "second") == files(first)


def test_graphs_with_the_weights_inside_and_the_adapters_give_the_same_weights(
    tmp_path: Path, first: Path
) -> None:
    """Two routes: use cases with graphs of their own, and adapters that are placed."""
    given = read_lora_config(SAMPLE / "lora_config_exported.yaml")
    cases = []
    for use_case in given.use_cases:
        graph = first / "qairt" / "model.onnx"
        if use_case.adapter_names:
            model = onnx.load(str(graph))
            values = weights(first, use_case.name)
            for tensor in model.graph.initializer:
                if tensor.name in values:
                    new = numpy_helper.from_array(values[tensor.name], tensor.name)
                    tensor.CopyFrom(new)
            graph = tmp_path / f"{use_case.name}.onnx"
            onnx.save(model, str(graph))
        changed = {"model": graph, "encodings": None, "quant_updatable_tensors": None}
        cases.append(use_case.model_copy(update=changed))
    final(given.model_copy(update={"use_cases": cases}), tmp_path / "second")
    for use_case in given.use_cases:
        ours, theirs = weights(tmp_path / "second", use_case.name), weights(first, use_case.name)
        assert sorted(ours) == sorted(theirs)
        for name, wanted in theirs.items():
            np.testing.assert_array_equal(ours[name], wanted, strict=True)
    assert verify(tmp_path / "second").ok


def test_other_mixes_fit_into_the_graph_as_long_as_there_is_room(
    tmp_path: Path, first: Path
) -> None:
    graph = first / "qairt" / "model.onnx"
    cases = [("base", [], []), ("swapped", ["legal", "tone"], [0.5, 2.0])]
    result = final(on_graph(read_lora_config(CONFIG), graph, cases), tmp_path / "out")
    assert [(s.start, s.rank) for s in result.manifest.use_cases[1].slots] == [(0, 8), (8, 4)]
    assert verify(tmp_path / "out").ok


def test_constants_that_scale_the_ranks_hold_strength_times_scale(tmp_path: Path) -> None:
    """The graph of a use case of the vendor's flow, with adapters that have room in it."""
    graph = SAMPLE / "use_case_graphs" / "legal.onnx"
    cases = [("base", [], []), ("tone", ["tone"], [0.7]), ("legal", ["legal"], [1.5])]
    final(on_graph(read_lora_config(CONFIG), graph, cases), tmp_path / "out")
    found = weights(tmp_path / "out", "tone")
    scales = {
        t["name"]
        for t in json.loads((tmp_path / "out" / "pack.json").read_text())["tensors"]
        if t["role"] == "scale"
    }
    assert len(scales) == 14
    for name in scales:
        # tone has lora_alpha / r = 8 / 4, and its ranks are the first of eight.
        wanted = np.array([0.7 * 2.0] * 4 + [0.0] * 4).astype(np.float32)
        np.testing.assert_array_equal(found[name].ravel(), wanted)
    assert verify(tmp_path / "out").ok


def test_adapters_of_more_ranks_than_one_branch_has_are_refused(tmp_path: Path) -> None:
    """Branches that the vendor's flow packs differ in their ranks."""
    graph = SAMPLE / "use_case_graphs" / "both.onnx"
    config = on_graph(read_lora_config(CONFIG), graph, [("both", ["tone", "legal"], [1.0, 0.6])])
    with pytest.raises(GraphError, match=r"need ranks up to 12 at .*, and its branch has 8"):
        final(config, tmp_path / "out")


def test_adapters_of_more_ranks_than_any_branch_has_are_refused(tmp_path: Path) -> None:
    graph = SAMPLE / "use_case_graphs" / "tone.onnx"
    config = on_graph(read_lora_config(CONFIG), graph, [("tone", ["tone"], [1.0])])
    final(config, tmp_path / "fits")
    other = AdapterConfig.model_validate({"name": "tone", "lora_config": SAMPLE / "adapters/style"})
    with pytest.raises(ConfigError, match="have 6 ranks, and the branches of the given graph 4"):
        final(config.model_copy(update={"adapter": [other]}), tmp_path / "out")


def test_modules_without_a_branch_are_refused(tmp_path: Path) -> None:
    graph = SAMPLE / "use_case_graphs" / "style.onnx"
    config = on_graph(read_lora_config(CONFIG), graph, [("tone", ["tone"], [1.0])])
    with pytest.raises(GraphError, match="of adapter 'tone' has no branch in the given graph") as e:
        final(config, tmp_path / "out")
    assert e.value.where.adapter == "tone"


def test_more_adapters_than_strengths_are_refused(tmp_path: Path, first: Path) -> None:
    graph = first / "qairt" / "model.onnx"
    config = read_lora_config(CONFIG)
    tone = next(a for a in config.adapter if a.name == "tone")
    three = [tone.model_copy(update={"name": name}) for name in ("one", "two", "three")]
    config = config.model_copy(update={"adapter": three})
    cases = [("three", ["one", "two", "three"], [1.0, 1.0, 1.0])]
    with pytest.raises(GraphError, match="mixes 3 adapters, and the graph has 2 strengths"):
        final(on_graph(config, graph, cases), tmp_path / "out")


INPUTS, OUTPUTS, RANK = 6, 5, 4
MODULE = "model.q_proj"


def linear_graph(
    folder: Path, *, scale: Array | None, switchable: bool = True, gain: float = 1.0
) -> Path:
    """x W + B (s A x) with A `[R, in]` and B `[out, R]` behind a Transpose, as torch stores them.

    Without a `scale`, the input `strength` of one value scales the branch.
    """
    graph = GraphBuilder()
    x = graph.input("x", (2, INPUTS))
    h = graph.matmul("/model/q_proj/MatMul", x, in_features=INPUTS, out_features=OUTPUTS)
    graph.weights["q.A"] = np.zeros((RANK, INPUTS), np.float32)
    graph.weights["q.B"] = np.zeros((OUTPUTS, RANK), np.float32)
    turned = [
        graph.node("Transpose", [name], f"/model/q_proj/{name}/Transpose", perm=[1, 0])
        for name in ("q.A", "q.B")
    ]
    a = graph.node("MatMul", [x, turned[0]], "/model/q_proj/lora_A/MatMul")
    if scale is None:
        s = graph.input("strength", (1,))
    elif switchable:
        graph.weights["q.scale"] = scale
        s = "q.scale"
    else:
        value = numpy_helper.from_array(scale)
        s = graph.node("Constant", [], "/model/q_proj/scale", value=value)
    m = graph.node("Mul", [a, s], "/model/q_proj/Mul")
    if gain == 1.0:
        low = graph.node("MatMul", [m, turned[1]], "/model/q_proj/lora_B/MatMul")
    else:
        low = graph.node("Gemm", [m, turned[1]], "/model/q_proj/lora_B/Gemm", alpha=gain)
    y = graph.node("Add", [h, low], "/model/q_proj/Add")
    graph.output(y, (2, OUTPUTS))
    return graph.save(folder / "model.onnx")


def peft_folder(folder: Path, *, rank: int, alpha: int, seed: int, **fields: Any) -> Path:
    """A PEFT checkpoint for the one module of the graph."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    prefix = f"base_model.model.{MODULE}"
    tensors = {
        f"{prefix}.lora_A.weight": random.standard_normal((rank, INPUTS)).astype(np.float32),
        f"{prefix}.lora_B.weight": random.standard_normal((OUTPUTS, rank)).astype(np.float32),
    }
    if fields.get("use_dora"):
        tensors[f"{prefix}.lora_magnitude_vector"] = np.ones(OUTPUTS, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def linear_config(folder: Path, graph: Path, cases: Cases, **fields: Any) -> LoraConfig:
    """The adapters one (rank 2, alpha 4) and two (rank 1, alpha 3), as far as cases name them."""
    adapters = [
        {
            "name": "one",
            "lora_config": peft_folder(folder / "one", rank=2, alpha=4, seed=1, **fields),
        },
        {"name": "two", "lora_config": peft_folder(folder / "two", rank=1, alpha=3, seed=2)},
    ]
    config = LoraConfig.model_construct(
        adapter=[AdapterConfig.model_validate(one) for one in adapters], use_cases=[]
    )
    return on_graph(config, graph, cases)


def delta(folder: Path, mix: dict[str, float]) -> Array:
    """Sum of strength * lora_alpha / r * B A, `[out, in]`, in float64."""
    total = np.zeros((OUTPUTS, INPUTS))
    for name, factor in mix.items():
        tensors = load_file(folder / name / "adapter_model.safetensors")
        prefix = f"base_model.model.{MODULE}"
        lora_a, lora_b = (tensors[f"{prefix}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        total += factor * (lora_b @ lora_a)
    return total


@pytest.mark.parametrize("shape", [(RANK,), (1, RANK)])
def test_factors_that_are_stored_the_other_way_round_are_placed(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    graph = linear_graph(tmp_path, scale=np.zeros(shape, np.float32))
    cases = [("base", [], []), ("both", ["one", "two"], [0.5, -2.0])]
    final(linear_config(tmp_path, graph, cases), tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((2, INPUTS)).astype(np.float32)
    path = tmp_path / "out" / "qairt" / "both" / "lora_weights.safetensors"
    (got,) = run_use_case(graph, path, {"x": x}).values()
    (plain,) = run_use_case(graph, None, {"x": x}).values()
    # one: 0.5 * 4 / 2, two: -2 * 3 / 1
    wanted = plain + x @ delta(tmp_path, {"one": 1.0, "two": -6.0}).T
    # Sums of 6 + 4 products of values below 40 in float32: 10 roundings of half a unit at 64.
    assert largest(got, wanted) <= 10 * 64 * 2.0**-24
    assert verify(tmp_path / "out").ok


def test_a_constant_for_all_ranks_takes_what_the_adapters_share(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path, scale=np.ones((), np.float32))
    # 0.75 * 4 / 2 is 0.5 * 3 / 1
    config = linear_config(tmp_path, graph, [("both", ["one", "two"], [0.75, 0.5])])
    final(config, tmp_path / "out")
    assert weights(tmp_path / "out", "both")["q.scale"] == np.float32(1.5)
    assert verify(tmp_path / "out").ok


def test_a_constant_for_all_ranks_is_zero_where_no_adapter_has_ranks() -> None:
    """An adapter of rank 0 has a strength, which nothing is scaled by."""
    one = ConstantScale(TensorRecord("s", (), "float32"), ("q",))
    branched = cast(BranchedGraph, SimpleNamespace(constant_scales=(one,), max_rank=RANK))
    idle, active = Slot(0, "idle", 0, 0, 5.0, 1.0), Slot(1, "active", 0, 2, 0.25, 2.0)
    assert [values for _, values in placed_scales(branched, [])] == [np.float32(0)]
    assert [values for _, values in placed_scales(branched, [idle])] == [np.float32(0)]
    assert [values for _, values in placed_scales(branched, [idle, active])] == [np.float32(0.5)]


def test_slots_that_are_placed_begin_at_multiples_of_the_rank(tmp_path: Path) -> None:
    """Ranks 0 and 1 are those of `one`; with a multiple of 3 `two` begins at rank 3."""
    graph = linear_graph(tmp_path, scale=np.ones((RANK,), np.float32))
    config = linear_config(tmp_path, graph, [("both", ["one", "two"], [1.0, 1.0])])
    final(config, tmp_path / "out", rank_multiple=3)
    # one: 4 / 2, two: 3 / 1
    np.testing.assert_array_equal(weights(tmp_path / "out", "both")["q.scale"], [2, 2, 0, 3])


def test_a_constant_for_all_ranks_does_not_serve_two_scales(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path, scale=np.ones((), np.float32))
    config = linear_config(tmp_path, graph, [("both", ["one", "two"], [1.0, 1.0])])
    with pytest.raises(GraphError, match=r"is scaled by one constant for all ranks, .* by 2, 3"):
        final(config, tmp_path / "out")


def test_a_constant_that_cannot_be_switched_has_to_be_right_already(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path, scale=np.full((), 2.0, np.float32), switchable=False)
    config = linear_config(tmp_path, graph, [("right", ["one"], [1.0])])
    final(config, tmp_path / "out")
    assert sorted(weights(tmp_path / "out", "right")) == ["q.A", "q.B"]
    assert verify(tmp_path / "out").ok
    (use_case,) = config.use_cases
    wrong = use_case.model_copy(update={"adapter_alphas": [0.5]})
    with pytest.raises(GraphError, match=r"by 2, a constant that cannot be switched, .* by 1"):
        final(config.model_copy(update={"use_cases": [wrong]}), tmp_path / "wrong")


def test_one_strength_for_all_ranks_leaves_no_place_for_the_scale(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path, scale=None)
    config = linear_config(tmp_path, graph, [("one", ["one"], [1.0])])
    with pytest.raises(GraphError, match=r"so that lora_alpha / r has no place") as caught:
        final(config, tmp_path / "out")
    assert caught.value.hint is not None
    assert "name a graph of its own for each use case" in caught.value.hint


def test_a_gemm_that_scales_is_refused(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path, scale=np.zeros(RANK, np.float32), gain=0.5)
    config = linear_config(tmp_path, graph, [("one", ["one"], [1.0])])
    with pytest.raises(GraphError, match="has a Gemm that scales"):
        final(config, tmp_path / "out")


def test_adapters_that_are_more_than_low_rank_are_refused(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path, scale=np.zeros(RANK, np.float32))
    config = linear_config(tmp_path, graph, [("one", ["one"], [1.0])], use_dora=True)
    with pytest.raises(UnsupportedAdapterError, match="'one' brings vectors, and a final graph"):
        final(config, tmp_path / "out")


def test_a_use_case_of_a_description_and_a_checkpoint_is_refused(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path, scale=np.zeros(RANK, np.float32))
    config = linear_config(tmp_path, graph, [("both", ["one", "two"], [1.0, 1.0])])
    params = {"name": "two", "rank": 1, "alpha": 3, "target_modules": ["q_proj"]}
    two = AdapterConfig.model_validate({"name": "two", "lora_config": [params]})
    config = config.model_copy(update={"adapter": [config.adapter[0], two]})
    with pytest.raises(LoraQuantError, match="nothing tells the weights of adapter 'two'"):
        final(config, tmp_path / "out")
