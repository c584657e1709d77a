"""The target `onnxruntime` on the sample: float parity with PEFT, and what is in its files.

PEFT's logits and ours round every sum of the whole model; the largest difference is allowed to be
1e-5 of the largest logit, as in test_kinds_compiled. Adapters move the logits a thousand times as
much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant import BuildOptions, build
from lora_quant.api import BuildResult
from lora_quant.errors import ConfigError
from lora_quant.plugins import TARGETS, registered
from tests.run_adapter import LEVELS, model_version, parameters, run, same, session_of
from tests.run_graph import largest
from tests.sample import (
    ALPHAS,
    SAMPLE,
    SCALES,
    STYLE,
    TONE,
    Document,
    copy_sample,
    edit_yaml,
    make_float,
    tree,
)

Array = NDArray[Any]
RELATIVE = 1e-5
TARGET = BuildOptions(targets=("onnxruntime",))
TOKENS = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"].astype(np.int64)
LOGITS = load_file(SAMPLE / "reference" / "logits.safetensors")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """The sample in float, in a folder whose name is no plain word."""
    folder = tmp_path_factory.mktemp("Größe 1")
    return build(make_float(copy_sample(folder)), folder / "Päckchen ß", TARGET)


def folder_of(pack: BuildResult) -> Path:
    return pack.output / "onnxruntime"


def logits(session: Any, adapter: Path | None) -> Array:
    """The graph of the sample takes one sequence at a time."""
    rows = [run(session, adapter, {"input_ids": row[None]}) for row in TOKENS]
    return np.concatenate(rows)


@pytest.mark.parametrize("use_case", ALPHAS)
def test_every_use_case_is_pefts_model(pack: BuildResult, use_case: str) -> None:
    session = session_of(folder_of(pack) / "model.onnx")
    ours = logits(session, folder_of(pack) / f"{use_case}.onnx_adapter")
    assert largest(ours, LOGITS[use_case]) <= RELATIVE * float(np.abs(LOGITS[use_case]).max())


@pytest.mark.parametrize("level", LEVELS)
def test_without_an_adapter_the_graph_is_the_base_bit_for_bit(
    pack: BuildResult, level: str
) -> None:
    session = session_of(folder_of(pack) / "model.onnx", level)
    (base,) = (SAMPLE / "model").glob("*.onnx")
    expected = logits(session_of(base, level), None)
    assert same(logits(session, None), expected)
    assert same(logits(session, folder_of(pack) / "base.onnx_adapter"), expected)


def test_use_cases_follow_each_other_without_a_trace(pack: BuildResult) -> None:
    session = session_of(folder_of(pack) / "model.onnx")
    order = ["tone", "both", "base", "legal", "tone", "style", "both"]
    found = [logits(session, folder_of(pack) / f"{name}.onnx_adapter") for name in order]
    for name, ours in zip(order, found, strict=True):
        fresh = session_of(folder_of(pack) / "model.onnx")
        assert same(ours, logits(fresh, folder_of(pack) / f"{name}.onnx_adapter"))


def test_a_file_holds_what_its_use_case_changes_and_no_padding(pack: BuildResult) -> None:
    tone = parameters(folder_of(pack) / "tone.onnx_adapter")
    weights = {f"{module}.lora_{side}.weight" for module in TONE for side in "AB"}
    (expansion,) = tone.keys() - weights - {"lora_alpha"}
    assert tone[expansion].tolist() == [[SCALES["tone"]] * 4, [0.0] * 4]
    for module in TONE:
        assert tone[f"{module}.lora_A.weight"].shape == (64, 4)
        assert tone[f"{module}.lora_B.weight"].shape[0] == 4
    style = parameters(folder_of(pack) / "style.onnx_adapter")
    ranks = {style[f"{module}.lora_A.weight"].shape[-1] for module in STYLE}
    assert ranks == {3, 6}, "style has a rank_pattern"
    both = parameters(folder_of(pack) / "both.onnx_adapter")
    assert {both[name].shape[-1] for name in both if name.endswith("lora_A.weight")} == {8, 12}


def test_every_use_case_has_a_file_with_its_strengths(pack: BuildResult) -> None:
    for use_case, strengths in ALPHAS.items():
        held = parameters(folder_of(pack) / f"{use_case}.onnx_adapter")
        np.testing.assert_array_equal(held["lora_alpha"], np.array(strengths, np.float32))
    assert list(parameters(folder_of(pack) / "base.onnx_adapter")) == ["lora_alpha"]


def test_points_that_are_filled_alike_share_one_rank_axis(pack: BuildResult) -> None:
    graph = onnx.load(str(folder_of(pack) / "model.onnx"), load_external_data=False).graph
    sizes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    axes = {sizes[f"{module}.lora_A.weight"][1] for module in TONE}
    assert len(axes) == 1
    (axis,) = axes
    number = str(axis).removeprefix("lora_rank_")
    assert sizes[f"lora_alpha.expansion_{number}"] == [2, axis]
    assert sum("expansion" in name for name in sizes) == 4, "tone, legal, style and style's pattern"
    names = {tensor.name for tensor in graph.initializer}
    assert "lora_alpha.expansion" not in names, "nobody reads the one that all shared"


def test_the_manifest_lists_every_input_that_has_a_default(pack: BuildResult) -> None:
    (target,) = pack.manifest.targets
    session = session_of(folder_of(pack) / "model.onnx")
    found = {value.name: value for value in session.get_overridable_initializers()}
    assert {one.name for one in target.inputs} == set(found)
    for one in target.inputs:
        sizes = tuple(-1 if isinstance(d, str) else d for d in found[one.name].shape)
        assert (one.shape, one.part, one.of) == (sizes, "values", None)
    roles = {one.role for one in target.inputs}
    assert roles == {"alpha", "expansion", "a_weight", "b_weight"}
    assert target.alpha is None, "the pack's own description fits"


def test_every_file_carries_the_fingerprint_of_the_graph(pack: BuildResult) -> None:
    (target,) = pack.manifest.targets
    assert target.fingerprint is not None
    files = [pack.output / file.path for file in target.files if file.role == "adapter"]
    assert len(files) == len(ALPHAS)
    assert {model_version(file) for file in files} == {target.fingerprint}


def test_the_same_input_gives_the_same_bytes(pack: BuildResult, tmp_path: Path) -> None:
    again = build(make_float(copy_sample(tmp_path)), tmp_path / "again", TARGET)
    assert tree(folder_of(pack)) == tree(folder_of(again))


def test_another_base_has_another_fingerprint(pack: BuildResult, tmp_path: Path) -> None:
    config = make_float(copy_sample(tmp_path))
    data = config.parent / "model" / "model.data"
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.write_bytes(bytes(changed))
    other = build(config, tmp_path / "other", TARGET)
    assert other.manifest.targets[0].fingerprint != pack.manifest.targets[0].fingerprint
    graph = Path("onnxruntime", "model.onnx")
    assert (other.output / graph).read_bytes() == (pack.output / graph).read_bytes()


def test_beside_the_base_the_graph_has_the_targets_name(sample: Path) -> None:
    options = BuildOptions(targets=("qairt", "onnxruntime"), beside_base=True)
    output = sample.parent / "out"
    result = build(make_float(sample), output, options)
    beside = sample.parent / "model"
    names = {path.name for path in beside.iterdir()}
    assert {"model.out.onnx", "model.out.onnxruntime.onnx"} <= names
    assert not (output / "onnxruntime" / "model.onnx").exists()
    session = session_of(beside / "model.out.onnxruntime.onnx")
    ours = logits(session, output / "onnxruntime" / "both.onnx_adapter")
    assert largest(ours, LOGITS["both"]) <= RELATIVE * float(np.abs(LOGITS["both"]).max())
    build(sample, output, BuildOptions(targets=("qairt",), force=True))
    assert not (beside / "model.out.onnxruntime.onnx").exists(), "it went with the pack"
    assert result.manifest.base.beside_base


def test_a_merged_use_case_is_written_as_a_plain_graph(sample: Path) -> None:
    options = BuildOptions(targets=("onnxruntime",), merge="both")
    result = build(make_float(sample), sample.parent / "out", options)
    (target,) = result.manifest.targets
    assert {file.role for file in target.files} == {"graph", "graph-data"}
    assert (target.inputs, target.fingerprint) == ((), None)
    ours = logits(session_of(result.output / "onnxruntime" / "model.onnx"), None)
    assert largest(ours, LOGITS["both"]) <= RELATIVE * float(np.abs(LOGITS["both"]).max())


def test_the_strengths_are_by_slot_whatever_layout_is_asked_for(sample: Path) -> None:
    options = BuildOptions(targets=("onnxruntime",), alpha_layout="rank", alpha_name="strength")
    result = build(make_float(sample), sample.parent / "out", options)
    (note,) = (f for f in result.findings if f.rule == "onnxruntime/alpha-layout")
    assert "one strength for each slot" in note.message
    alpha = result.manifest.targets[0].alpha
    assert alpha is not None
    assert (alpha.tensor, alpha.layout, alpha.shape) == ("strength", "slot", (2,))
    ours = logits(
        session_of(result.output / "onnxruntime" / "model.onnx"),
        result.output / "onnxruntime" / "both.onnx_adapter",
    )
    assert largest(ours, LOGITS["both"]) <= RELATIVE * float(np.abs(LOGITS["both"]).max())


def test_an_absolute_strength_is_another_value_of_alpha(pack: BuildResult) -> None:
    """tone alone is `both` with legal at 0; B sums over other ranks, in another order."""
    session = session_of(folder_of(pack) / "model.onnx")
    held = parameters(folder_of(pack) / "both.onnx_adapter")
    held["lora_alpha"] = np.array([1.0, 0.0], np.float32)
    ours = np.concatenate([run(session, None, {"input_ids": row[None], **held}) for row in TOKENS])
    assert largest(ours, LOGITS["tone"]) <= RELATIVE * float(np.abs(LOGITS["tone"]).max())


def test_lora_weights_need_the_target_that_stores_them() -> None:
    with pytest.raises(ConfigError, match="without the target 'onnxruntime'") as caught:
        BuildOptions(lora_weights="int8")
    assert caught.value.where.field == "lora_weights"
    assert BuildOptions(lora_weights="int8", targets=("of-a-plugin",)).lora_weights == "int8"
    with pytest.raises(ConfigError, match="with merge"):
        BuildOptions(lora_weights="int8", targets=("onnxruntime",), merge="both")


def test_the_options_know_the_built_in_targets() -> None:
    for name in registered(TARGETS):
        with pytest.raises(ConfigError, match="which alone reads it"):
            BuildOptions(targets=(name,), lora_weights="int8", qnn_context=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Model.ONNX", "is the name of a file of the pack"),
        ("a" * 250, "more than 255 bytes"),
        ("genai_config.json", "is the name of a file of the pack"),
    ],
)
def test_a_use_case_whose_file_has_no_name_is_refused(
    name: str, message: str, sample: Path
) -> None:
    def rename(document: Document) -> None:
        document["use-case"][1]["name"] = name

    with pytest.raises(ConfigError, match=message) as caught:
        build(edit_yaml(make_float(sample), rename), sample.parent / "out", TARGET)
    assert caught.value.where.use_case == name
    assert not (sample.parent / "out").exists()
