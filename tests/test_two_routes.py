"""Exported graphs with adapter JSONs, and the PEFT folders of the same adapters: the same pack.

Whatever an exporter calls its tensors, in which order and by which operators it computes a branch,
and where it puts the ranks, graph, weights, encodings and lists come out byte for byte the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from lora_quant import BuildOptions, build
from lora_quant.api import BuildResult
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import Mode
from lora_quant.errors import EncodingsError
from tests.exported_graphs import scrambled, with_ranks_moved
from tests.passes.test_versions import NETWORK, RANKS, VERSIONS, network_config
from tests.run_graph import run_use_case
from tests.sample import SAMPLE, Document, copy_sample, edit_yaml, entries, tree

EXPORTED = "lora_config_exported"
USE_CASES = ("tone", "legal", "style", "both")
BASE = SAMPLE / "model" / "model.onnx"
PeftRoute = Callable[[str, Mode, str], BuildResult]
CASES: list[tuple[str, Mode]] = [("", "none"), ("", "adapter_only"), ("_all", "all")]


def contents(result: BuildResult) -> dict[str, bytes]:
    """Every file but the manifest, which names the inputs."""
    return {name: data for name, data in tree(result.output).items() if name != "pack.json"}


def differing(one: BuildResult, other: BuildResult) -> list[str]:
    """The files that differ, or are missing from one of both."""
    first, second = contents(one), contents(other)
    assert first
    return [name for name in sorted(first | second) if first.get(name) != second.get(name)]


@pytest.fixture(scope="module")
def peft_route(tmp_path_factory: pytest.TempPathFactory) -> PeftRoute:
    """Packs of the sample's PEFT folders, each made once; nobody may change them."""
    folder = tmp_path_factory.mktemp("peft")

    @cache
    def built(suffix: str, mode: Mode, target: str) -> BuildResult:
        options = BuildOptions(mode=mode, targets=(target,))
        output = folder / f"{suffix}-{mode}-{target}"
        return build(SAMPLE / f"lora_config{suffix}.yaml", output, options)

    return built


def notes(result: BuildResult) -> set[tuple[str, str | None, str]]:
    """What was noticed: rule, use case and text."""
    return {(f.rule, f.where.use_case, f.message) for f in result.findings}


@pytest.mark.parametrize("target", ["qairt", "onnxruntime", "qnn"])
@pytest.mark.parametrize(("suffix", "mode"), CASES)
def test_both_routes_give_the_same_pack(
    suffix: str, mode: Mode, target: str, peft_route: PeftRoute, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"mode": mode, "targets": (target,)}
    exported = build(
        SAMPLE / f"{EXPORTED}{suffix}.yaml", tmp_path / "exported", BuildOptions(**options)
    )
    assert differing(exported, peft_route(suffix, mode, target)) == []


def rewritten(folder: Path, suffix: str, write: Callable[[str, Path], Document]) -> Path:
    """A copy of the sample in which `write` gives the files of each use case with adapters."""
    config = copy_sample(folder).with_name(f"{EXPORTED}{suffix}.yaml")

    def change(document: Document) -> None:
        for use_case in document["use-case"]:
            if use_case["adapter_names"]:
                use_case.update(write(use_case["name"], config.parent))

    return edit_yaml(config, change)


@pytest.mark.parametrize("rename_base", [False, True])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("suffix", "mode"), [CASES[1], CASES[2]])
def test_names_order_and_operators_do_not_matter(
    suffix: str,
    mode: Mode,
    seed: int,
    rename_base: bool,
    peft_route: PeftRoute,
    tmp_path: Path,
) -> None:
    """Opaque names for every tensor that the base lacks, or for all; encodings renamed alike."""

    def write(name: str, folder: Path) -> Document:
        own = scrambled(
            SAMPLE / "use_case_graphs" / f"{name}.onnx",
            BASE,
            seed=100 * seed + USE_CASES.index(name),
            rename_base=rename_base,
        )
        onnx.save(own.model, str(folder / f"{name}.onnx"))
        encodings = own.encodings(SAMPLE / f"encodings{suffix}" / f"{name}.encodings")
        (folder / f"{name}.encodings").write_text(json.dumps(encodings), encoding="utf-8")
        names = own.names(SAMPLE / f"quant_updatable{suffix}" / f"{name}.txt")
        (folder / f"{name}.txt").write_text("\n".join(names), encoding="utf-8")
        return {
            "model_name": f"{name}.onnx",
            "quant_overrides": f"{name}.encodings",
            "quant_updatable_tensors": f"{name}.txt",
        }

    config = rewritten(tmp_path, suffix, write)
    exported = build(config, tmp_path / "exported", BuildOptions(mode=mode))
    expected = peft_route(suffix, mode, "qairt")
    assert differing(exported, expected) == []
    of_lists = {
        told for told in notes(exported) if told[0].startswith(("updatable/", "encodings/"))
    }
    assert of_lists <= notes(expected)


def test_ranks_in_another_order_find_their_slots(peft_route: PeftRoute, tmp_path: Path) -> None:
    """legal before tone, and four ranks of zeros behind: A's channels move with the ranks."""
    both = {4: [0, 1, 2, 3], 8: list(range(8)), 12: [*range(4, 12), *range(4)]}
    total = {4: 6, 8: 8, 12: 16}

    def write(name: str, folder: Path) -> Document:
        if name != "both":
            return {}
        source = SAMPLE / "encodings" / "both.encodings"
        graph = SAMPLE / "use_case_graphs" / "both.onnx"
        model, encodings = with_ranks_moved(graph, source, both, total)
        onnx.save(model, str(folder / "both.onnx"))
        (folder / "both.encodings").write_text(json.dumps(encodings), encoding="utf-8")
        return {"model_name": "both.onnx", "quant_overrides": "both.encodings"}

    exported = build(rewritten(tmp_path, "", write), tmp_path / "exported")
    assert differing(exported, peft_route("", "adapter_only", "qairt")) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_both_routes_of_aimet_s_own_network(version: str, tmp_path: Path) -> None:
    """Its scale is an input of the graph, and of eight ranks of adapter a four are padding.

    What a file says of padding is dropped where the structure tells it; by names alone it is kept.
    """
    options = BuildOptions(mode="all", fixed_conflict="base", encodings_version="1.0.0")
    config = network_config(tmp_path, version, version)
    expected = build(config, tmp_path / "peft", options)
    document = config.model_dump(mode="json", by_alias=True)
    for adapter in document["adapter"]:
        name, rank = adapter["name"], RANKS[adapter["name"]]
        params = {"name": name, "rank": rank, "alpha": rank, "target_modules": ["q", "v"]}
        adapter["lora_config"] = params
    for use_case in document["use-case"][1:]:
        use_case["model_name"] = str(NETWORK / f"lora_adapter_{use_case['name']}.fp32.onnx")
    exported = build(LoraConfig.model_validate(document), tmp_path / "exported", options)
    differs = differing(exported, expected)
    assert set(differs) <= {"qairt/a/quant_overrides.json", "qairt/base_encodings.json"}
    for name in differs:
        first, second = (entries(result.output / name) for result in (exported, expected))
        assert first.keys() == second.keys()
        for tensor, entry in first.items():
            if "lora_A" in tensor and tensor.endswith(".weight"):
                assert entry["scale"][:4] == second[tensor]["scale"][:4]
            else:
                assert entry == second[tensor], tensor


@pytest.mark.parametrize("use_case", USE_CASES)
def test_the_sample_s_graphs_compute_what_peft_does(use_case: str) -> None:
    """2e-5: what make_encodings.py allows for another order of float32 sums, logits below 10."""
    reference = SAMPLE / "reference"
    expected = load_file(reference / "logits.safetensors")[use_case]
    assert np.abs(expected).max() < 10
    path = SAMPLE / "use_case_graphs" / f"{use_case}.onnx"
    inputs = load_file(reference / "inputs.safetensors")["input_ids"]
    for row, logits in zip(inputs, expected, strict=True):
        (got,) = run_use_case(path, None, {"input_ids": row[None]}).values()
        np.testing.assert_allclose(got[0], logits, rtol=0, atol=2e-5)


def test_exchanged_encodings_are_refused(tmp_path: Path) -> None:
    """tone and style adapt other modules: no branch of one is in the file of the other."""
    config = copy_sample(tmp_path).with_name("lora_config_exported.yaml")
    text = config.read_text(encoding="utf-8")
    text = text.replace("encodings/tone.", "exchanged/").replace(
        "encodings/style.", "encodings/tone."
    )
    config.write_text(text.replace("exchanged/", "encodings/style."), encoding="utf-8")
    with pytest.raises(EncodingsError, match="no branch of the use case's graph") as caught:
        build(config, tmp_path / "out")
    assert caught.value.where.use_case == "tone"
