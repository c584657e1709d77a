"""PEFT's own layers as torch exports them: the packs of the same PEFT folders.

`peft.onnx` scales behind B, `peft_two.onnx` chains two adapters, `scaled_between.onnx` scales
between A and B. Their nodes bear the names of the wrappers (`base_layer`, `lora_A`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_quant import build
from lora_quant.config.lora_config import LoraConfig
from tests.passes.exported.export_cases import files_of

BRANCHES = Path(__file__).parents[2] / "fixtures" / "exports" / "branches"
GRAPHS = {"peft": ["a"], "peft_two": ["a", "b"], "scaled_between": ["a", "b"]}


def config(source: Any, model: Any, *graphs: str) -> LoraConfig:
    return LoraConfig.model_validate(
        {
            "adapter": [{"name": name, "lora_config": source(name)} for name in ("a", "b")],
            "use-case": [
                {
                    "name": graph,
                    "adapter_names": GRAPHS.get(graph, []),
                    "adapter_alphas": [1.0] * len(GRAPHS.get(graph, [])),
                    "model_name": str(BRANCHES / f"{model(graph)}.onnx"),
                }
                for graph in ("plain", *graphs)
            ],
        }
    )


def described(name: str) -> dict[str, Any]:
    """The adapter JSON of a PEFT folder."""
    peft = json.loads((BRANCHES / f"adapter_{name}" / "adapter_config.json").read_text())
    return {
        "name": name,
        "rank": peft["r"],
        "alpha": peft["lora_alpha"],
        "target_modules": sorted(peft["target_modules"]),
    }


@pytest.mark.parametrize("graphs", [[name] for name in GRAPHS] + [list(GRAPHS)], ids="+".join)
def test_the_pack_is_that_of_the_peft_folders(graphs: list[str], tmp_path: Path) -> None:
    folders = config(lambda name: str(BRANCHES / f"adapter_{name}"), lambda _: "plain", *graphs)
    exported = config(described, lambda graph: graph, *graphs)
    one = build(folders, tmp_path / "folders").output
    other = build(exported, tmp_path / "exported").output
    assert files_of(other) == files_of(one)
