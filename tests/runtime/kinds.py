"""Packs of the adapters among the fixtures, each kind over the base that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.runtime.verify.verification import Verification
from tests.validation.packs import rehash

KINDS = Path(__file__).parents[1] / "fixtures" / "kinds"
CASES: dict[str, dict[str, Any]] = json.loads((KINDS / "cases.json").read_text("utf-8"))
Tensors = dict[str, NDArray[Any]]


def pack_of(
    folder: Path,
    cases: Sequence[str],
    options: BuildOptions | None = None,
    *,
    strengths: Sequence[float] | None = None,
    graph: Path | None = None,
) -> Path:
    """A pack with the use cases `base` and `it`, which has the adapters `cases` in this order."""
    path = str(graph or KINDS / "bases" / CASES[cases[0]]["base"] / "model.onnx")
    adapters: list[dict[str, Any]] = []
    for case in cases:
        adapter: dict[str, Any] = {"name": case, "lora_config": str(KINDS / case)}
        if "task_id" in CASES[case]:
            adapter["task_id"] = CASES[case]["task_id"]
        adapters.append(adapter)
    alphas = list(strengths or [1.0] * len(cases))
    document: dict[str, Any] = {
        "adapter": adapters,
        "use-case": [
            {"name": "base", "adapter_names": [], "adapter_alphas": [], "model_name": path},
            {
                "name": "it",
                "adapter_names": list(cases),
                "adapter_alphas": alphas,
                "model_name": path,
            },
        ],
    }
    config = folder / "lora_config.yaml"
    config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return build(config, folder / "pack", options).output


def edit_weights(pack: Path, edit: Callable[[Tensors], object], use_case: str = "it") -> None:
    """Change the weights of a use case, and the manifest to match."""
    edit_tensors(pack / "qairt" / use_case / "lora_weights.safetensors", edit)
    rehash(pack)


def edit_tensors(path: Path, edit: Callable[[Tensors], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = {name: values.copy() for name, values in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def failed(result: Verification) -> set[str]:
    """Use cases with an output that is too far from the reference."""
    return {e.use_case for e in result.errors if not e.ok}


def effect(result: Verification) -> float:
    """The largest effect of the adapters on an output."""
    return max(e.effect for e in result.errors)
