"""The pass: what it refuses is not published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from onnx import helper

from lora_quant import plugins
from lora_quant.api import build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions
from lora_quant.errors import GraphError, PackDefectError, PackError, PluginError
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.contract import Condition, Pass, PassResult
from lora_quant.passes.runner import PIPELINE, default_passes
from lora_quant.targets.files.pack_folder import PackFolder
from lora_quant.validation.pack.check import check_pack
from lora_quant.validation.validate_packs import ValidatePacks
from tests.adapters.builders import pair, write
from tests.builders import attention, save

Q0 = "model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Damage:
    """Stands for a target that writes something wrong."""

    change: Callable[[Path], object]
    name: ClassVar[str] = "damage"
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def run(self, compilation: Compilation) -> PassResult:
        folder: PackFolder = compilation.having("staging")
        self.change(folder.root)
        return PassResult(compilation, changed=True)


@dataclass(frozen=True)
class Watched:
    """The pass under test, and what it said."""

    results: list[bool]
    name: ClassVar[str] = "watched"
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def run(self, compilation: Compilation) -> PassResult:
        result = ValidatePacks().run(compilation)
        self.results.append(result.changed)
        return result


def before_validation(*steps: Pass) -> list[Pass]:
    return [*default_passes(PIPELINE[:-1]), *steps]


def test_it_comes_last_and_through_the_door() -> None:
    assert PIPELINE[-1] == ValidatePacks.name
    assert plugins.load(plugins.PASSES, ValidatePacks.name) is ValidatePacks
    assert isinstance(ValidatePacks(), Pass)


def test_a_good_pack_is_not_changed(small_config: LoraConfig, tmp_path: Path) -> None:
    results: list[bool] = []
    build(small_config, tmp_path / "out", passes=before_validation(Watched(results)))
    assert results == [False]


def test_a_bad_pack_is_not_published(small_config: LoraConfig, tmp_path: Path) -> None:
    def change(root: Path) -> None:
        (root / "qairt" / "stray.txt").write_text("")
        (root / "qairt" / "lora_tensor_names.txt").write_text("")

    output = tmp_path / "out"
    with pytest.raises(PackDefectError) as caught:
        build(small_config, output, passes=before_validation(Damage(change), ValidatePacks()))
    assert caught.value.code == "LQ510"
    assert list(tmp_path.iterdir()) == []
    assert "fails its own checks, and was not published" in caught.value.message
    assert "[pack/size]" in caught.value.message
    assert "[pack/stray-file]" in caught.value.message
    assert "[pack/tensor-names]" in caught.value.message
    assert "qairt/lora_tensor_names.txt" in caught.value.message
    assert str(tmp_path) not in str(caught.value), "nothing there outlives the error"


def test_a_broken_base_graph_is_named(tmp_path: Path) -> None:
    """A node far from the branches has an attribute that its operator does not."""
    model = attention().model()
    spare = helper.make_node("Identity", ["x"], ["spare"], name="spare", no_such_attribute=1)
    model.graph.node.append(spare)
    save(model, tmp_path / "model.onnx")
    write(tmp_path / "tone", pair(Q0, features=(8, 8)), target_modules=["q_proj"])
    config = tmp_path / "lora_config.yaml"
    config.write_text(
        "adapter: [{name: tone, lora_config: tone}]\n"
        "use-case:\n"
        "- {name: tone, adapter_names: [tone], adapter_alphas: [1.0], model_name: model.onnx}\n",
        encoding="utf-8",
    )
    with pytest.raises(GraphError) as caught:
        build(config, tmp_path / "out")
    assert caught.value.message.startswith(
        "in the base graph itself, the graph does not pass onnx.checker: "
    )
    assert "no_such_attribute" in caught.value.message
    assert caught.value.where.file == tmp_path / "model.onnx"
    assert caught.value.hint == "export it again, and run onnx.checker on the result"
    assert not (tmp_path / "out").exists()


def test_many_problems_are_counted(small_config: LoraConfig, tmp_path: Path) -> None:
    def change(root: Path) -> None:
        for number in range(9):
            (root / f"stray{number}").write_text("")

    with pytest.raises(PackError, match="and 4 more"):
        build(
            small_config,
            tmp_path / "out",
            passes=before_validation(Damage(change), ValidatePacks()),
        )


def test_it_wants_a_written_pack(small_config: LoraConfig, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="packs are written"):
        build(small_config, tmp_path / "out", passes=[ValidatePacks()])


def test_pack_beside_the_base(movable_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "packs" / "out"
    build(movable_config, output, BuildOptions(beside_base=True))
    assert check_pack(output) == ()
    graph = next(p for p in (tmp_path / "model").iterdir() if p.name.endswith(".out.onnx"))
    graph.write_bytes(graph.read_bytes() + b"\n")
    (first, *_) = check_pack(output)
    assert first.rule == "pack/size"
    assert first.where.file == graph


def test_float_pack_has_no_encodings_to_check(small_config: LoraConfig, tmp_path: Path) -> None:
    use_cases = [u.model_copy(update={"encodings": None}) for u in small_config.use_cases]
    output = tmp_path / "out"
    build(small_config.model_copy(update={"use_cases": use_cases}), output)
    assert not (output / "qairt" / "base_encodings.json").exists()
    assert check_pack(output) == ()
