"""Packs for a graph that is final, made of use cases that each have a graph of their own.

The graphs and encodings are those that AIMET wrote for one small network: with zero branches, and
with the weights of two adapters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from safetensors.numpy import load_file

from lora_quant import build_lora_graph
from lora_quant.config.builder import LoraBuilderInputConfig
from lora_quant.errors import (
    PackError,
    VerificationError,
)
from lora_quant.findings import Severity
from lora_quant.graph.exported import verbatim
from lora_quant.graph.files.model_file import ModelFile, load_model
from lora_quant.runtime.verify.verify import verify
from lora_quant.validation.pack.check import check_pack
from tests.command_line import command
from tests.final_graphs import (
    GRAPHS,
    NETWORK,
    RANK,
    WEIGHTS,
    adapter,
    final,
    initializers,
    lora_config,
    rules,
    use_case,
)
from tests.run_graph import run_use_case

# A, B, a, m and l of two branches.
BRANCH_TENSORS = 10


def entries(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> entry of an encodings file of version 1.0.0, by the json module alone."""
    document = json.loads(path.read_text(encoding="utf-8"))
    sections = (document["activation_encodings"], document["param_encodings"])
    return {entry["name"]: entry for section in sections for entry in section}


def test_the_graph_of_a_use_case_is_opened_once_for_all_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(path: Path) -> ModelFile:
        opened.append(path.name)
        return load_model(path)

    monkeypatch.setattr(verbatim, "load_model", counted)
    final(lora_config(tmp_path / "in"), tmp_path / "out", mode="all")
    assert opened == [f"{GRAPHS[name]}.fp32.onnx" for name in ("a", "b")]


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


def test_weights_that_a_file_leaves_out_take_no_grid_of_blocks(tmp_path: Path) -> None:
    """Blocks are the base's choice for values that are stored; what is computed is per channel."""
    config = lora_config(tmp_path)
    name = "q.lora_A.weight"
    for stem in ("base_lora_zero", "lora_adapter_a"):
        path = tmp_path / f"{stem}.v1.0.0.encodings"
        document = json.loads(path.read_text())
        params = document["param_encodings"]
        (entry,) = [one for one in params if one["name"] == name]
        params.remove(entry)
        if stem == "base_lora_zero":
            blocks = len(entry["scale"]) * 2
            grid = {"scale": [0.5] * blocks, "offset": [-8] * blocks, "block_size": 8}
            params.append({**entry, **grid, "enc_type": "PER_BLOCK", "bw": 4})
        path.write_text(json.dumps(document))
    final(config, tmp_path / "out", mode="all")
    got = entries(tmp_path / "out" / "qairt" / "a" / "quant_overrides.json")[name]
    assert (got["enc_type"], got["bw"], len(got["scale"])) == ("PER_CHANNEL", 8, RANK)


def test_without_encodings_the_pack_holds_graph_weights_and_lists(tmp_path: Path) -> None:
    final(lora_config(tmp_path, encodings=None), tmp_path / "out")
    files = {p.name for p in (tmp_path / "out" / "qairt" / "a").iterdir()}
    assert {"lora_weights.safetensors", "quant_updatable_tensors.txt"} <= files
    assert "quant_overrides.json" not in files
    assert verify(tmp_path / "out").ok


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


def test_a_use_case_for_the_base_alone_on_a_graph_that_is_not_neutral(tmp_path: Path) -> None:
    cases = [use_case("plain", [], "lora_adapter_a"), use_case("b", ["b"], "lora_adapter_b")]
    result = final(lora_config(tmp_path, {"use-case": cases}, encodings=None), tmp_path / "out")
    (finding,) = (f for f in result.findings if f.rule == "graph/not-neutral")
    assert finding.severity is Severity.WARNING
    assert "also in use case 'plain', which names no adapters" in finding.message


def test_a_neutral_graph_is_not_remarked_on(tmp_path: Path) -> None:
    result = final(lora_config(tmp_path, encodings=None), tmp_path / "out")
    assert "graph/not-neutral" not in rules(result)


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


def test_the_name_that_the_graph_gives_its_strengths_is_remarked_on(tmp_path: Path) -> None:
    result = final(lora_config(tmp_path, encodings=None), tmp_path / "out", alpha_name="strength")
    (found,) = [f for f in result.findings if f.rule == "graph/alpha-name"]
    assert "calls its input for strengths 'lora_alpha', not 'strength'" in found.message


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
    assert "the target 'qnn' is given with --no-create-lora-graph" in " ".join(
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
