"""Packs of every form that an adapter takes: sound as they are built, one thing wrong at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from lora_quant.config.options import BuildOptions
from lora_quant.findings import Finding
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.pack.check import check_pack
from tests.runtime.kinds import Tensors, edit_tensors, pack_of
from tests.runtime.test_verify_prompts import prompt_pack
from tests.validation.packs import edit_manifest, one, rehash, rules

Document = dict[str, Any]
MADE = {
    "vectors": ("lora_dora", None),
    "only vectors": ("ia3_feedforward", None),
    "replaced": ("ln_tuning_llama", None),
    "gate": ("lora_alora", None),
    "router": ("lily", None),
    "embedding": ("lora_embedding", None),
    "groups": ("lora_conv_grouped", None),
    "merged": ("oft_default", BuildOptions(merge="it")),
    "approximated": (
        "oft_default",
        BuildOptions(approximate=True, approximate_rank=6, max_error=0.9),
    ),
}
PROMPTS = {"prefix": "prompt_tuning", "cache": "prefix_tuning"}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Packs by name, each built once; nobody may change them."""
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in found:
            folder = tmp_path_factory.mktemp("kinds")
            if name in PROMPTS:
                found[name] = prompt_pack(folder, PROMPTS[name])
            else:
                case, options = MADE[name]
                found[name] = pack_of(folder, [case], options)
        return found[name]

    return get


@pytest.fixture
def copied(made: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them, to be damaged."""
    return lambda name: Path(shutil.copytree(made(name), tmp_path / "pack"))


def check_quickly(pack: Path) -> tuple[Finding, ...]:
    return check_pack(pack, depth=Depth.QUICK)


@pytest.mark.parametrize("name", [*MADE, *PROMPTS])
def test_a_pack_as_it_is_built_has_no_findings(name: str, made: Callable[[str], Path]) -> None:
    assert check_pack(made(name)) == ()


def point(document: Document) -> Document:
    found: Document = document["attach_points"][0]
    return found


@pytest.mark.parametrize(
    ("name", "edit", "rule", "text"),
    [
        (
            "vectors",
            lambda d: point(d)["vectors"].pop(0),
            "tensor-roles",
            "the tensor has the role 'g', and no attach point names it",
        ),
        (
            "vectors",
            lambda d: point(d)["vectors"][0].update(vector="h"),
            "tensor-roles",
            "the tensor is 'h' of an attach point, but has the role 'g'",
        ),
        (
            "vectors",
            lambda d: point(d)["vectors"][0].update(output="nowhere"),
            "graph-activations",
            "the graph has no tensor of this name",
        ),
        (
            "router",
            lambda d: point(d)["router"].update(rest="nowhere"),
            "tensor-roles",
            "the tensor is 'router_rest' of an attach point, but is not in the list",
        ),
        (
            "only vectors",
            lambda d: d["attach_points"].append(
                {**point(d), "name": "bare", "vectors": [], "modules": point(d)["modules"]}
            ),
            "attach-point",
            "the attach point 'bare' has neither a branch nor a vector",
        ),
        ("vectors", lambda d: d.pop("alpha"), "alpha", "branches and no alpha input"),
        (
            "only vectors",
            lambda d: d.update(
                alpha={"tensor": "x", "layout": "slot", "dtype": "float32", "shape": [2]}
            ),
            "alpha",
            "an alpha input and no branch",
        ),
        ("gate", lambda d: d["alpha"].pop("gate"), "gate", "the graph has no gate input"),
        (
            "gate",
            lambda d: d["alpha"]["gate"].update(tensor="elsewhere"),
            "graph-gate",
            "the graph has no input 'elsewhere' for the gates",
        ),
        (
            "gate",
            lambda d: d["alpha"]["gate"].update(shape=[3]),
            "graph-gate",
            "expected ['any', 'any', 3]",
        ),
        (
            "vectors",
            lambda d: d["alpha"].update(shape=[3]),
            "graph-alpha",
            "has the sizes [2], expected [3]",
        ),
        (
            "replaced",
            lambda d: d["tensors"][0].update(shape=[3]),
            "graph-tensors",
            "the initializer has the shape",
        ),
        (
            "prefix",
            lambda d: d["use_cases"][1]["prompt"].update(adapter="tone"),
            "prompt",
            "of adapter 'tone', which the use case does not name",
        ),
        (
            "prefix",
            lambda d: d["use_cases"][1]["prompt"].update(inputs=["nowhere"]),
            "graph-prompt",
            "the graph has no input 'nowhere' for the soft prompt of 'prompt'",
        ),
        (
            "cache",
            lambda d: d["use_cases"][1]["prompt"]["inputs"].pop(),
            "prompt",
            "for 3 inputs, expected 4 axes that are not empty, and 4 inputs",
        ),
        (
            "cache",
            lambda d: d["use_cases"][1].pop("prompt"),
            "prompt-files",
            "1 files of the role 'prompt' for the target 'qairt', expected 0",
        ),
    ],
)
def test_records_that_do_not_fit(
    name: str,
    edit: Callable[[Document], object],
    rule: str,
    text: str,
    copied: Callable[[str], Path],
) -> None:
    pack = copied(name)
    edit_manifest(pack, edit)
    found = [f.message for f in check_quickly(pack) if f.rule == f"pack/{rule}"]
    assert any(text in message for message in found), found


def test_a_merged_pack_holds_nothing_to_switch(
    copied: Callable[[str], Path], made: Callable[[str], Path]
) -> None:
    pack = copied("approximated")
    edit_manifest(pack, lambda d: d.update(merged="it"))
    assert {"pack/merged", "pack/merged-files"} <= set(rules(check_quickly(pack)))
    messages = [f.message for f in check_quickly(pack) if f.rule == "pack/merged"]
    assert any("but the pack has 'base', 'it'; expected it alone" in m for m in messages)
    for what in ("LoRA tensors", "attach points", "an alpha input"):
        assert any(f"but the manifest has {what}" in m for m in messages)
    files = one(check_quickly(pack), "pack/merged-files")
    assert "qairt/it/lora_weights.safetensors" in files.message
    assert made("merged") != pack


def test_a_merged_pack_of_another_use_case(copied: Callable[[str], Path]) -> None:
    pack = copied("merged")
    edit_manifest(pack, lambda d: d.update(merged="other"))
    assert one(check_quickly(pack), "pack/merged").message == (
        "use case 'other' is merged into the weights, but the pack has 'it'; expected it alone"
    )


def test_a_prompt_without_its_file(copied: Callable[[str], Path]) -> None:
    pack = copied("prefix")
    (pack / "qairt" / "prompt" / "prompt.safetensors").unlink()

    def edit(document: Document) -> None:
        files = document["targets"][0]["files"]
        files[:] = [f for f in files if f["path"] != "qairt/prompt/prompt.safetensors"]

    edit_manifest(pack, edit)
    finding = one(check_quickly(pack), "pack/prompt-files")
    assert "0 files of the role 'prompt' for the target 'qairt', expected 1" in finding.message
    assert finding.where.use_case == "prompt"


def not_finite(tensors: Tensors) -> None:
    next(iter(tensors.values())).reshape(-1)[:2] = [np.nan, np.inf]


@pytest.mark.parametrize(
    ("edit", "rule", "text"),
    [
        (lambda t: t.update(more=np.zeros(1, np.float32)), "prompt-tensor", "'more' float32 [1]"),
        (lambda t: t.update({k: v[:1] for k, v in t.items()}), "prompt-tensor", "alone"),
        (
            lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}),
            "prompt-tensor",
            "float16",
        ),
        (not_finite, "prompt-values", "2 of the prompt's values are NaN or Inf"),
    ],
)
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_that_is_not_as_recorded(
    name: str,
    edit: Callable[[Tensors], object],
    rule: str,
    text: str,
    copied: Callable[[str], Path],
) -> None:
    pack = copied(name)
    path = pack / "qairt" / "prompt" / "prompt.safetensors"
    edit_tensors(path, edit)
    rehash(pack)
    finding = one(check_quickly(pack), f"pack/{rule}")
    assert text in finding.message
    assert finding.where.file == path


def test_a_prompt_that_is_no_safetensors_file(copied: Callable[[str], Path]) -> None:
    pack = copied("cache")
    path = pack / "qairt" / "both" / "prompt.safetensors"
    path.write_bytes(b"\xff" * 40)
    rehash(pack)
    finding = one(check_quickly(pack), "pack/prompt-format")
    assert finding.where.file == path
    assert finding.where.use_case == "both"


def test_a_weights_file_without_a_vector(copied: Callable[[str], Path]) -> None:
    pack = copied("vectors")
    path = pack / "qairt" / "it" / "lora_weights.safetensors"
    gone: list[str] = []

    def edit(tensors: Tensors) -> None:
        gone.append(next(name for name in tensors if name.endswith("lora_g.weight")))
        del tensors[gone[0]]

    edit_tensors(path, edit)
    rehash(pack)
    finding = one(check_quickly(pack), "pack/weights-tensors")
    assert gone[0] in finding.message


def test_a_graph_without_a_vector(copied: Callable[[str], Path]) -> None:
    pack = copied("only vectors")
    path = pack / "qairt" / "model.onnx"
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("lora_h.weight"):
            wide = np.ones((1, *tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    onnx.save(model, str(path))
    rehash(pack)
    found = [f for f in check_quickly(pack) if f.rule == "pack/graph-tensors"]
    assert found
    assert all(f.where.tensor is not None and "lora_h" in f.where.tensor for f in found)


def test_a_file_that_no_record_tells_of(copied: Callable[[str], Path]) -> None:
    pack = copied("merged")
    save_file({"x": np.zeros(1, np.float32)}, pack / "qairt" / "prompt.safetensors")
    finding = one(check_quickly(pack), "pack/stray-file")
    assert finding.where.file == pack / "qairt" / "prompt.safetensors"
