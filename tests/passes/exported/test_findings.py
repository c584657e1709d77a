"""What is said of a use case's graph that was read, but not without a doubt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_quant import build
from lora_quant.errors import AdapterError, GraphError
from lora_quant.findings import Finding
from lora_quant.graph.exported.records import NearBranch
from lora_quant.passes.exported.near_branches import near_hint, near_problem
from lora_quant.passes.exported.remarks import Remarks
from tests.passes.exported.export_cases import Exports, Lora, Net, Shape, files_of

KINDS = {"net.fc1": "matmul", "net.fc2": "gemm"}
ALL = tuple(KINDS)


def exports(tmp_path: Path, *adapters: Lora) -> Exports:
    return Exports(tmp_path, Net(KINDS), adapters)


def findings_of(folder: Exports, tmp_path: Path) -> tuple[Finding, ...]:
    """Both routes give the same pack; what the exported one says."""
    build(folder.peft_config(), tmp_path / "peft")
    result = build(folder.exported_config(), tmp_path / "exported")
    assert files_of(result.output) == files_of(tmp_path / "peft")
    return result.findings


def test_adapters_that_look_alike_are_taken_in_the_listed_order(tmp_path: Path) -> None:
    folder = exports(tmp_path, Lora("tone", 2, 4, ALL), Lora("legal", 2, 4, ALL))
    folder.use_case("both", {"tone": 1.0, "legal": 1.0})
    (finding,) = findings_of(folder, tmp_path)
    assert (finding.rule, finding.severity.value) == ("exported/rank-order-assumed", "warning")
    assert finding.message.endswith("as PEFT puts them: 'net.fc1', 'net.fc2'")
    assert finding.where.use_case == "both"


def test_another_use_case_confirms_the_order_without_a_word(tmp_path: Path) -> None:
    folder = exports(tmp_path, Lora("tone", 2, 4, ALL), Lora("legal", 2, 4, ALL))
    folder.use_case("both", {"tone": 1.0, "legal": 1.0})
    folder.use_case("alone", {"legal": 0.5})
    assert findings_of(folder, tmp_path) == ()


def test_another_use_case_decides_for_another_order(tmp_path: Path) -> None:
    folder = exports(tmp_path, Lora("tone", 2, 4, ALL), Lora("legal", 2, 4, ALL))
    folder.use_case("both", {"tone": 1.0, "legal": 1.0}, Shape(order=["legal", "tone"]))
    folder.use_case("alone", {"legal": 0.5})
    (finding,) = findings_of(folder, tmp_path)
    assert finding.rule == "exported/other-rank-order"


def test_scales_tell_another_order(tmp_path: Path) -> None:
    folder = exports(tmp_path, Lora("tone", 2, 4, ALL), Lora("legal", 2, 7, ALL))
    folder.use_case("both", {"tone": 1.0, "legal": 1.0}, Shape(order=["legal", "tone"]))
    assert [f.rule for f in findings_of(folder, tmp_path)] == ["exported/other-rank-order"]


def test_a_strength_of_zero_everywhere_confirms_nothing(tmp_path: Path) -> None:
    """Any lora_alpha / r times 0 is 0: only the description tells it."""
    folder = exports(tmp_path, Lora("tone", 2, 4, ALL), Lora("legal", 3, 9, ALL))
    folder.use_case("both", {"tone": 0.0, "legal": 1.0})
    (finding,) = findings_of(folder, tmp_path)
    assert (finding.rule, finding.severity.value) == ("exported/never-on", "note")
    assert "'tone' has the strength 0 in all use cases" in finding.message


def test_a_strength_of_zero_is_confirmed_by_another_use_case(tmp_path: Path) -> None:
    folder = exports(tmp_path, Lora("tone", 2, 4, ALL), Lora("legal", 3, 9, ALL))
    folder.use_case("both", {"tone": 0.0, "legal": 1.0})
    folder.use_case("alone", {"tone": 0.5})
    assert findings_of(folder, tmp_path) == ()


@pytest.mark.parametrize("told", [False, True])
def test_an_input_alone_is_no_evidence_for_a_scale_of_one(told: bool, tmp_path: Path) -> None:
    """lora_alpha / r is 1, by the adapter JSON; rsLoRA, which it cannot tell, would be 1.41."""
    tone = Lora("tone", 2, 2, ALL)
    folder = exports(tmp_path, tone)
    folder.use_case("on", {"tone": 0.5}, Shape(run_time="alone"))
    if told:
        described = tmp_path / "described"
        described.mkdir()
        (described / "adapter_config.json").write_text(json.dumps(tone.config()))
        folder.descriptions["tone"] = str(described)
    rules = [finding.rule for finding in findings_of(folder, tmp_path)]
    assert rules == ([] if told else ["exported/scale-at-run-time"])


def test_an_input_alone_does_not_tell_whose_ranks_they_are(tmp_path: Path) -> None:
    """A scale of 1 that no constant holds is no reason to prefer the adapter of lora_alpha = r."""
    loud, soft = Lora("loud", 2, 2, ["net.fc2"]), Lora("soft", 2, 1, ["net.fc2"])
    folder = exports(tmp_path, loud, soft)
    shape = Shape(run_time="alone", skipped={"loud": ["net.fc2"]})
    folder.use_case("both", {"loud": 1.0, "soft": 1.0}, shape)
    for adapter in (loud, soft):
        described = tmp_path / f"described_{adapter.name}"
        described.mkdir()
        pattern = {**adapter.config(), "target_modules": r".*fc\d"}
        (described / "adapter_config.json").write_text(json.dumps(pattern))
        folder.descriptions[adapter.name] = str(described)
    with pytest.raises(AdapterError, match=r"module 'net\.fc2' can be whose they are in several"):
        build(folder.exported_config(), tmp_path / "out")


def test_a_module_that_a_description_names_and_the_adapter_skips(tmp_path: Path) -> None:
    tone, legal = Lora("tone", 2, 4, ("net.fc1",)), Lora("legal", 3, 9, ALL)
    folder = exports(tmp_path, tone, legal)
    folder.use_case("both", {"tone": 1.0, "legal": 0.6})
    folder.descriptions["tone"]["target_modules"] = ["net.fc1", "fc2"]
    with pytest.raises(Exception, match="names 'fc2', and no graph has a branch of it there"):
        build(folder.exported_config(), tmp_path / "refused")
    described = tmp_path / "described"
    described.mkdir()
    pattern = {**tone.config(), "target_modules": r".*fc\d"}
    (described / "adapter_config.json").write_text(json.dumps(pattern))
    folder.descriptions["tone"] = str(described)
    rules = {f.rule: f for f in findings_of(folder, tmp_path)}
    assert rules.keys() == {"exported/adapter-without-ranks", "adapter/untrained-target"}
    assert rules["exported/adapter-without-ranks"].message.endswith(": 'net.fc2'")


def encodings(path: Path, **grids: tuple[float, int]) -> Path:
    """AIMET 1.0.0, per tensor, 16 bits, asymmetric: scale and offset."""
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "enc_type": "PER_TENSOR",
            "dtype": "INT",
            "bw": 16,
            "is_sym": False,
            "scale": [scale],
            "offset": [offset],
        }
        for name, (scale, offset) in grids.items()
    ]
    document = {"version": "1.0.0", "activation_encodings": entries, "param_encodings": []}
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(("end", "fits"), [(1.0, False), (1.9, False), (2.0, True)])
def test_a_grid_of_the_input_has_to_reach_the_scale(end: float, fits: bool, tmp_path: Path) -> None:
    """lora_alpha / r is 2: an input that ends at 1 carries the strength alone."""
    folder = exports(tmp_path, Lora("tone", 2, 4, ALL))
    folder.use_case("on", {"tone": 1.0}, Shape(run_time="alone"))
    config = folder.exported_config()
    path = encodings(tmp_path / "on.encodings", lora_alpha=(end / 65535, 0))
    base = encodings(tmp_path / "base.encodings")
    config = config.model_copy(
        update={
            "use_cases": [
                config.use_cases[0].model_copy(update={"encodings": base}),
                config.use_cases[1].model_copy(update={"encodings": path}),
            ]
        }
    )
    if fits:
        rules = [f.rule for f in build(config, tmp_path / "out").findings]
        assert "exported/scale-at-run-time" in rules
        return
    with pytest.raises(AdapterError, match=r"is 2 at module 'net\.fc1'") as caught:
        build(config, tmp_path / "out")
    assert "lora_alpha / r seems to be in the weights" in caught.value.message
    assert caught.value.where.tensor == "lora_alpha"


NEAR = NearBranch("/net/fc3/lora_B/MatMul", "its A reads another tensor than the base's node")


def test_what_is_nearly_a_branch_is_told_with_its_reason(tmp_path: Path) -> None:
    folder = exports(tmp_path, Lora("tone", 2, 4, ALL))
    folder.use_case("on", {"tone": 1.0})
    use_case = folder.exported_config().use_cases[1]
    (finding,) = Remarks(use_case, [NEAR]).findings()
    assert (finding.rule, finding.severity.value) == ("exported/near-branch", "warning")
    assert finding.message.endswith("as one: its A reads another tensor than the base's node")
    hint = near_hint([NEAR, NEAR], "otherwise")
    assert hint is not None
    assert "its A reads another tensor than the base's node (and 1 more)" in hint
    assert near_hint([], "otherwise") == "otherwise"


@pytest.mark.parametrize(
    ("target", "modules", "problem"),
    [("fc3", ALL, True), ("fc1", ALL, False), ("fc3", (*ALL, "net.fc3"), False)],
)
def test_a_near_branch_where_an_adapter_should_be(
    target: str, modules: tuple[str, ...], problem: bool, tmp_path: Path
) -> None:
    from lora_quant.passes.adapter_sources import read_sources
    from lora_quant.passes.exported.descriptions import DeclaredDescribed

    folder = exports(tmp_path, Lora("tone", 2, 4, ALL))
    folder.use_case("on", {"tone": 1.0})
    folder.descriptions["tone"]["target_modules"] = [target]
    config = folder.exported_config()
    sources = read_sources(config.adapter[0], None)
    described = DeclaredDescribed("tone", sources.declared, tmp_path / "lora_config.yaml")
    found = near_problem(NEAR, config.use_cases[1], {"tone": described}, modules)
    assert (found is not None) is problem
    if found is not None:
        assert isinstance(found, GraphError)
        assert "what adapter 'tone' has at module 'net.fc3' looks like a branch" in found.message


def test_a_graph_that_is_not_the_base_tells_what_is_nearly_a_branch(tmp_path: Path) -> None:
    """B is not scaled by a number: a Mul by another tensor of the graph ends the branch."""
    import onnx

    folder = exports(tmp_path, Lora("tone", 2, 4, ALL))
    path = folder.use_case("on", {"tone": 1.0})
    model = onnx.load(path)
    scale = next(n for n in model.graph.node if n.name == "/net/fc2/lora_0/scale")
    scale.input[1] = scale.input[0]
    onnx.save(model, path)
    with pytest.raises(GraphError) as caught:
        build(folder.exported_config(), tmp_path / "out")
    assert caught.value.where.use_case == "on"
    assert "looks like a branch and was not taken as one" in str(caught.value.hint)
