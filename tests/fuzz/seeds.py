"""The files that fuzzing begins with: small ones of every kind, from the samples and fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lora_quant import build
from lora_quant.config.lora_config import LoraConfig
from tests.adapters.formats import gguf_bytes, torch_bytes
from tests.builders import GraphBuilder, attention
from tests.fuzz.tree_mutator import tree_of

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "tiny_llama"
FIXTURES = ROOT / "tests" / "fixtures"
_KINDS = FIXTURES / "kinds"
_MOST = 24_000
"""Larger files cost time, and damage seldom meets what matters in them."""


def fixed(*paths: Path) -> Callable[[Path], Sequence[bytes]]:
    """Seeds that lie in the repository."""

    def read(folder: Path) -> Sequence[bytes]:
        found = [path.read_bytes() for path in paths]
        assert all(len(data) <= _MOST for data in found), [path.name for path in paths]
        return found

    return read


def documents(*values: Any) -> Callable[[Path], Sequence[bytes]]:
    """Seeds that are JSON documents."""
    return lambda folder: [json.dumps(value).encode() for value in values]


def yaml_tree(data: bytes) -> Any:
    """A YAML file as a tree."""
    return tree_of(yaml.safe_load(data))


LORA_CONFIG = {
    "adapter": [{"name": "tone", "lora_config": "tone"}],
    "attach_point_onnx_mapping": "mapping.json",
    "use-case": [
        {
            "name": "base",
            "adapter_names": [],
            "adapter_alphas": [],
            "model_name": "model.onnx",
            "quant_overrides": "base.encodings",
        },
        {
            "name": "tone",
            "adapter_names": ["tone"],
            "adapter_alphas": [1.0],
            "model_name": "model.onnx",
            "quant_overrides": "tone.encodings",
            "quant_updatable_tensors": "tone.txt",
        },
    ],
}
ADAPTER = {"name": "tone", "rank": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}
MAPPING = {
    "model.layers.0.self_attn.q_proj": ["/model/layers.0/self_attn/q_proj/MatMul"],
    "model.layers.0.mlp": [],
}
IMPORTER = {
    "use_case": [
        {
            "name": "tone",
            "model_name": "model.onnx",
            "lora_weights": "tone.safetensors",
            "quant_overrides": "tone.json",
            "output_path": None,
        }
    ]
}
OUTPUTS = {
    "use_case": [{"name": "tone", "graph": "g", "weights": "t.safetensors", "encodings": "t.json"}]
}
RUN = {"name": "tone", "adapters": [{"name": "tone", "alpha": 1.0}]}
GENIE = {
    "version": 1,
    "alpha-tensor-name": "lora_alpha",
    "adapters": [
        {"version": 1, "name": "tone", "alphas": ["tone"], "bin-sections": ["a.bin", "b.bin"]}
    ],
}
GENIE_CONFIG = {
    "dialog": {
        "version": 1,
        "type": "basic",
        "engine": {
            "version": 1,
            "backend": {"version": 1, "type": "QnnHtp"},
            "model": {
                "version": 1,
                "type": "binary",
                "binary": {"version": 1, "ctx-bins": ["x.bin"], "lora": GENIE},
            },
        },
    }
}
REPORT = {
    "schema_version": "1.0",
    "command": "build",
    "ok": True,
    "findings": [{"rule": "a/b", "severity": "note", "message": "text"}],
    "outputs": [],
    "details": {},
}


def torch_files(folder: Path) -> Sequence[bytes]:
    """What torch.save writes, by hand."""
    arrays: dict[str, NDArray[Any]] = {
        "base_model.model.q_proj.lora_A.weight": np.ones((2, 4), np.float32),
        "base_model.model.q_proj.lora_B.weight": np.ones((4, 2), np.float16),
        "count": np.ones(3, np.int64),
    }
    return [torch_bytes.write(folder / "seed.bin", arrays).read_bytes()]


def pickles(folder: Path) -> Sequence[bytes]:
    """The pickles inside of such files."""
    plain = torch_bytes.tensor("FloatStorage", "0", 8, 0, [2, 4], [4, 1])
    return [
        torch_bytes.state_dict({"a": plain, "b": torch_bytes.parameter(plain)}),
        torch_bytes.state_dict({}),
    ]


def gguf_files(folder: Path) -> Sequence[bytes]:
    """An adapter with every kind of field, and those of the fixtures."""
    items = gguf_bytes.text("x") + gguf_bytes.text("y")
    array = (9).to_bytes(4, "little") + (8).to_bytes(4, "little") + (2).to_bytes(8, "little")
    head = [gguf_bytes.field(key, value) for key, value in gguf_bytes.ADAPTER.items()]
    head.append(gguf_bytes.field("tokens", array + items))
    records = [
        gguf_bytes.record("blk.0.attn_q.weight.lora_a", (2, 4), 0, 0),
        gguf_bytes.record("blk.0.attn_q.weight.lora_b", (4, 2), 1, 32),
    ]
    own = gguf_bytes.assemble(head, records, bytes(64))
    return [own, *fixed(FIXTURES / "formats" / "gguf_qwen2" / "adapter.gguf")(folder)]


def graphs(folder: Path) -> Sequence[bytes]:
    """Weights inside, weights beside, quantized, with a subgraph, and one that has branches."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"], "inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])],
    )
    builder = GraphBuilder()
    x = builder.input("x", (4,))
    condition = builder.constant("condition", np.array(True))
    chosen = builder.node("If", [condition], "choice", then_branch=inner, else_branch=inner)
    builder.output(chosen, (4,))
    external = folder / "external.onnx"
    attention(layers=1).save(external, external=True)
    fitted = GraphBuilder()
    x = fitted.input("x", (1, 4))
    scale = fitted.constant("scale", np.array(0.1, np.float32))
    zero = fitted.constant("zero", np.array(0, np.uint8))
    codes = fitted.node("QuantizeLinear", [x, scale, zero], "quantize")
    values = fitted.node("DequantizeLinear", [codes, scale, zero], "dequantize")
    y = fitted.matmul("/model/layers.0/q_proj/MatMul", values, in_features=4, out_features=6)
    fitted.output(y, (1, 6))
    own = [attention(layers=1).model(), builder.model(), fitted.model(opset=21, ir_version=10)]
    return [
        *(model.SerializeToString(deterministic=True) for model in own),
        external.read_bytes(),
        *fixed(
            FIXTURES / "exports" / "branches" / "plain.onnx",
            FIXTURES / "exports" / "branches" / "peft_conv.onnx",
        )(folder),
    ]


def checkpoint_config(folder: Path) -> Sequence[bytes]:
    """`adapter_config.json` of kinds that differ much."""
    names = ("lora_plain", "lora_patterns", "lora_dora", "adalora_linear", "ia3", "vera")
    found = [_KINDS / name / "adapter_config.json" for name in names]
    return [path.read_bytes() for path in found if path.exists()]


def tiny_config(folder: Path) -> LoraConfig:
    """A build that takes a moment: one layer of attention, one adapter."""
    graph = attention(layers=1).save(folder / "model.onnx", external=True)
    adapter = folder / "tone"
    adapter.mkdir(exist_ok=True)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    torch_bytes.write(
        adapter / "adapter_model.bin",
        {
            f"{module}.lora_A.weight": np.ones((2, 8), np.float32) / 3,
            f"{module}.lora_B.weight": np.ones((8, 2), np.float32) / 5,
        },
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    use_cases = [
        {"name": "base", "adapter_names": [], "adapter_alphas": [], "model_name": str(graph)},
        {
            "name": "tone",
            "adapter_names": ["tone"],
            "adapter_alphas": [1.0],
            "model_name": str(graph),
        },
    ]
    adapters = [{"name": "tone", "lora_config": str(adapter)}]
    return LoraConfig.model_validate({"adapter": adapters, "use-case": use_cases})


def tiny_project(folder: Path) -> Path:
    """A folder of everything that a build reads, of which each file names others."""
    project = folder / "project"
    if project.exists():
        return project
    project.mkdir()
    tiny_config(project)
    parts = {
        "version": "1.0.0",
        "activation_encodings": [{"name": "x", **_GRID}],
        "param_encodings": [{"name": "model.layers.0.self_attn.q_proj.weight", **_GRID}],
    }
    files = {
        "lora_config.yaml": {**LORA_CONFIG, "adapter": [{"name": "tone", "lora_config": "tone"}]},
        "mapping.json": MAPPING,
        "base.encodings": parts,
        "tone.encodings": parts,
    }
    for name, value in files.items():
        (project / name).write_text(json.dumps(value), encoding="utf-8")
    (project / "tone.txt").write_text("x\n", encoding="utf-8")
    return project


_GRID = {
    "bw": 8,
    "dtype": "INT",
    "enc_type": "PER_TENSOR",
    "is_sym": False,
    "offset": [-128],
    "scale": [0.01],
}


def tiny_pack(folder: Path, *targets: str) -> Path:
    """A pack of that build, made once in a folder."""
    from lora_quant import BuildOptions

    output = folder / "pack"
    if not output.exists():
        build(tiny_config(folder), output, BuildOptions(targets=targets) if targets else None)
    return output
