"""The N+1 graphs that AIMET wrote for one small network, as input of builds for a final graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import yaml
from numpy.typing import NDArray
from onnx import numpy_helper

from lora_quant.api import BuildResult, build
from lora_quant.config.options import BuildOptions
from tests.sample import ROOT

NETWORK = ROOT / "tests" / "fixtures" / "aimet" / "network"
GRAPHS = {"base": "base_lora_zero", "a": "lora_adapter_a", "b": "lora_adapter_b"}
WEIGHTS = ["q.lora_A.weight", "q.lora_B.weight", "v.lora_A.weight", "v.lora_B.weight"]
RANK = 8


def lora_config(
    folder: Path, edits: dict[str, Any] | None = None, *, encodings: str | None = "v1.0.0"
) -> Path:
    """A configuration of the network's N+1 graphs, beside copies of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in NETWORK.iterdir():
        shutil.copy(file, folder)
    use_cases: list[dict[str, Any]] = []
    for name, graph in GRAPHS.items():
        used = [] if name == "base" else [name]
        case = {"name": name, "adapter_names": used, "adapter_alphas": [1.0] * len(used)}
        case["model_name"] = f"{graph}.fp32.onnx"
        if encodings is not None:
            case["quant_overrides"] = f"{graph}.{encodings}.encodings"
        use_cases.append(case)
    document = {"adapter": [adapter("a"), adapter("b")], "use-case": use_cases, **(edits or {})}
    path = folder / "lora_config.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def adapter(name: str, rank: int = RANK) -> dict[str, Any]:
    params = {"name": name, "rank": rank, "alpha": rank, "target_modules": ["q", "v"]}
    return {"name": name, "lora_config": [params]}


def use_case(name: str, adapters: list[str], graph: str) -> dict[str, Any]:
    alphas = [1.0] * len(adapters)
    return {
        "name": name,
        "adapter_names": adapters,
        "adapter_alphas": alphas,
        "model_name": f"{graph}.fp32.onnx",
    }


def final(config: Path, output: Path, **options: Any) -> BuildResult:
    return build(config, output, BuildOptions(create_lora_graph=False, **options))


def rules(result: BuildResult) -> list[str]:
    return [finding.rule for finding in result.findings]


def initializers(path: Path) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
