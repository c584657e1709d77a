"""Encodings of every version as input and as output hold the same grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lora_quant.api import BuildResult, build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions
from tests.adapters.builders import write
from tests.conftest import Packs
from tests.passes.test_expected_encodings import ADAPTED, branch_names
from tests.sample import ROOT, Document, copy_sample, edit_json, keep_use_cases, tree

NETWORK = ROOT / "tests" / "fixtures" / "aimet" / "network"
VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
RANKS = {"a": 4, "b": 8}

# bits, symmetric, scales, offsets in the unsigned form of 0.6.1 and 1.0.0
Grid = tuple[int, bool, tuple[float, ...], tuple[float, ...]]


def grids(path: Path) -> dict[str, Grid]:
    """Every integer grid of an encodings file, read without lora_quant."""
    document = json.loads(path.read_text(encoding="utf-8"))
    read = {"0.6.1": _grids_0_6_1, "1.0.0": _grids_1_0_0, "2.0.0": _grids_2_0_0}
    return read[document["version"]](document)


def _grids_0_6_1(document: dict[str, Any]) -> dict[str, Grid]:
    found = {}
    for section in ("activation_encodings", "param_encodings"):
        for name, entries in document[section].items():
            for e in entries:
                assert e["is_symmetric"] in ("True", "False")
                assert e["min"] == e["offset"] * e["scale"]
                assert e["max"] == (e["offset"] + 2 ** e["bitwidth"] - 1) * e["scale"]
            first = entries[0]
            found[name] = (
                first["bitwidth"],
                first["is_symmetric"] == "True",
                tuple(e["scale"] for e in entries),
                tuple(float(e["offset"]) for e in entries),
            )
    return found


def _grids_1_0_0(document: dict[str, Any]) -> dict[str, Grid]:
    return {
        e["name"]: (e["bw"], e["is_sym"], tuple(e["scale"]), tuple(map(float, e["offset"])))
        for section in ("activation_encodings", "param_encodings")
        for e in document[section]
    }


def _grids_2_0_0(document: dict[str, Any]) -> dict[str, Grid]:
    found = {}
    for e in document["encodings"]:
        signed = e["output_dtype"].startswith("int")
        bits = int(e["output_dtype"].removeprefix("u").removeprefix("int"))
        scales = e["y_scale"] if isinstance(e["y_scale"], list) else [e["y_scale"]]
        points = e.get("y_zero_point", 0)
        points = points if isinstance(points, list) else [points] * len(scales)
        middle = 2 ** (bits - 1) if signed else 0
        found[e["name"]] = (
            bits,
            signed,
            tuple(scales),
            tuple(-float(point + middle) for point in points),
        )
    return found


@pytest.mark.parametrize("version", ["0.6.1", "2.0.0"])
@pytest.mark.parametrize("use_case", list(ADAPTED))
def test_output_versions_hold_the_same_grids(version: str, use_case: str, packs: Packs) -> None:
    name = Path("qairt", use_case, "quant_overrides.json")
    expected = grids(packs("adapter_only").output / name)
    found = grids(packs(version).output / name)
    assert found == expected
    base = Path("qairt", "base_encodings.json")
    assert grids(packs(version).output / base) == grids(packs("adapter_only").output / base)


def test_2_0_0_tells_the_channel_axis_of_every_weight(packs: Packs) -> None:
    path = packs("2.0.0").output / "qairt" / "both" / "quant_overrides.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    axes = {e["name"]: e.get("axis") for e in document["encodings"] if "lora_A" in e["name"]}
    weights = {n: a for n, a in axes.items() if n.endswith(".weight")}
    assert len(weights) == 14
    assert set(weights.values()) == {1}  # [in, R]
    assert {a for n, a in axes.items() if n not in weights} == {None}


def network_config(folder: Path, version: str, base_version: str) -> LoraConfig:
    """AIMET's own network, its adapters taken from the initializers of their graphs.

    All have 8 ranks there; of adapter a the last four are zero, and left out here.
    """
    adapters = []
    for name, rank in RANKS.items():
        graph = onnx.load(str(NETWORK / f"lora_adapter_{name}.fp32.onnx")).graph
        values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        tensors = {
            f"base_model.model.{module}.lora_{letter}.weight": np.ascontiguousarray(ranks.T)
            for module in ("q", "v")
            for letter, ranks in (
                ("A", values[f"{module}.lora_A.weight"][:, :rank]),
                ("B", values[f"{module}.lora_B.weight"][:rank]),
            )
        }
        assert not values["q.lora_A.weight"][:, rank:].any()
        path = write(folder / name, tensors, r=rank, lora_alpha=rank, target_modules=["q", "v"])
        adapters.append({"name": name, "lora_config": path})
    use_cases = [
        {
            "name": name,
            "adapter_names": names,
            "adapter_alphas": [1.0] * len(names),
            "model_name": NETWORK / "base_plain.fp32.onnx",
            "quant_overrides": NETWORK / f"{stem}.v{v}.encodings",
        }
        for name, names, stem, v in (
            ("base", [], "base_plain", base_version),
            ("a", ["a"], "lora_adapter_a", version),
            ("b", ["b"], "lora_adapter_b", version),
        )
    ]
    return LoraConfig.model_validate({"adapter": adapters, "use-case": use_cases})


def build_network(folder: Path, version: str, base_version: str) -> BuildResult:
    # 2.0.0 has int32 biases, whose scale follows that of the input: other than the base's.
    options = BuildOptions(mode="all", fixed_conflict="base")
    return build(network_config(folder, version, base_version), folder / "out", options)


@pytest.mark.parametrize("version", VERSIONS)
def test_files_of_aimet_s_network(version: str, tmp_path: Path) -> None:
    """`/q/lora_add/Add_output_0` is y and `/q/MatMul_output_0` is h there; rank 4 and 8."""
    result = build_network(tmp_path, version, version)
    assert result.manifest.max_rank == 8
    conflicts = [f for f in result.findings if f.rule == "encodings/fixed-tensor-differs"]
    assert {f.where.tensor for f in conflicts} == ({"fc.bias"} if version == "2.0.0" else set())
    for use_case in RANKS:
        source = grids(NETWORK / f"lora_adapter_{use_case}.v{version}.encodings")
        found = grids(tmp_path / "out" / "qairt" / use_case / "quant_overrides.json")
        for module in ("q", "v"):
            path = f"/{module}"
            assert found[f"{path}/MatMul_output_0"] == source[f"{path}/lora_add/Add_output_0"]
            assert found[f"{path}/MatMul_output_0_base"] == source[f"{path}/MatMul_output_0"]
            for role, ours in (
                ("lora_A/MatMul", "lora_A/MatMul"),
                ("lora_alpha/Mul", "lora_scale/Mul"),
                ("lora_B/MatMul", "lora_B/MatMul"),
            ):
                assert found[f"{path}/{ours}_output_0"] == source[f"{path}/{role}_output_0"]
            # The file's graph is padded to 8 ranks at the tail, as ours is for slot 0.
            for weight in (f"{module}.lora_A.weight", f"{module}.lora_B.weight"):
                assert found[weight] == source[weight]
        for name in ("x", "/Mul_output_0", "/Relu_output_0", "y"):
            assert found[name] == source[name]


@pytest.mark.parametrize(
    ("version", "base_version"), [("0.6.1", "2.0.0"), ("2.0.0", "0.6.1"), ("1.0.0", "2.0.0")]
)
def test_use_cases_may_be_of_another_version_than_the_base(
    version: str, base_version: str, tmp_path: Path
) -> None:
    """What is written is of the base's version; the grids are those of one version throughout."""
    mixed = build_network(tmp_path / "mixed", version, base_version).output
    plain = build_network(tmp_path / "plain", base_version, base_version).output
    for use_case in RANKS:
        name = Path("qairt", use_case, "quant_overrides.json")
        document = json.loads((mixed / name).read_text(encoding="utf-8"))
        assert document["version"] == base_version
        assert grids(mixed / name) == grids(plain / name)
    assert tree(mixed).keys() == tree(plain).keys()


@pytest.mark.parametrize("version", [None, "0.6.1", "2.0.0"])
def test_a_tensor_that_stays_in_float(version: Any, tmp_path: Path) -> None:
    """2.0.0 has no entry for it: it is left out, and named."""
    config = keep_use_cases(copy_sample(tmp_path), ["base", "tone"])
    source, ours = branch_names("model.layers.0.self_attn.q_proj")["a"]

    def make_float16(document: Document) -> None:
        for number, entry in enumerate(document["activation_encodings"]):
            if entry["name"] == source:
                document["activation_encodings"][number] = {
                    "bw": 16,
                    "dtype": "FLOAT",
                    "enc_type": "PER_TENSOR",
                    "is_sym": False,
                    "name": source,
                }

    edit_json(config.parent / "encodings" / "tone.encodings", make_float16)
    result = build(config, tmp_path / "out", BuildOptions(encodings_version=version))
    left_out = [f.where.tensor for f in result.findings if f.rule == "encodings/float-left-out"]
    for use_case in ("base", "tone"):
        text = (tmp_path / "out" / "qairt" / use_case / "quant_overrides.json").read_text(
            encoding="utf-8"
        )
        assert (f'"{ours}"' in text) == (version != "2.0.0")
    assert left_out == ([ours] if version == "2.0.0" else [])
