"""AIMET encodings 1.0.0 with made-up grids, for the base and for use cases with branches.

16-bit activations for every float tensor, int8 per channel for the weights of the projections. A
use case repeats the base's entries, with frozen grids, and adds its branches under the names that
AIMET's PyTorch layers export: lora_A.0, mul_scale, lora_B.0, add_lora_to_res.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto
from shape import Linear, Shape

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
_PRODUCER = {"name": "aimet-onnx", "version": "2.42.0"}
_QUANTIZER_ARGS = {
    "activation_bitwidth": 16,
    "dtype": "int",
    "is_symmetric": True,
    "param_bitwidth": 8,
    "per_channel_quantization": True,
    "quant_scheme": "min_max",
}


def write_encodings(path: Path, shape: Shape, model: ModelProto, rank: int = 0) -> None:
    """Encodings of the base, or with `rank` > 0 those of a use case with that many ranks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = random.Random(0)
    branch = random.Random(path.name)
    activations = [(name, base.uniform(1e-5, 1e-3)) for name in float_tensors(model)]
    grids = dict(activations)
    members = {
        "activation_encodings": _activations(activations, shape, grids, rank, branch),
        "param_encodings": _params(shape, rank, base, branch),
    }
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("{\n")
        for key, entries in members.items():
            file.write(f'    "{key}": [')
            for number, entry in enumerate(entries):
                text = json.dumps(entry, indent=4, sort_keys=True).replace("\n", "\n        ")
                file.write(("," if number else "") + "\n        " + text)
            file.write("\n    ],\n")
        file.write(f'    "producer": {json.dumps(_PRODUCER)},\n')
        file.write(f'    "quantizer_args": {json.dumps(_QUANTIZER_ARGS)},\n')
        file.write('    "version": "1.0.0"\n}\n')


def float_tensors(model: ModelProto) -> list[str]:
    """Every float input, node output and norm weight, and the embedding."""
    graph = model.graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    names = [value.name for value in graph.input]
    names += [t.name for t in graph.initializer if len(t.dims) == 1 or "embed" in t.name]
    types.update((t.name, t.data_type) for t in graph.initializer)
    names += [name for node in graph.node for name in node.output]
    return [name for name in names if types.get(name) in _FLOATS]


def _activations(
    base: Iterable[tuple[str, float]],
    shape: Shape,
    grids: dict[str, float],
    rank: int,
    rng: random.Random,
) -> Iterator[dict[str, object]]:
    for name, scale in base:
        yield _per_tensor(name, scale)
    for linear in shape.all_projections() if rank else ():
        for leaf in ("lora_A.0/MatMul", "mul_scale/Mul", "lora_B.0/MatMul"):
            yield _per_tensor(f"{linear.node}/{leaf}_output_0", rng.uniform(1e-5, 1e-3))
        frozen = grids[f"{linear.node}/MatMul_output_0"]
        yield _per_tensor(f"{linear.node}/add_lora_to_res/Add_output_0", frozen)


def _params(
    shape: Shape, rank: int, base: random.Random, rng: random.Random
) -> Iterator[dict[str, object]]:
    for linear in _weights(shape):
        yield _per_channel(f"{linear.module}.weight", linear.out_features, base)
        if rank and linear.module != "lm_head":
            prefix = f"base_model.{linear.module}"
            yield _per_channel(f"{prefix}.lora_A.weight", rank, rng)
            yield _per_channel(f"{prefix}.lora_B.weight", linear.out_features, rng)


def _weights(shape: Shape) -> Iterator[Linear]:
    yield from shape.all_projections()
    if not shape.tied:
        yield Linear("lm_head", "/lm_head", shape.hidden, shape.vocab)


def _per_tensor(name: str, scale: float) -> dict[str, object]:
    return {
        "bw": 16,
        "dtype": "INT",
        "enc_type": "PER_TENSOR",
        "is_sym": False,
        "name": name,
        "offset": [-32768.0],
        "scale": [scale],
    }


def _per_channel(name: str, channels: int, rng: random.Random) -> dict[str, object]:
    # wider than any grid that the random weights need, so that nothing clips
    return {
        "bw": 8,
        "dtype": "INT",
        "enc_type": "PER_CHANNEL",
        "is_sym": True,
        "name": name,
        "offset": [-128.0] * channels,
        "scale": [rng.uniform(0.002, 0.004) for _ in range(channels)],
    }
