"""The tiny Llama sample: where it is, what it means, and changed copies of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.config.manifest_seal import seal_manifest

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "samples" / "tiny_llama"
CONFIG = SAMPLE / "lora_config.yaml"
CONFIG_ALL = SAMPLE / "lora_config_all.yaml"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
MODULES = tuple(
    f"model.layers.{layer}.{block}.{leaf}"
    for layer in (0, 1)
    for block, leaves in (("self_attn", ATTENTION), ("mlp", MLP))
    for leaf in leaves
)
TONE = tuple(m for m in MODULES if m.endswith(("q_proj", "v_proj")))
STYLE = tuple(m for m in MODULES if m.endswith(("o_proj", "down_proj")))
MAX_RANK = 12
# One strength per slot; what a use case does not use is 0.
ALPHAS = {
    "base": [0.0, 0.0],
    "tone": [1.0, 0.0],
    "legal": [1.0, 0.0],
    "style": [1.0, 0.0],
    "both": [1.0, 0.6],
}
# lora_alpha / rank, for legal (rsLoRA) lora_alpha / sqrt(rank). Of style's four modules three have
# 2 (12 / 6 and 6 / 3), one has 6 / 6 = 1, half of the adapter's: FOLDED.
SCALES = {"tone": 8 / 4, "legal": 16 / 8**0.5, "style": 2.0}
FOLDED = "model.layers.1.mlp.down_proj"

Document = dict[str, Any]


def copy_sample(folder: Path) -> Path:
    """A copy of the sample that may be changed; returns the path of its lora_config.yaml."""
    target = folder / "sample"
    shutil.copytree(SAMPLE, target, ignore=shutil.ignore_patterns("*.py", "reference"))
    return target / "lora_config.yaml"


def edit_yaml(path: Path, edit: Callable[[Document], object]) -> Path:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def edit_json(path: Path, edit: Callable[[Document], object]) -> Path:
    """Change a JSON file; a manifest is sealed again."""
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    text = json.dumps(document)
    path.write_text(seal_manifest(text) if path.name == MANIFEST_FILE else text, encoding="utf-8")
    return path


def keep_use_cases(config: Path, names: Iterable[str]) -> Path:
    """Only these use cases, in this order, and the adapters that they name."""

    def keep(document: Document) -> None:
        found = {u["name"]: u for u in document["use-case"]}
        document["use-case"] = [found[name] for name in names]
        used = {a for u in document["use-case"] for a in u["adapter_names"]}
        document["adapter"] = [a for a in document["adapter"] if a["name"] in used]

    return edit_yaml(config, keep)


def make_float(config: Path) -> Path:
    """Without encodings and lists of updatable tensors."""

    def strip(document: Document) -> None:
        for use_case in document["use-case"]:
            use_case.pop("quant_overrides", None)
            use_case.pop("quant_updatable_tensors", None)

    return edit_yaml(config, strip)


def entries(path: Path) -> dict[str, Document]:
    """The entries of a 1.0.0 encodings file by tensor, params and activations together."""
    document = json.loads(path.read_text(encoding="utf-8"))
    sections = ("activation_encodings", "param_encodings")
    return {e["name"]: e for section in sections for e in document[section]}


def path_of(module: str) -> str:
    """`model.layers.0.mlp.up_proj` -> `/model/layers.0/mlp/up_proj`, as node names have it."""
    parts = module.split(".")
    return "/" + "/".join([parts[0], f"{parts[1]}.{parts[2]}", *parts[3:]])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by relative path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
