"""Small models with LoRA adapters and the encodings of their use cases, for the qnn target.

Encodings are calibrated on the graph of a float pack: its tensors' ranges over random inputs, with
the weights of each use case. So they are in the names of our graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from lora_quant.api import BuildResult, build
from lora_quant.config.options import BuildOptions

Array = NDArray[Any]
SAMPLES = 8
LOWEST = -100.0
TOKENS = 64
"""The vocabulary of models that read tokens."""


@dataclass
class Adapter:
    """rank, the size of B's values, and which modules it adapts (all by default).

    kind: "lora", "dora" and "ia3", which bring vectors, or "alora", which has a gate.
    """

    rank: int
    size: float = 1.0
    alpha: float | None = None
    modules: Sequence[str] | None = None
    kind: str = "lora"


@dataclass
class Case:
    """A model on disk, its configuration and inputs; `folder` is where everything lies."""

    folder: Path
    model: ModelProto
    modules: Mapping[str, tuple[int, ...]]
    adapters: Mapping[str, Adapter]
    use_cases: Mapping[str, Mapping[str, float]]
    dims: Mapping[str, int] = field(default_factory=dict)
    bits: int = 16

    @property
    def config(self) -> Path:
        return self.folder / "lora_config.yaml"

    def prepare(self) -> None:
        """Write the model, the adapters, the configuration and the encodings."""
        onnx.save(self.model, str(self.folder / "base.onnx"))
        for seed, (name, adapter) in enumerate(self.adapters.items(), start=2):
            self._write_adapter(name, adapter, seed)
        self._write_config(with_encodings=False)
        floating = build(self.config, self.folder / "float", BuildOptions())
        ranges = {name: self._ranges(floating, name) for name in self.use_cases}
        base = {v.name for v in self.model.graph.input}
        base.update(n for node in self.model.graph.node for n in node.output)
        for one in ranges.values():
            for name in base:
                one.pop(f"{name}_base", None)  # on the grid that its sum has
        for name in base:
            # Calibrated on all use cases together: they are fixed in the default mode.
            found = [one[name] for one in ranges.values() if name in one]
            if found:
                shared = [min(low for low, _ in found), max(high for _, high in found)]
                for one in ranges.values():
                    one[name] = shared
        for name, one in ranges.items():
            known = one if self.use_cases[name] else {n: r for n, r in one.items() if n in base}
            self._write_encodings(name, {**known, "lora_alpha": [0.0, 1.0]})
        self._write_config(with_encodings=True)

    def feeds(self, seed: int) -> dict[str, Array]:
        """Random values for the inputs of the base."""
        rng = np.random.default_rng(seed)
        found: dict[str, Array] = {}
        for value in self.model.graph.input:
            shape = self._shape(value)
            if value.type.tensor_type.elem_type == TensorProto.INT64:
                found[value.name] = rng.integers(0, TOKENS, shape)
            else:
                found[value.name] = rng.standard_normal(shape).astype(np.float32)
        return found

    def gate(self, model: ModelProto) -> dict[str, Array]:
        """The gate of a graph that has one: the first half of the tokens is off."""
        for value in model.graph.input:
            if value.name == "lora_alpha_gate":
                gate = np.ones(self._shape(value), np.float32)
                gate[:, : gate.shape[1] // 2] = 0
                return {value.name: gate}
        return {}

    def alphas(self, use_case: str, slots: int) -> Array:
        values = np.zeros(slots, np.float32)
        strengths = list(self.use_cases[use_case].values())
        values[: len(strengths)] = strengths
        return values

    def float_output(self, use_case: str, feeds: Mapping[str, Array]) -> Array:
        """The first output of the float pack with the weights of a use case."""
        model = self._loaded(use_case)
        inputs = {v.name: v for v in model.graph.input}
        full = dict(feeds)
        if "lora_alpha" in inputs:
            slots = inputs["lora_alpha"].type.tensor_type.shape.dim[0].dim_value
            full["lora_alpha"] = self.alphas(use_case, slots)
            full |= self.gate(model)
        return run(model, full, [model.graph.output[0].name])[0]

    def _shape(self, value: onnx.ValueInfoProto) -> list[int]:
        return [
            self.dims[d.dim_param] if d.dim_param else d.dim_value
            for d in value.type.tensor_type.shape.dim
        ]

    def _loaded(self, use_case: str) -> ModelProto:
        """The graph of the float pack with the weights of a use case."""
        model = onnx.load(str(self.folder / "float" / "qairt" / "model.onnx"))
        path = self.folder / "float" / "qairt" / use_case / "lora_weights.safetensors"
        values = load_file(path)
        for tensor in model.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
        return model

    def _write_adapter(self, name: str, adapter: Adapter, seed: int) -> None:
        rng = np.random.default_rng(seed)
        folder = self.folder / name
        folder.mkdir()
        modules = list(adapter.modules or self.modules)
        tensors = {}
        settings: dict[str, Any] = {"target_modules": modules}
        if adapter.kind == "alora":
            settings["alora_invocation_tokens"] = [1, 2]
        if adapter.kind == "ia3":
            settings |= {"peft_type": "IA3", "feedforward_modules": []}
        else:
            settings |= {
                "peft_type": "LORA",
                "r": adapter.rank,
                "lora_alpha": adapter.alpha or adapter.rank,
                "use_dora": adapter.kind == "dora",
            }
        for module in modules:
            out, fan_in, *kernel = self.modules[module]
            key = f"base_model.model.{module}"
            if adapter.kind == "ia3":
                shape = (out, *(1,) * (1 + len(kernel)))
                tensors[f"{key}.ia3_l"] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
                continue
            ones = (1,) * len(kernel)
            norm = (fan_in * int(np.prod(kernel))) ** 0.5
            a = rng.standard_normal((adapter.rank, fan_in, *kernel)) / norm
            b = rng.standard_normal((out, adapter.rank, *ones)) * adapter.size
            tensors[f"{key}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = (b / adapter.rank**0.5).astype(np.float32)
            if adapter.kind == "dora":
                magnitude = rng.uniform(0.8, 1.2, out)
                tensors[f"{key}.lora_magnitude_vector"] = magnitude.astype(np.float32)
        save_file(tensors, str(folder / "adapter_model.safetensors"))
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")

    def _write_config(self, *, with_encodings: bool) -> None:
        use_cases: list[dict[str, Any]] = []
        for name, strengths in self.use_cases.items():
            one: dict[str, Any] = {
                "name": name,
                "adapter_names": list(strengths),
                "adapter_alphas": list(strengths.values()),
                "model_name": "base.onnx",
            }
            if with_encodings:
                one["quant_overrides"] = f"{name}.encodings"
            use_cases.append(one)
        config = {
            "adapter": [{"name": name, "lora_config": name} for name in self.adapters],
            "use-case": use_cases,
        }
        self.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def _ranges(self, floating: BuildResult, use_case: str) -> dict[str, list[float]]:
        """What every float tensor reaches in one use case."""
        model = self._loaded(use_case)
        names = [v.name for v in model.graph.input]
        names += [n for node in model.graph.node for n in node.output if n]
        ranges: dict[str, list[float]] = {}
        slots = floating.manifest.alpha.shape[0] if floating.manifest.alpha else 0
        for seed in range(SAMPLES):
            feeds = self.feeds(seed)
            if slots:
                feeds["lora_alpha"] = self.alphas(use_case, slots)
                feeds |= self.gate(model)
            outputs = [name for name in names if name not in feeds]
            values = {**feeds, **dict(zip(outputs, run(model, feeds, outputs), strict=True))}
            for name, value in values.items():
                if value.dtype == np.float32:
                    low, high = ranges.setdefault(name, [0.0, 0.0])
                    # What masks reach would leave nothing for the other values of their grid.
                    least = max(float(value.min()), LOWEST)
                    ranges[name] = [min(low, least), max(high, float(value.max()))]
        return {n: r for n, r in ranges.items() if n not in self._inside_groups(model)}

    def _write_encodings(self, use_case: str, ranges: Mapping[str, Sequence[float]]) -> None:
        document = {
            "version": "1.0.0",
            "activation_encodings": [
                _entry(name, low, high, self.bits) for name, (low, high) in ranges.items()
            ],
            "param_encodings": list(self._weights(self._loaded(use_case))),
        }
        path = self.folder / f"{use_case}.encodings"
        path.write_text(json.dumps(document), encoding="utf-8")

    def _inside_groups(self, model: ModelProto) -> set[str]:
        """Products that a bias follows, which calibration tools quantize as one with it."""
        stored = {tensor.name for tensor in model.graph.initializer}
        products = {
            n.output[0]
            for n in model.graph.node
            if n.op_type in ("MatMul", "Conv") and n.input[1] in stored
        }
        return {
            name
            for node in model.graph.node
            if node.op_type == "Add" and stored.intersection(node.input)
            for name in node.input
            if name in products
        }

    def _weights(self, model: ModelProto) -> Iterable[dict[str, Any]]:
        own = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        for node in model.graph.node:
            position = {"MatMul": 1, "Conv": 1, "Gemm": 1, "Transpose": 0}.get(node.op_type)
            values = None if position is None else own.get(node.input[position])
            if position is None or values is None:
                continue
            is_turned = any(a.name == "transB" and a.i for a in node.attribute)
            axis = 0 if is_turned or node.op_type in ("Conv", "Transpose") else 1
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = np.abs(values).max(axis=others) / 127
            yield {
                "name": node.input[position],
                "enc_type": "PER_CHANNEL",
                "dtype": "INT",
                "bw": 8,
                "is_sym": True,
                "scale": [float(s) for s in scale],
                "offset": [-128.0] * scale.size,
            }


def _entry(name: str, low: float, high: float, bits: int) -> dict[str, Any]:
    steps = 2**bits - 1
    scale = max((high - low) / steps, 1e-9)
    return {
        "name": name,
        "enc_type": "PER_TENSOR",
        "dtype": "INT",
        "bw": bits,
        "is_sym": False,
        "scale": [scale],
        "offset": [float(round(low / scale))],
    }


def run(model: ModelProto, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
    """Outputs of a graph on ONNX Runtime's CPU without its optimizations."""
    copy = ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    for name in outputs:
        if name not in known:
            copy.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[Array] = session.run(list(outputs), dict(feeds))
    return found


def device_session(model: Path) -> onnxruntime.InferenceSession:
    """The graph on the CPU with the accuracy that its encodings have.

    ONNX Runtime 1.32 rounds 16-bit activations to 8 bits unless it is told to use floats.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _random(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    values: Array = rng.standard_normal(shape) / fan_in**0.5
    return values.astype(np.float32)


def mlp(shape: Sequence[int | str], *, width: int = 32, hidden: int = 48, bias: bool) -> ModelProto:
    """x -> up (+ b) -> Relu -> down (+ b) -> y, on the last axis of `shape`."""
    rng = np.random.default_rng(1)
    stored: dict[str, Array] = {
        "up.weight": _random(rng, (width, hidden), width),
        "down.weight": _random(rng, (hidden, width), hidden),
    }
    up, down = ("up_product", "y_product") if bias else ("hidden", "y")
    nodes = [helper.make_node("MatMul", ["x", "up.weight"], [up], name="/up/MatMul")]
    if bias:
        stored |= {
            "up.bias": _random(rng, (hidden,), 1),
            "down.bias": _random(rng, (width,), 1),
        }
        nodes.append(helper.make_node("Add", ["up.bias", up], ["hidden"], name="/up/Add"))
    nodes += [
        helper.make_node("Relu", ["hidden"], ["positive"], name="/Relu"),
        helper.make_node("MatMul", ["positive", "down.weight"], [down], name="/down/MatMul"),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [down, "down.bias"], ["y"], name="/down/Add"))
    return _model(nodes, "mlp", [*shape, width], [*shape, width], stored)


def turned() -> ModelProto:
    """The same with weights of [out, in]: one behind a Transpose, one of a Gemm."""
    rng = np.random.default_rng(1)
    stored = {
        "up.weight": _random(rng, (48, 32), 32),
        "down.weight": _random(rng, (32, 48), 48),
        "down.bias": _random(rng, (32,), 1),
    }
    nodes = [
        helper.make_node("Transpose", ["up.weight"], ["up.turned"], name="/up/T", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "up.turned"], ["hidden"], name="/up/MatMul"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="/Relu"),
        helper.make_node(
            "Gemm",
            ["positive", "down.weight", "down.bias"],
            ["y"],
            name="/down/Gemm",
            transB=1,
        ),
    ]
    return _model(nodes, "turned", [8, 32], [8, 32], stored)


MLP = {"up": (48, 32), "down": (32, 48)}


def convolution(size: int = 8) -> ModelProto:
    """x [1, 8, size, size] -> conv 3 x 3 with a bias -> Relu -> conv 1 x 1 -> y."""
    rng = np.random.default_rng(1)
    stored = {
        "first.weight": _random(rng, (16, 8, 3, 3), 72),
        "first.bias": _random(rng, (16,), 1),
        "second.weight": _random(rng, (8, 16, 1, 1), 16),
    }
    nodes = [
        helper.make_node(
            "Conv",
            ["x", "first.weight", "first.bias"],
            ["hidden"],
            name="/first/Conv",
            pads=[1, 1, 1, 1],
            kernel_shape=[3, 3],
        ),
        helper.make_node("Relu", ["hidden"], ["positive"], name="/Relu"),
        helper.make_node(
            "Conv", ["positive", "second.weight"], ["y"], name="/second/Conv", kernel_shape=[1, 1]
        ),
    ]
    sizes = [1, 8, size, size]
    return _model(nodes, "convolution", sizes, sizes, stored)


CONVOLUTION = {"first": (16, 8, 3, 3), "second": (8, 16, 1, 1)}


def fused() -> ModelProto:
    """x -> qkv_proj with a bias -> Relu -> down -> y; three modules in one node."""
    rng = np.random.default_rng(1)
    stored = {
        "qkv.weight": _random(rng, (32, 64), 32),
        "qkv.bias": _random(rng, (64,), 1),
        "down.weight": _random(rng, (64, 32), 64),
    }
    prefix = "/attn/qkv_proj"
    nodes = [
        helper.make_node("MatMul", ["x", "qkv.weight"], ["product"], name=f"{prefix}/MatMul"),
        helper.make_node("Add", ["product", "qkv.bias"], ["hidden"], name=f"{prefix}/Add"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="/Relu"),
        helper.make_node("MatMul", ["positive", "down.weight"], ["y"], name="/down/MatMul"),
    ]
    return _model(nodes, "fused", [1, 8, 32], [1, 8, 32], stored)


FUSED = {
    "attn.q_proj": (32, 32),
    "attn.k_proj": (16, 32),
    "attn.v_proj": (16, 32),
    "down": (32, 64),
}


def _model(
    nodes: list[onnx.NodeProto],
    name: str,
    x: Sequence[int | str],
    y: Sequence[int | str],
    stored: Mapping[str, Array],
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(y))],
        [numpy_helper.from_array(values, key) for key, values in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def sqnr(exact: Array, quantized: Array) -> float:
    """Signal to quantization noise in dB."""
    signal = exact.astype(np.float64)
    noise = signal - quantized
    return float(10 * np.log10((signal**2).sum() / (noise**2).sum()))
