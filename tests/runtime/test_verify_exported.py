"""`verify` of packs whose adapters came out of the graphs of use cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import numpy_helper

from lora_quant.api import build
from lora_quant.cli.render_verification import show_verification
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.options import BuildOptions
from lora_quant.errors import InputMissingError, VerificationError
from lora_quant.passes.exported.records import ExportedUseCases
from lora_quant.runtime.verify import verify as module
from lora_quant.runtime.verify.exported_adapters import exported_use_cases
from lora_quant.runtime.verify.pack import Pack
from lora_quant.runtime.verify.verify import verify
from tests.builders import save
from tests.passes.exported_builds import FACTOR, Own, Q, graph
from tests.sample import copy_sample, make_float

USE_CASES = ("tone", "legal", "style", "both")


def build_sample(folder: Path, *targets: str) -> Path:
    """A pack of a copy of the sample, its use cases as graphs of their own."""
    config = copy_sample(folder).with_name("lora_config_exported.yaml")
    return build(config, folder / "out", BuildOptions(targets=targets or ("qairt",))).output


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sample(tmp_path_factory.mktemp("exported"), "onnxruntime", "qairt")


@pytest.fixture
def pack(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept.parent, tmp_path / "copy")
    return tmp_path / "copy" / "out"


def small(
    folder: Path,
    use_cases: Mapping[str, tuple[Own, Mapping[str, float]]],
    ranks: Mapping[str, int],
    *targets: str,
) -> Path:
    """A pack of one module whose use cases have graphs of their own, built from a file."""
    folder.mkdir(parents=True, exist_ok=True)
    save(graph(None, ranks, {}), folder / "base.onnx")
    items: list[dict[str, Any]] = [
        {"name": "base", "adapter_names": [], "adapter_alphas": [], "model_name": "base.onnx"}
    ]
    for name, (own, mix) in use_cases.items():
        save(graph(own, ranks, mix), folder / f"{name}.onnx")
        item = {"adapter_names": list(mix), "adapter_alphas": list(mix.values())}
        items.append({"name": name, **item, "model_name": f"{name}.onnx"})
    adapters = [
        {
            "name": n,
            "lora_config": {"name": n, "rank": r, "alpha": FACTOR * r, "target_modules": [Q]},
        }
        for n, r in ranks.items()
    ]
    config = folder / "lora_config.yaml"
    config.write_text(yaml.safe_dump({"adapter": adapters, "use-case": items}), encoding="utf-8")
    return build(config, folder / "out", BuildOptions(targets=targets or ("qairt",))).output


def test_the_graphs_of_the_sample_are_what_the_pack_gives(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = verify(kept)
    assert result.ok
    assert [one.target for one in result.targets] == ["onnxruntime", "qairt"]
    assert result.own_graphs is not None
    assert [one.use_case for one in result.own_graphs.errors] == list(USE_CASES)
    for error in result.own_graphs.errors:
        # Products of 96 terms in float32, two layers: the pack's own graph is as far.
        assert error.error < 1e-5 < error.effect
    show_verification(result, as_json=False)
    told = capsys.readouterr().out
    assert "own graphs" in told
    assert "merged into" not in told
    show_verification(result, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["details"]["own_graphs"]["ok"] is True


def test_a_pack_of_checkpoints_has_no_own_graphs(tmp_path: Path) -> None:
    config = copy_sample(tmp_path)
    result = verify(build(config, tmp_path / "out", BuildOptions()).output)
    assert result.ok
    assert result.own_graphs is None


def test_what_was_read_of_another_graph_is_found(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def confused(pack: Pack, base: Path) -> ExportedUseCases:
        found = exported_use_cases(pack, base)
        other = replace(found.use_cases["tone"], model=found.use_cases["legal"].model)
        return replace(found, use_cases={**found.use_cases, "tone": other})

    monkeypatch.setattr(module, "exported_use_cases", confused)
    result = verify(kept)
    assert not result.ok
    assert all(one.ok for one in result.targets)
    assert result.own_graphs is not None
    assert {one.use_case for one in result.own_graphs.errors if not one.ok} == {"tone"}
    show_verification(result, as_json=False)
    assert "verification failed for own graphs" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["use_case_graphs/both.onnx", "adapter_params/tone.json"])
def test_a_source_that_was_changed(name: str, pack: Path) -> None:
    path = pack.parent / "sample" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(VerificationError, match="is not the one that the pack was built") as caught:
        verify(pack)
    assert caught.value.where.file == path


def test_a_graph_that_is_gone(pack: Path) -> None:
    path = pack.parent / "sample" / "use_case_graphs" / "legal.onnx"
    path.unlink()
    with pytest.raises(InputMissingError, match="the graph of use case 'legal'") as caught:
        verify(pack)
    assert caught.value.where.file == path


def test_sources_and_base_that_were_moved(pack: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.move(pack.parent / "sample", moved)
    assert verify(pack, sources=moved).ok
    shutil.move(moved / "model", tmp_path / "model")
    result = verify(pack, sources=moved, base=tmp_path / "model" / "model.onnx")
    assert result.ok
    assert result.own_graphs is not None
    assert len(result.own_graphs.errors) == len(USE_CASES)


def test_a_merged_use_case_is_held_against_its_own_graph(tmp_path: Path) -> None:
    config = make_float(copy_sample(tmp_path).with_name("lora_config_exported.yaml"))
    options = BuildOptions(targets=("qairt",), merge="both")
    result = verify(build(config, tmp_path / "out", options).output)
    assert result.ok
    assert result.own_graphs is not None
    assert [one.use_case for one in result.own_graphs.errors] == ["both"]


@pytest.mark.parametrize(
    "own",
    [
        Own(),
        Own(padding=3),
        Own(place="behind"),
        Own(strengths="matrix"),
        Own(strengths="matrix", padding=2),
        Own([["a", "b"]], strengths="matrix"),
        Own([["a", "b"]]),
    ],
)
def test_inputs_for_strengths_are_fed(own: Own, tmp_path: Path) -> None:
    use_cases = {"one": (Own(), {"a": 1.0}), "two": (own, {"a": 0.5, "b": -1.5})}
    result = verify(small(tmp_path, use_cases, {"a": 2, "b": 3}))
    assert result.ok
    assert result.own_graphs is not None
    assert [one.use_case for one in result.own_graphs.errors] == ["one", "two"]
    assert all(one.effect > 0.1 for one in result.own_graphs.errors)


def test_an_input_that_alone_tells_the_strength_is_fed(tmp_path: Path) -> None:
    """One value for all ranks: lora_alpha / r times the strength."""
    use_cases = {"one": (Own(strengths="input"), {"a": 0.25})}
    result = verify(small(tmp_path, use_cases, {"a": 4}))
    assert result.ok
    assert result.own_graphs is not None
    assert [one.use_case for one in result.own_graphs.errors] == ["one"]


def test_one_input_for_adapters_of_other_strengths_cannot_be_fed(tmp_path: Path) -> None:
    """Both branches are scaled by the same `[2]`, rank by rank: 2 * 0.5 and 2 * -1.5."""
    use_cases = {
        "one": (Own(), {"a": 1.0}),
        "two": (Own(), {"b": 1.0}),
        "mix": (Own(strengths="input"), {"a": 0.5, "b": -1.5}),
    }
    result = verify(small(tmp_path, use_cases, {"a": 2, "b": 2}))
    assert not result.ok
    assert all(one.ok for one in result.targets)
    assert result.own_graphs is not None
    (one,) = result.own_graphs.unverified
    assert one.use_case == "mix"
    assert "no values of the input 'strengths' make the graph as it is configured" in one.reason


def test_a_graph_that_cannot_be_run_is_not_verified(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A use case whose graph has an input that nothing tells."""

    def strange(pack: Pack, base: Path) -> ExportedUseCases:
        found = exported_use_cases(pack, base)
        model = onnx.load(str(found.use_cases["tone"].model))
        model.graph.input.add(name="more").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        model.graph.node.append(onnx.helper.make_node("Relu", ["more"], ["less"]))
        model.graph.output.append(
            onnx.helper.make_tensor_value_info("less", onnx.TensorProto.FLOAT, None)
        )
        other = replace(found.use_cases["tone"], model=save(model, tmp_path / "strange.onnx"))
        return replace(found, use_cases={**found.use_cases, "tone": other})

    monkeypatch.setattr(module, "exported_use_cases", strange)
    result = verify(kept)
    assert not result.ok
    assert result.own_graphs is not None
    (one,) = result.own_graphs.unverified
    assert one.use_case == "tone"
    assert "more" in one.reason


def test_a_pack_of_an_object_does_not_tell_whose_the_ranks_are(tmp_path: Path) -> None:
    config = read_lora_config(copy_sample(tmp_path).with_name("lora_config_exported.yaml"))
    pack = build(config, tmp_path / "out", BuildOptions(targets=("qairt",))).output
    with pytest.raises(VerificationError, match="only the graphs of use cases hold") as caught:
        verify(pack)
    assert caught.value.where.adapter == "tone"


def test_a_pack_of_an_object_with_checkpoints_is_verified_without_the_graphs(
    tmp_path: Path,
) -> None:
    path = copy_sample(tmp_path)
    config = read_lora_config(path)
    own = {
        u.name: u.model
        for u in read_lora_config(path.with_name("lora_config_exported.yaml")).use_cases
    }
    use_cases = [u.model_copy(update={"model": own[u.name]}) for u in config.use_cases]
    config = config.model_copy(update={"use_cases": use_cases})
    pack = build(config, tmp_path / "out", BuildOptions(targets=("qairt",))).output
    result = verify(pack)
    assert result.ok
    assert result.own_graphs is None
    assert any("were not run" in note for note in result.notes)


def test_checkpoints_beside_graphs_are_verified_with_both(tmp_path: Path) -> None:
    path = copy_sample(tmp_path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for use_case in document["use-case"]:
        if use_case["adapter_names"]:
            use_case["model_name"] = f"use_case_graphs/{use_case['name']}.onnx"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    result = verify(build(path, tmp_path / "out", BuildOptions(targets=("qairt",))).output)
    assert result.ok
    assert result.own_graphs is not None
    assert [one.use_case for one in result.own_graphs.errors] == list(USE_CASES)


def test_factors_that_changed_in_a_graph_are_refused_by_its_hash(pack: Path) -> None:
    path = pack.parent / "sample" / "use_case_graphs" / "tone.onnx"
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if "lora_A" in t.name)
    values = numpy_helper.to_array(tensor) * 1.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    save(model, path)
    with pytest.raises(VerificationError, match="graph of use case 'tone' is not the one"):
        verify(pack)
