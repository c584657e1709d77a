"""A graph per use case, and the PEFT folders of the same adapters: the same pack, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lora_quant import BuildOptions, build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.twin.twin_map import open_twin
from lora_quant.passes import module_map
from tests.passes.exported.export_cases import Exports, Lora, Net, Shape, files_of
from tests.run_graph import largest, run_use_case

KINDS = {"net.fc1": "matmul", "net.fc2": "gemm", "net.conv1": "conv1", "net.conv3": "conv3"}
ALL = tuple(KINDS)


def build_both(folder: Exports, tmp_path: Path) -> tuple[Path, Path]:
    """Both routes; all files but the manifest are equal."""
    one = build(folder.peft_config(), tmp_path / "peft").output
    other = build(folder.exported_config(), tmp_path / "exported").output
    assert files_of(other) == files_of(one)
    return one, other


def check_runs(folder: Exports, pack: Path, strengths: list[float], tolerance: float) -> None:
    """The pack computes what the use case's own graph does."""
    for name, mix in folder.use_cases.items():
        if not mix:
            continue
        own = onnxruntime.InferenceSession(str(folder.folder / f"{name}.onnx"))
        feeds = folder.net.feeds()
        names = [output.name for output in own.get_outputs()]
        wanted = dict(zip(names, own.run(None, feeds), strict=True))
        alpha = np.array(strengths, np.float32).astype(folder.net.dtype)
        weights = pack / "qairt" / name / "lora_weights.safetensors"
        got = run_use_case(pack / "qairt" / "model.onnx", weights, {**feeds, "lora_alpha": alpha})
        for output in names:
            assert largest(got[output], wanted[output]) < tolerance


@pytest.mark.parametrize("style", ["between", "behind", "chained"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter(kind: str, style: str, tmp_path: Path) -> None:
    folder = Exports(tmp_path, Net(KINDS), [Lora("tone", 2, 6, (kind,))])
    folder.use_case("soft", {"tone": 0.5}, Shape(style))
    _, pack = build_both(folder, tmp_path)
    # sums of at most 54 products below 30 in float32, in two orders: 2 * 54 * 30 * 2**-24 at most
    check_runs(folder, pack, [0.5, 0.0], 2e-4)


@pytest.mark.parametrize("style", ["between", "chained"])
def test_several_adapters_that_skip_modules(style: str, tmp_path: Path) -> None:
    """PEFT packs the ranks to the front where an adapter skips a module; slots do not."""
    adapters = [
        Lora("tone", 2, 4, ("net.fc1", "net.conv3")),
        Lora("legal", 3, 9, ALL),
        Lora("style", 1, 5, ("net.fc2", "net.conv3")),
    ]
    folder = Exports(tmp_path, Net(KINDS), adapters)
    folder.use_case("all", {"tone": 1.0, "legal": 0.6, "style": -0.25}, Shape(style))
    _, pack = build_both(folder, tmp_path)
    check_runs(folder, pack, [1.0, 0.6, -0.25], 5e-4)


@pytest.mark.parametrize("padding", [1, 5])
def test_padded_tails(padding: int, tmp_path: Path) -> None:
    adapters = [Lora("tone", 2, 4, ("net.fc1",)), Lora("legal", 3, 9, ALL)]
    folder = Exports(tmp_path, Net(KINDS), adapters)
    folder.use_case("both", {"tone": 1.0, "legal": 0.6}, Shape(padding=padding))
    build_both(folder, tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_type_of_the_graph(dtype: str, tmp_path: Path) -> None:
    """The scale in the graph is rounded, that of the description is used: 10 / 3 * 0.7."""
    adapters = [Lora("tone", 3, 10, ALL[:2]), Lora("legal", 2, 7, ALL[:1])]
    folder = Exports(tmp_path, Net({m: KINDS[m] for m in ALL[:2]}, dtype), adapters)
    folder.use_case("both", {"tone": 0.7, "legal": 1.1})
    build_both(folder, tmp_path)


def test_weights_that_lie_outside_of_the_graph(tmp_path: Path) -> None:
    import onnx

    folder = Exports(tmp_path, Net(KINDS), [Lora("tone", 2, 6, ALL)])
    path = folder.use_case("soft", {"tone": 0.5})
    onnx.save(
        onnx.load(path), str(path), save_as_external_data=True, location="soft.bin",
        size_threshold=0,
    )  # fmt: skip
    _, pack = build_both(folder, tmp_path)
    manifest = json.loads((pack / "pack.json").read_text())
    graphs = [r for r in manifest["inputs"] if r["role"].startswith("graph")]
    assert [(r["role"], r["name"], r["path"]) for r in graphs] == [
        ("graph", "soft", "../soft.onnx"),
        ("graph-data", "soft", "../soft.bin"),
    ]
    assert "sampled_sha256" in graphs[1]


def test_rank_and_alpha_patterns_as_several_descriptions(tmp_path: Path) -> None:
    adapter = Lora("tone", 2, 4, ALL, ranks={"net.fc2": 3}, alphas={"net.conv1": 5.0})
    folder = Exports(tmp_path, Net(KINDS), [adapter])
    folder.use_case("on", {"tone": 1.0})
    plain = adapter.params()
    folder.descriptions["tone"] = [
        plain,
        {**plain, "rank": 3, "target_modules": ["net.fc2"]},
        {**plain, "alpha": 5, "target_modules": ["net.conv1"]},
    ]
    folder.descriptions["tone"][0]["target_modules"] = ["fc1", "fc2", "conv1", "conv3"]
    build_both(folder, tmp_path)


def test_rank_and_alpha_patterns_as_peft_tells_them(tmp_path: Path) -> None:
    """adapter_config.json without weights beside it."""
    adapter = Lora("tone", 2, 4, ALL, ranks={"fc2": 3}, alphas={"conv1": 5.0}, rslora=True)
    adapter = Lora("tone", 2, 4, ALL, ranks={"net.fc2": 3}, alphas={"net.conv1": 5.0}, rslora=True)
    folder = Exports(tmp_path, Net(KINDS), [adapter])
    folder.use_case("on", {"tone": 0.5})
    described = tmp_path / "described"
    described.mkdir()
    (described / "adapter_config.json").write_text(json.dumps(adapter.config()))
    for source in (described, described / "adapter_config.json"):
        folder.descriptions["tone"] = str(source)
        build_both(folder, tmp_path / f"out_{source.suffix}")


def test_an_adapter_with_its_own_weights_is_held_against_the_graph(tmp_path: Path) -> None:
    adapters = [Lora("tone", 2, 4, ALL), Lora("legal", 2, 4, ALL)]
    folder = Exports(tmp_path, Net(KINDS), adapters)
    folder.use_case("both", {"tone": 1.0, "legal": 1.0}, Shape(order=["legal", "tone"]))
    folder.descriptions["tone"] = str(folder.checkpoint("tone"))
    build_both(folder, tmp_path)


def test_an_adapter_is_used_on_the_base_as_well(tmp_path: Path) -> None:
    """Its factors come from the one use case that has a graph."""
    folder = Exports(tmp_path, Net(KINDS), [Lora("tone", 2, 4, ALL)])
    folder.use_case("on", {"tone": 1.0})
    config = folder.exported_config()
    half = config.use_cases[1].model_copy(
        update={"name": "half", "adapter_alphas": [0.5], "model": config.use_cases[0].model}
    )
    config = config.model_copy(update={"use_cases": [*config.use_cases, half]})
    pack = build(config, tmp_path / "out").output
    for name in ("on", "half"):
        assert (pack / "qairt" / name / "lora_weights.safetensors").exists()


def test_rslora_is_told_by_the_scales(tmp_path: Path) -> None:
    folder = Exports(tmp_path, Net(KINDS), [Lora("tone", 3, 7, ALL, rslora=True)])
    folder.use_case("on", {"tone": 0.5})
    build(folder.peft_config(), tmp_path / "peft")
    result = build(folder.exported_config(), tmp_path / "exported")
    assert files_of(result.output) == files_of(tmp_path / "peft")
    (finding,) = result.findings
    assert finding.rule == "exported/read-as-rslora"
    assert finding.hint is not None
    assert finding.hint.endswith("alpha or adapter_alphas are off by sqrt(r)")


@pytest.mark.parametrize("run_time", ["both", "slots"])
def test_strengths_that_an_input_brings(run_time: str, tmp_path: Path) -> None:
    adapters = [Lora("tone", 2, 4, ALL[:2]), Lora("legal", 3, 9, ALL[:2])]
    net = Net({m: KINDS[m] for m in ALL[:2]})
    names = ["tone"] if run_time == "both" else ["tone", "legal"]
    folder = Exports(tmp_path, net, [a for a in adapters if a.name in names])
    folder.use_case("on", dict.fromkeys(names, 0.6), Shape(run_time=run_time))
    build_both(folder, tmp_path)


def test_a_scale_that_only_an_input_brings_is_taken_from_the_description(tmp_path: Path) -> None:
    folder = Exports(tmp_path, Net(KINDS), [Lora("tone", 2, 4, ALL)])
    folder.use_case("on", {"tone": 0.6}, Shape(run_time="alone"))
    build(folder.peft_config(), tmp_path / "peft")
    result = build(folder.exported_config(), tmp_path / "exported")
    assert files_of(result.output) == files_of(tmp_path / "peft")
    (finding,) = result.findings
    assert (finding.rule, finding.severity.value) == ("exported/scale-at-run-time", "warning")
    assert "'lora_alpha'" in finding.message


def test_a_merged_use_case(tmp_path: Path) -> None:
    adapters = [Lora("tone", 2, 4, ALL[:3]), Lora("legal", 3, 9, ALL)]
    folder = Exports(tmp_path, Net(KINDS), adapters)
    folder.use_case("both", {"tone": 1.0, "legal": 0.6})
    options = BuildOptions(merge="both")
    one = build(folder.peft_config(), tmp_path / "peft", options).output
    other = build(folder.exported_config(), tmp_path / "exported", options).output
    assert files_of(other) == files_of(one)


def with_mapping(config: LoraConfig, path: Path) -> LoraConfig:
    return config.model_copy(update={"attach_point_onnx_mapping": path})


def test_a_float_graph_that_tells_the_modules_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Exports(tmp_path, Net(KINDS), [Lora("tone", 2, 4, ALL)])
    folder.use_case("on", {"tone": 1.0})
    opened: list[Path] = []

    def counted(path: Path) -> BaseGraph:
        opened.append(path)
        return open_twin(path)

    monkeypatch.setattr(module_map, "open_twin", counted)
    options = BuildOptions(map_from=str(tmp_path / "base.onnx"))
    build(folder.exported_config(), tmp_path / "out", options)
    assert opened == [tmp_path / "base.onnx"]


def test_modules_of_opaque_names_are_those_of_the_mapping(tmp_path: Path) -> None:
    folder = Exports(tmp_path, Net(KINDS, opaque=True), [Lora("tone", 2, 4, ALL)])
    folder.use_case("on", {"tone": 1.0})
    mapping = tmp_path / "map.json"
    operators = ("MatMul", "Gemm", "Conv", "Conv")
    listed = {m: [f"/n{i}/{op}"] for i, (m, op) in enumerate(zip(ALL, operators, strict=True))}
    mapping.write_text(json.dumps(listed))
    one = build(with_mapping(folder.peft_config(), mapping), tmp_path / "peft").output
    other = build(with_mapping(folder.exported_config(), mapping), tmp_path / "exported").output
    assert files_of(other) == files_of(one)
