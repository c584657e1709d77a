"""Packs for a graph that is final, made of use cases that each have a graph of their own.

The graphs and encodings are those that AIMET wrote for one small network: with zero branches, and
with the weights of two adapters.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from safetensors.numpy import load_file

from lora_quant import build_lora_graph
from lora_quant.api import BuildResult, build
from lora_quant.config.builder import LoraBuilderInputConfig
from lora_quant.config.options import BuildOptions
from lora_quant.errors import (
    ConfigError,
    GraphError,
    LoraQuantError,
    PackError,
    VerificationError,
)
from lora_quant.runtime.verify.verify import verify
from lora_quant.validation.pack.check import check_pack
from tests.command_line import command
from tests.run_graph import run_use_case
from tests.sample import ROOT

NETWORK = ROOT / "tests" / "fixtures" / "aimet" / "network"
GRAPHS = {"base": "base_lora_zero", "a": "lora_adapter_a", "b": "lora_adapter_b"}
WEIGHTS = ["q.lora_A.weight", "q.lora_B.weight", "v.lora_A.weight", "v.lora_B.weight"]
RANK = 8
# A, B, a, m and l of two branches.
BRANCH_TENSORS = 10


def lora_config(
    folder: Path, edits: dict[str, Any] | None = None, *, encodings: str | None = "v1.0.0"
) -> Path:
    """A configuration of the network's N+1 graphs, beside copies of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in NETWORK.iterdir():
        shutil.copy(file, folder)
    use_cases: list[dict[str, Any]] = []
    for name, graph in GRAPHS.items():
        used = [] if name == "base" else [name]
        case = {"name": name, "adapter_names": used, "adapter_alphas": [1.0] * len(used)}
        case["model_name"] = f"{graph}.fp32.onnx"
        if encodings is not None:
            case["quant_overrides"] = f"{graph}.{encodings}.encodings"
        use_cases.append(case)
    document = {"adapter": [adapter("a"), adapter("b")], "use-case": use_cases, **(edits or {})}
    path = folder / "lora_config.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def adapter(name: str, rank: int = RANK) -> dict[str, Any]:
    params = {"name": name, "rank": rank, "alpha": rank, "target_modules": ["q", "v"]}
    return {"name": name, "lora_config": [params]}


def use_case(name: str, adapters: list[str], graph: str) -> dict[str, Any]:
    alphas = [1.0] * len(adapters)
    return {
        "name": name,
        "adapter_names": adapters,
        "adapter_alphas": alphas,
        "model_name": f"{graph}.fp32.onnx",
    }


def final(config: Path, output: Path, **options: Any) -> BuildResult:
    return build(config, output, BuildOptions(create_lora_graph=False, **options))


def rules(result: BuildResult) -> list[str]:
    return [finding.rule for finding in result.findings]


def initializers(path: Path) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


def entries(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> entry of an encodings file of version 1.0.0, by the json module alone."""
    document = json.loads(path.read_text(encoding="utf-8"))
    sections = (document["activation_encodings"], document["param_encodings"])
    return {entry["name"]: entry for section in sections for entry in section}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One pack per mode."""
    folder = tmp_path_factory.mktemp("final")
    config = lora_config(folder)
    for mode in ("none", "adapter_only", "all"):
        final(config, folder / mode, mode=mode, fixed_conflict="base" if mode != "all" else "error")
    return {mode: folder / mode for mode in ("none", "adapter_only", "all")}


def test_the_graph_of_the_pack_is_the_given_one_byte_for_byte(packs: dict[str, Path]) -> None:
    graph = packs["all"] / "qairt" / "model.onnx"
    assert graph.read_bytes() == (NETWORK / "base_lora_zero.fp32.onnx").read_bytes()


def test_the_list_names_the_weights_of_the_branches(packs: dict[str, Path]) -> None:
    names = (packs["all"] / "qairt" / "lora_tensor_names.txt").read_text().splitlines()
    assert names == WEIGHTS


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_are_those_of_the_use_cases_own_graph(packs: dict[str, Path], name: str) -> None:
    got = load_file(packs["all"] / "qairt" / name / "lora_weights.safetensors")
    own = initializers(NETWORK / f"{GRAPHS[name]}.fp32.onnx")
    assert sorted(got) == WEIGHTS
    for tensor in WEIGHTS:
        np.testing.assert_array_equal(got[tensor], own[tensor], strict=True)


@pytest.mark.parametrize("name", ["a", "b"])
def test_with_its_weights_the_graph_computes_the_use_cases_own(
    packs: dict[str, Path], name: str
) -> None:
    inputs = {
        "x": np.random.default_rng(3).standard_normal((1, 6, 32)).astype(np.float32),
        "lora_alpha": np.ones(1, np.float32),
    }
    weights = packs["all"] / "qairt" / name / "lora_weights.safetensors"
    got = run_use_case(packs["all"] / "qairt" / "model.onnx", weights, inputs)
    own = run_use_case(NETWORK / f"{GRAPHS[name]}.fp32.onnx", None, inputs)
    np.testing.assert_array_equal(got["y"], own["y"])


@pytest.mark.parametrize("name", ["a", "b"])
def test_in_mode_all_overrides_are_what_the_use_cases_file_says(
    packs: dict[str, Path], name: str
) -> None:
    got = entries(packs["all"] / "qairt" / name / "quant_overrides.json")
    assert got == entries(NETWORK / f"{GRAPHS[name]}.v1.0.0.encodings")


@pytest.mark.parametrize("name", ["a", "b"])
def test_in_mode_adapter_only_overrides_are_the_bases_beside_the_branches(
    packs: dict[str, Path], name: str
) -> None:
    pack = packs["adapter_only"] / "qairt" / name
    updated = (pack / "quant_updatable_tensors.txt").read_text().splitlines()
    base = entries(NETWORK / "base_lora_zero.v1.0.0.encodings")
    own = entries(NETWORK / f"{GRAPHS[name]}.v1.0.0.encodings")
    assert len(updated) == BRANCH_TENSORS
    assert entries(pack / "quant_overrides.json") == {
        tensor: own[tensor] if tensor in updated else entry for tensor, entry in base.items()
    }


def test_in_mode_none_all_use_cases_have_one_set_of_grids(packs: dict[str, Path]) -> None:
    found = [entries(packs["none"] / "qairt" / name / "quant_overrides.json") for name in GRAPHS]
    assert found[0] == found[1] == found[2]
    assert found[0] == entries(packs["none"] / "qairt" / "base_encodings.json")
    for name in GRAPHS:
        lists = packs["none"] / "qairt" / name / "quant_updatable_tensors.txt"
        assert lists.read_text() == ""


@pytest.mark.parametrize("mode", ["none", "adapter_only", "all"])
def test_packs_are_valid_and_verified(packs: dict[str, Path], mode: str) -> None:
    errors = [f for f in check_pack(packs[mode]) if f.severity.value != "note"]
    assert errors == []
    found = verify(packs[mode])
    assert found.ok
    assert found.without_effect == ()
    assert [one.ok for one in found.target("qairt").same] == [True] * len(GRAPHS)


@pytest.mark.parametrize("version", ["v0.6.1", "v2.0.0"])
def test_other_versions_of_encodings_are_taken(tmp_path: Path, version: str) -> None:
    config = lora_config(tmp_path, encodings=version)
    final(config, tmp_path / "out", mode="all", fixed_conflict="base")
    given = json.loads((tmp_path / f"lora_adapter_a.{version}.encodings").read_text())
    got = json.loads((tmp_path / "out" / "qairt" / "a" / "quant_overrides.json").read_text())
    if version == "v0.6.1":
        assert (
            got["param_encodings"]["q.lora_A.weight"]
            == (given["param_encodings"]["q.lora_A.weight"])
        )
    else:
        theirs = {entry["name"]: entry for entry in given["encodings"]}
        ours = {entry["name"]: entry for entry in got["encodings"]}
        assert ours["q.lora_A.weight"] == theirs["q.lora_A.weight"]


def test_the_manifest_tells_the_slots_and_the_input_for_strengths(packs: dict[str, Path]) -> None:
    manifest = json.loads((packs["all"] / "pack.json").read_text())
    assert manifest["given_graph"] is True
    assert manifest["max_rank"] == RANK
    assert manifest["alpha"] == {
        "tensor": "lora_alpha",
        "layout": "slot",
        "dtype": "float32",
        "shape": [1],
    }
    (slot,) = manifest["use_cases"][1]["slots"]
    assert (slot["adapter"], slot["start"], slot["rank"], slot["scale"]) == ("a", 0, RANK, 1.0)
    graphs = {r["name"]: r["path"] for r in manifest["inputs"] if r["role"] == "graph"}
    assert graphs == {name: f"../{graph}.fp32.onnx" for name, graph in GRAPHS.items()}


def test_weights_that_a_file_leaves_out_get_a_grid_of_the_bases_structure(tmp_path: Path) -> None:
    config = lora_config(tmp_path)
    path = tmp_path / "lora_adapter_a.v1.0.0.encodings"
    document = json.loads(path.read_text())
    params = document["param_encodings"]
    (left_out,) = [entry for entry in params if entry["name"] == "q.lora_A.weight"]
    params.remove(left_out)
    path.write_text(json.dumps(document))
    result = final(config, tmp_path / "out", mode="all")
    got = entries(tmp_path / "out" / "qairt" / "a" / "quant_overrides.json")["q.lora_A.weight"]
    assert "encodings/computed-weight" in rules(result)
    assert {k: v for k, v in got.items() if k != "scale"} == {
        k: v for k, v in left_out.items() if k != "scale"
    }
    # Both are the largest value of a channel over 127 steps: AIMET in float32, here in float64.
    # The last four ranks of the adapter are zero, so that any step serves them.
    np.testing.assert_allclose(got["scale"][:4], left_out["scale"][:4], rtol=2.0**-23, atol=0)


def test_without_encodings_the_pack_holds_graph_weights_and_lists(tmp_path: Path) -> None:
    final(lora_config(tmp_path, encodings=None), tmp_path / "out")
    files = {p.name for p in (tmp_path / "out" / "qairt" / "a").iterdir()}
    assert {"lora_weights.safetensors", "quant_updatable_tensors.txt"} <= files
    assert "quant_overrides.json" not in files
    assert verify(tmp_path / "out").ok


def _edit_weight(model: ModelProto, name: str, value: float) -> None:
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[5] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def _other_weight(model: ModelProto) -> None:
    _edit_weight(model, "fc.weight", 0.75)


def _other_operator(model: ModelProto) -> None:
    (node,) = [n for n in model.graph.node if n.op_type == "Relu"]
    node.op_type = "Tanh"


def _other_wires(model: ModelProto) -> None:
    (node,) = [n for n in model.graph.node if n.name == "/Mul"]
    node.input[0] = "/q/lora_add/Add_output_0"


def _other_attribute(model: ModelProto) -> None:
    (node,) = [n for n in model.graph.node if n.op_type == "Relu"]
    node.attribute.append(onnx.helper.make_attribute("alpha", 2.0))


def _more_nodes(model: ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["y"], ["z"], "/extra"))


def _other_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


def _other_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 18


def _other_rank(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "q.lora_A.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.ones((32, 4), np.float32), tensor.name))


def _more_weights(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (_other_weight, r"got 0\.75 as element 5 of an initializer that belongs to no branch"),
        (_other_operator, r"got Tanh, expected Relu \(/Relu\)"),
        (_other_wires, r"got a Mul from .*, expected a Mul from \['/Sigmoid_output_0'"),
        (_other_attribute, r"got another 'alpha' of a Relu"),
        (_more_nodes, r"got 17 nodes, expected 16"),
        (_other_input, r"got the input 'x' \[1, 7, 32\], expected 'x' \[1, 6, 32\]"),
        (_other_opset, r"got operator sets \{'ai\.onnx': 18\}, expected \{'ai\.onnx': 17\}"),
        (_other_rank, r"got float of shape \[32, 4\], expected float of shape \[32, 8\]"),
        (_more_weights, r"got an initializer that the given graph lacks, expected none"),
    ],
)
def test_a_use_cases_graph_that_differs_is_refused_with_the_difference(
    tmp_path: Path, edit: Callable[[ModelProto], None], told: str
) -> None:
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "lora_adapter_b.fp32.onnx"
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))
    with pytest.raises(GraphError, match=told) as caught:
        final(config, tmp_path / "out")
    assert caught.value.where.file == path
    assert caught.value.where.use_case == "b"
    assert not (tmp_path / "out").exists()


def test_names_of_nodes_and_notes_do_not_matter(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "lora_adapter_b.fp32.onnx"
    model = onnx.load(str(path))
    model.producer_name = "another"
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
        node.doc_string = "renamed"
    onnx.save(model, str(path))
    final(config, tmp_path / "out")


def test_equal_values_in_another_field_are_equal(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "lora_adapter_b.fp32.onnx"
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values.ravel().tolist())
    onnx.save(model, str(path))
    final(config, tmp_path / "out")
    got = load_file(tmp_path / "out" / "qairt" / "b" / "lora_weights.safetensors")
    own = initializers(path)
    for tensor in WEIGHTS:
        np.testing.assert_array_equal(got[tensor], own[tensor], strict=True)


def _in_data_files(folder: Path) -> None:
    for graph in GRAPHS.values():
        path = folder / f"{graph}.fp32.onnx"
        onnx.save(
            onnx.load(str(path)),
            str(path),
            save_as_external_data=True,
            location=f"{graph}.data",
            size_threshold=0,
        )


def test_graphs_with_data_files_are_copied_and_compared_with_them(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    _in_data_files(tmp_path)
    final(config, tmp_path / "out")
    copied = tmp_path / "out" / "qairt" / "base_lora_zero.data"
    assert copied.read_bytes() == (tmp_path / "base_lora_zero.data").read_bytes()
    assert verify(tmp_path / "out").ok
    data = tmp_path / "lora_adapter_a.data"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(VerificationError, match="are not those that the pack was built from"):
        verify(tmp_path / "out")


def test_beside_the_base_nothing_is_copied_and_nothing_is_touched(tmp_path: Path) -> None:
    config = lora_config(tmp_path / "in", encodings=None)
    _in_data_files(tmp_path / "in")
    before = {p: p.read_bytes() for p in (tmp_path / "in").iterdir()}
    out = tmp_path / "out"
    for force in (False, True):
        final(config, out, beside_base=True, force=force)
        assert {p: p.read_bytes() for p in (tmp_path / "in").iterdir()} == before
    assert not list(out.rglob("*.onnx"))
    importer = yaml.safe_load((out / "qairt" / "lora_importer_config.yaml").read_text())
    graph = out / "qairt" / importer["use_case"][0]["model_name"]
    assert graph.resolve() == (tmp_path / "in" / "base_lora_zero.fp32.onnx").resolve()
    assert [f for f in check_pack(out) if f.severity.value == "error"] == []
    assert verify(out).ok


def test_a_graph_in_the_output_folder_is_not_referred_to(tmp_path: Path) -> None:
    config = lora_config(tmp_path / "in", encodings=None)
    out = tmp_path / "out"
    final(config, out)
    document = yaml.safe_load(config.read_text())
    document["use-case"] = [
        {**one, "model_name": str(out / "qairt" / "model.onnx")}
        for one in document["use-case"]
        if one["name"] == "base"
    ]
    document["use-case"][0] |= {"adapter_names": ["a"], "adapter_alphas": [1.0]}
    document["adapter"] = document["adapter"][:1]
    config.write_text(yaml.safe_dump(document))
    with pytest.raises(PackError, match="lies in the output folder"):
        final(config, out, beside_base=True, force=True)
    assert (out / "qairt" / "model.onnx").is_file()


def test_one_graph_for_all_use_cases_gives_its_own_weights(tmp_path: Path) -> None:
    config = lora_config(tmp_path, {"use-case": [use_case("a", ["a"], "lora_adapter_a")]})
    result = final(config, tmp_path / "out")
    got = load_file(tmp_path / "out" / "qairt" / "a" / "lora_weights.safetensors")
    own = initializers(NETWORK / "lora_adapter_a.fp32.onnx")
    for tensor in WEIGHTS:
        np.testing.assert_array_equal(got[tensor], own[tensor], strict=True)
    assert "graph/not-neutral" in rules(result)
    assert verify(tmp_path / "out").ok


def test_a_neutral_graph_is_not_remarked_on(tmp_path: Path) -> None:
    result = final(lora_config(tmp_path, encodings=None), tmp_path / "out")
    assert "graph/not-neutral" not in rules(result)


def test_a_description_on_the_graph_of_the_base_is_refused(tmp_path: Path) -> None:
    cases = [use_case("base", [], "base_lora_zero"), use_case("a", ["a"], "base_lora_zero")]
    config = lora_config(tmp_path, {"use-case": cases})
    with pytest.raises(ConfigError, match="nothing tells the weights of adapter 'a'") as caught:
        final(config, tmp_path / "out")
    assert caught.value.where.use_case == "a"
    assert caught.value.hint is not None
    assert "model_name" in caught.value.hint


def test_adapters_of_more_ranks_than_the_branches_are_refused(tmp_path: Path) -> None:
    edits = {"adapter": [adapter("a", RANK + 1), adapter("b")]}
    with pytest.raises(ConfigError, match="have 9 ranks, and the branches of the given graph 8"):
        final(lora_config(tmp_path, edits, encodings=None), tmp_path / "out")


def test_two_adapters_on_one_strength_are_told_by_the_layout(tmp_path: Path) -> None:
    cases = [
        use_case("base", [], "base_lora_zero"),
        use_case("both", ["a", "b"], "lora_adapter_a"),
    ]
    edits = {"adapter": [adapter("a", 4), adapter("b", 4)], "use-case": cases}
    result = final(lora_config(tmp_path, edits, encodings=None), tmp_path / "out")
    assert result.manifest.alpha is not None
    assert result.manifest.alpha.layout == "one"
    assert [slot.start for slot in result.manifest.use_cases[1].slots] == [0, 4]
    assert [f for f in check_pack(tmp_path / "out") if f.severity.value == "error"] == []
    assert verify(tmp_path / "out").ok


def test_a_graph_without_branches_is_refused(tmp_path: Path) -> None:
    config = lora_config(tmp_path, {"use-case": [use_case("a", ["a"], "base_plain")]})
    with pytest.raises(GraphError, match="no LoRA branch was found in it"):
        final(config, tmp_path / "out")


def test_the_name_that_the_graph_gives_its_strengths_is_remarked_on(tmp_path: Path) -> None:
    result = final(lora_config(tmp_path, encodings=None), tmp_path / "out", alpha_name="strength")
    (found,) = [f for f in result.findings if f.rule == "graph/alpha-name"]
    assert "calls its input for strengths 'lora_alpha', not 'strength'" in found.message


def test_weights_that_are_not_initializers_are_refused(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "base_lora_zero.fp32.onnx"
    model = onnx.load(str(path))
    (tensor,) = [t for t in model.graph.initializer if t.name == "v.lora_B.weight"]
    value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    model.graph.input.append(value)
    onnx.save(model, str(path))
    with pytest.raises(GraphError, match=r"cannot be switched: .*graph input") as caught:
        final(config, tmp_path / "out")
    assert caught.value.where.tensor == "v.lora_B.weight"


def test_weights_that_two_branches_share_are_refused(tmp_path: Path) -> None:
    """An optimizer that merges equal initializers makes one of all zeros."""
    config = lora_config(tmp_path, encodings=None)
    path = tmp_path / "base_lora_zero.fp32.onnx"
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.input[:] = [name.replace("v.lora_A", "q.lora_A") for name in node.input]
    onnx.save(model, str(path))
    with pytest.raises(GraphError, match="cannot be switched: more than one node reads it"):
        final(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"targets": ("qairt", "onnxruntime")}, "the target 'onnxruntime' is given without"),
        ({"merge": "a"}, "merge is given without create_lora_graph"),
        ({"alpha_layout": "rank"}, "alpha_layout is given without create_lora_graph"),
    ],
)
def test_options_that_would_change_the_graph_are_refused(options: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BuildOptions(create_lora_graph=False, **options)


def test_the_command_line_builds_validates_and_verifies(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    out = tmp_path / "out"
    arguments = ("build", config, "-o", out, "--no-create-lora-graph")
    assert command(*arguments).returncode == 0
    assert command("validate", out).returncode == 0
    shown = command("verify", out)
    assert shown.returncode == 0
    assert "own graph: bit for bit" in shown.stdout
    refused = command(*arguments, "--force", "--target", "qnn")
    assert refused.returncode == 2
    assert "the target 'qnn' is given without --create-lora-graph" in " ".join(
        refused.stderr.replace("│", " ").split()
    )


def test_build_lora_graph_takes_a_final_graph(tmp_path: Path) -> None:
    made = build_lora_graph(
        LoraBuilderInputConfig(
            lora_config_path=lora_config(tmp_path),
            create_lora_graph=False,
            quant_updatable_mode="all",
            alpha_tensor_name="lora_alpha",
        ),
        tmp_path / "out",
    )
    assert [one.name for one in made.use_case] == list(GRAPHS)
    assert made.lora_tensor_names.read_text().splitlines() == WEIGHTS
    assert made.base_encodings is not None


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    config = lora_config(tmp_path)
    for name in ("one", "two"):
        final(config, tmp_path / name, mode="all")
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
        for n in ("one", "two")
    )
    assert one == two


def test_a_use_cases_graph_that_changed_is_not_verified(tmp_path: Path) -> None:
    final(lora_config(tmp_path, encodings=None), tmp_path / "out")
    path = tmp_path / "lora_adapter_a.fp32.onnx"
    model = onnx.load(str(path))
    _edit_weight(model, "q.lora_A.weight", 9.0)
    onnx.save(model, str(path))
    with pytest.raises(VerificationError, match="graph of use case 'a' is not the one"):
        verify(tmp_path / "out")


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    config = lora_config(tmp_path, encodings=None)
    (tmp_path / "lora_adapter_b.fp32.onnx").unlink()
    with pytest.raises(LoraQuantError, match="does not exist") as caught:
        final(config, tmp_path / "out")
    assert caught.value.where.file == tmp_path / "lora_adapter_b.fp32.onnx"
