"""Graphs of use cases that contradict their descriptions, the base, or each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_quant import BuildOptions, build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.errors import (
    AdapterError,
    AttachPointError,
    ConfigError,
    GraphError,
    LoraQuantError,
    UnsupportedAdapterError,
)
from tests.passes.exported.export_cases import Exports, Lora, Net, Shape

KINDS = {"net.fc1": "matmul", "net.fc2": "gemm"}
ALL = tuple(KINDS)


def refused(
    config: LoraConfig, tmp_path: Path, kind: type[LoraQuantError], *texts: str
) -> LoraQuantError:
    """The refusal of a build; every text is in it, message, place or hint."""
    with pytest.raises(kind) as caught:
        build(config, tmp_path / "out")
    for text in texts:
        assert text in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()
    return caught.value


def exports(tmp_path: Path, *adapters: Lora) -> Exports:
    return Exports(tmp_path, Net(KINDS), adapters)


TONE = Lora("tone", 2, 4, ALL)


def test_a_constant_without_the_strength(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("soft", {"tone": 0.5}, Shape(factor=2.0))
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "by 2, which is lora_alpha / r of adapter 'tone' without its strength 0.5",
        "module 'net.fc1'",
        "use case 'soft'",
        "set its strength in adapter_alphas to 1",
    )


@pytest.mark.parametrize("style", ["between", "behind"])
def test_a_scale_in_the_weights(style: str, tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0}, Shape(style, folded=True))
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "by 1, and lora_alpha / r times the strength of adapter 'tone' is 2 * 1 = 2",
        "the scale seems to be in the weights",
        "add_weighted_adapter",
    )


def test_a_scale_of_one_without_a_mul_is_exact(tmp_path: Path) -> None:
    """Alpha is the rank and the strength is 1: nothing could be folded."""
    folder = exports(tmp_path, Lora("tone", 2, 2, ALL))
    folder.use_case("on", {"tone": 1.0}, Shape(folded=True))
    assert build(folder.exported_config(), tmp_path / "out").findings == ()


def test_another_alpha(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("soft", {"tone": 0.5})
    folder.descriptions["tone"]["alpha"] = 5
    error = refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "by 1, and",  # 4 / 2 * 0.5: it could be in the weights as well
        "2.5 * 0.5 = 1.25",
        "correct alpha",
    )
    assert error.where.adapter == "tone"


def test_another_strength(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("soft", {"tone": 0.7})
    folder.use_cases["soft"]["tone"] = 0.8
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "ranks 0 to 1 of module 'net.fc1' by 1.4, expected 1.6",
        "lora_alpha / r = 2, strength 0.8",
        "adapter_alphas",
    )


def test_a_strength_that_another_use_case_contradicts(tmp_path: Path) -> None:
    """Half of 8 / sqrt(4) is 8 / 4: the slip in the first use case shows in the second."""
    folder = exports(tmp_path, Lora("tone", 4, 8, ALL))
    folder.use_case("first", {"tone": 1.0})
    folder.use_case("second", {"tone": 1.0})
    folder.use_cases["first"]["tone"] = 0.5
    error = refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "by 2, expected 4 for adapter 'tone': lora_alpha / sqrt(r) = 4, strength 1 (that it is "
        "lora_alpha / sqrt(r), its description says or what was read before)",
        "adapter_alphas of the use case or of one before it",
    )
    assert error.where.use_case == "second"


def test_another_rank(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    folder.descriptions["tone"]["rank"] = 3
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "the ranks of module 'net.fc1' do not add up",
        "expected 'tone' rank 3, scale 1.33333 or 2.3094; the graph has rank 2, scale 2 (2 ranks)",
    )


def test_a_module_that_nobody_targets(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    folder.descriptions["tone"]["target_modules"] = ["fc1"]
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "the graph has a branch at module 'net.fc2', which no adapter of the use case targets",
    )


def test_a_target_without_a_branch(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    folder.descriptions["tone"]["target_modules"] = ["fc1", "fc2", "fc3"]
    refused(
        folder.exported_config(),
        tmp_path,
        ConfigError,
        "names 'fc3', and no graph has a branch of it there",
        "did you mean 'fc2' or 'fc1'?",
    )


def test_descriptions_that_tell_of_one_module(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    one = folder.descriptions["tone"]
    folder.descriptions["tone"] = [one, {**one, "rank": 3, "target_modules": ["net.fc2"]}]
    refused(
        folder.exported_config(),
        tmp_path,
        ConfigError,
        "two descriptions of adapter 'tone' tell of one module: rank 2, alpha 4 and rank 3",
        "module 'net.fc2'",
    )


def test_an_adapter_that_differs_between_use_cases(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    folder.use_case("soft", {"tone": 0.5}, Shape(seed="of another day"))
    error = refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "lora_A of adapter 'tone' at module 'net.fc1' differs between the graph of use case "
        "'soft' and use case 'on': by up to ",
        "name them as two adapters",
    )
    folder_net, said = folder.net, float(str(error).split("by up to ")[1].split()[0])
    one, _ = folder_net.factors("tone", "net.fc1", 2)
    other, _ = folder_net.factors("toneof another day", "net.fc1", 2)
    assert said == pytest.approx(float(np.abs(one - other).max()), rel=5e-3)  # three digits


def test_a_module_that_is_missing_in_one_use_case(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    folder.use_case("soft", {"tone": 0.5}, Shape(skipped={"tone": ["net.fc2"]}))
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "adapter 'tone' has module 'net.fc2' in use case 'on', and not in the graph of use case "
        "'soft'",
    )


def test_a_module_that_is_new_in_one_use_case(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0}, Shape(skipped={"tone": ["net.fc2"]}))
    folder.use_case("soft", {"tone": 0.5})
    refused(folder.exported_config(), tmp_path, AdapterError, "module 'net.fc2'", "'soft'")


def test_weights_that_are_not_those_of_the_graph(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    source = folder.checkpoint("tone")
    path = source / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.net.fc2.lora_B.weight"][1, 1] += 0.25
    save_file(tensors, path)
    folder.descriptions["tone"] = str(source)
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "lora_B of adapter 'tone' at module 'net.fc2' differs between the graph of use case 'on' "
        "and its checkpoint",
        "by up to 0.25",
    )


def test_a_checkpoint_with_more_modules_than_the_graph(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0}, Shape(skipped={"tone": ["net.fc2"]}))
    folder.descriptions["tone"] = str(folder.checkpoint("tone"))
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "adapter 'tone' adapts 'net.fc2', and the graph of use case 'on' has no branch there",
    )


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"peft_type": "IA3"}, ["of kind IA3 and has no weights, expected LORA"]),
        ({"use_dora": True}, ["sets use_dora and has no weights"]),
        ({"alora_invocation_tokens": [1]}, ["sets alora_invocation_tokens and has no weights"]),
    ],
)
def test_a_configuration_that_a_branch_cannot_hold(
    change: dict[str, Any], texts: Sequence[str], tmp_path: Path
) -> None:
    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    described = tmp_path / "described"
    described.mkdir()
    text = json.dumps({**TONE.config(), **change})
    (described / "adapter_config.json").write_text(text)
    folder.descriptions["tone"] = str(described)
    refused(folder.exported_config(), tmp_path, UnsupportedAdapterError, *texts)


def test_a_base_that_holds_branches(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    path = folder.use_case("on", {"tone": 1.0})
    other = folder.use_case("soft", {"tone": 0.5})
    (tmp_path / "base.onnx").write_bytes(path.read_bytes())
    config = folder.exported_config()
    refused(
        config,
        tmp_path,
        GraphError,
        "the base graph holds branches already, at 2 nodes",
        "--no-create-lora-graph",
    )
    other.write_bytes(path.read_bytes())
    one_graph = config.model_copy(
        update={"use_cases": [u.model_copy(update={"model": path}) for u in config.use_cases]}
    )
    refused(one_graph, tmp_path, GraphError, "the base graph holds branches already")


def test_branches_of_the_base_that_adapters_come_on_top_of(tmp_path: Path) -> None:
    """With weights of their own, adapters can be added to a model that has low rank parts."""
    folder = exports(tmp_path, TONE)
    path = folder.use_case("on", {"tone": 1.0})
    (tmp_path / "base.onnx").write_bytes(path.read_bytes())
    result = build(folder.peft_config(), tmp_path / "out")
    assert [f.rule for f in result.findings] == ["exported/base-with-branches"]
    assert "those of the adapters are added to them" in result.findings[0].message


def test_a_graph_without_branches(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE)
    path = folder.use_case("on", {"tone": 1.0})
    path.write_bytes((tmp_path / "base.onnx").read_bytes())
    refused(
        folder.exported_config(),
        tmp_path,
        GraphError,
        "the graph of use case 'on' has no branches",
        "not merged into it",
    )


def test_a_module_without_a_name(tmp_path: Path) -> None:
    folder = Exports(tmp_path, Net(KINDS, opaque=True), [TONE])
    folder.use_case("on", {"tone": 1.0})
    for path in (tmp_path / "base.onnx", tmp_path / "on.onnx"):
        unname(path)
    refused(
        folder.exported_config(),
        tmp_path,
        AttachPointError,
        "no name of it tells its module",
        "attach_point_onnx_mapping",
        "--map-from",
    )


def unname(path: Path) -> None:
    """Take the names of all nodes away."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("name")
    onnx.save(model, path)


def test_a_base_that_scales_its_own_product(tmp_path: Path) -> None:
    """A Gemm with alpha 2: its branch is not doubled, what a build adds to it would be."""
    import onnx

    folder = exports(tmp_path, TONE)
    paths = [tmp_path / "base.onnx", folder.use_case("on", {"tone": 1.0})]
    for path in paths:
        model = onnx.load(path)
        (gemm,) = (node for node in model.graph.node if "net.fc2.weight" in node.input)
        gemm.attribute.append(onnx.helper.make_attribute("alpha", 2.0))
        onnx.save(model, path)
    refused(
        folder.exported_config(),
        tmp_path,
        GraphError,
        "module 'net.fc2' is a Gemm with alpha 2, expected 1",
        "multiplied into the base's weight",
    )


def test_a_branch_that_no_output_needs(tmp_path: Path) -> None:
    """It is in no comparison: nothing would tell that its base is the base's."""
    import onnx

    folder = exports(tmp_path, TONE)
    for path in (tmp_path / "base.onnx", folder.use_case("on", {"tone": 1.0})):
        model = onnx.load(path)
        (unused,) = (value for value in model.graph.output if value.name == "y_net.fc2")
        model.graph.output.remove(unused)
        onnx.save(model, path)
    refused(
        folder.exported_config(),
        tmp_path,
        GraphError,
        "no output of the graph needs what it gives",
        "without unused nodes",
    )


def test_several_ways_that_fit(tmp_path: Path) -> None:
    """Equal ranks and scales at a module that one of the three skips: nothing tells which."""
    same = [Lora(name, 2, 4, ALL) for name in ("tone", "legal", "style")]
    folder = exports(tmp_path, *same)
    shape = Shape(skipped={"style": ["net.fc2"]})
    folder.use_case("all", dict.fromkeys(("tone", "legal", "style"), 1.0), shape)
    refused(
        folder.exported_config(),
        tmp_path,
        AdapterError,
        "the ranks of module 'net.fc2' can be whose they are in several ways",
        "'tone' 0-1, 'legal' 2-3; or 'tone' 0-1, 'style' 2-3",
        "add a use case with one of the adapters alone",
    )


def test_an_adapter_without_weights_and_without_a_graph(tmp_path: Path) -> None:
    folder = exports(tmp_path, TONE, Lora("legal", 2, 4, ALL))
    folder.use_case("on", {"tone": 1.0})
    config = folder.exported_config()
    lone = config.use_cases[0].model_copy(
        update={"name": "lone", "adapter_names": ["legal"], "adapter_alphas": [1.0]}
    )
    config = config.model_copy(update={"use_cases": [*config.use_cases, lone]})
    refused(
        config,
        tmp_path,
        ConfigError,
        "adapter 'legal' has a description and no weights",
        "name a graph that holds its branches",
    )


def test_a_final_graph_is_left_alone(tmp_path: Path) -> None:
    """The pass does nothing without create_lora_graph."""
    from lora_quant.graph.base.base_graph import open_base
    from lora_quant.passes.compilation import Compilation
    from lora_quant.passes.read_exported import ReadExported

    folder = exports(tmp_path, TONE)
    folder.use_case("on", {"tone": 1.0})
    state = Compilation(
        config=folder.exported_config(),
        options=BuildOptions(create_lora_graph=False),
        base=open_base(tmp_path / "base.onnx"),
    )
    assert not ReadExported().run(state).changed
