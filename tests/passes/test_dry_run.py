"""What a build would say, without writing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_quant.config.lora_config import LoraConfig, read_lora_config
from lora_quant.errors import AttachPointError, EncodingsError, GraphError
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.dry_run import dry_run
from tests.final_graphs import lora_config as final_config
from tests.final_graphs import use_case
from tests.sample import CONFIG, CONFIG_ALL, SAMPLE, edit_json, edit_yaml, tree

FINAL = "--no-create-lora-graph"


def read(path: Path) -> LoraConfig:
    return read_lora_config(path)


def test_a_build_with_default_options_needs_none_and_leaves_no_file() -> None:
    before = tree(SAMPLE)
    found = dry_run(read(CONFIG))
    assert (found.options, found.reason, found.findings) == ("", None, ())
    assert tree(SAMPLE) == before


def test_an_open_base_is_used_as_it_is() -> None:
    base = open_base(SAMPLE / "model" / "model.onnx")
    before = len(base.model.proto.graph.node)
    dry_run(read(CONFIG), base=base)
    assert len(base.model.proto.graph.node) > before


def test_the_least_loose_options_that_encodings_need_are_told_with_the_reason() -> None:
    found = dry_run(read(CONFIG_ALL))
    assert found.options == "--mode all"
    assert isinstance(found.reason, EncodingsError)


def test_a_base_that_holds_branches_may_be_final(tmp_path: Path) -> None:
    found = dry_run(read(final_config(tmp_path / "float", encodings=None)))
    assert found.options == FINAL
    assert isinstance(found.reason, GraphError)
    assert dry_run(read(final_config(tmp_path / "encoded"))).options == f"{FINAL} --mode all"


def test_a_final_graph_that_lacks_what_it_needs_is_told_as_a_base_with_branches(
    tmp_path: Path,
) -> None:
    # Both use cases without weights of their own name the graph of the base.
    cases = [use_case("base", [], "base_lora_zero"), use_case("a", ["a"], "base_lora_zero")]
    config = final_config(tmp_path, {"use-case": cases}, encodings=None)
    with pytest.raises(GraphError, match="the base graph holds branches already"):
        dry_run(read(config))


def test_what_no_option_mends_is_raised(sample: Path) -> None:
    edit_json(
        sample.parent / "attach_points.json",
        lambda d: d.update({"model.layers.0.self_attn.q_proj": []}),
    )
    with pytest.raises(AttachPointError, match="q_proj"):
        dry_run(read(sample))


def test_encodings_that_no_option_mends_are_raised_as_first_met(sample: Path) -> None:
    shutil.copy(SAMPLE / "attach_points.json", sample.parent / "encodings" / "tone.encodings")
    edit_yaml(sample, lambda d: d["use-case"].__delitem__(slice(2, None)))
    with pytest.raises(EncodingsError):
        dry_run(read(sample))
