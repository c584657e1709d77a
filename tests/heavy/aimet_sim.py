"""A pack seen through AIMET: its graph with a use case's weights, its encodings, its QDQ graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from safetensors.numpy import load_file

Array = NDArray[Any]


def pack_model(pack: Path, use_case: str | None) -> ModelProto:
    """The graph of a pack with the weights of a use case as initializers; None leaves zeros."""
    model = onnx.load(str(pack / "qairt" / "model.onnx"))
    if use_case is not None:
        values = load_file(pack / "qairt" / use_case / "lora_weights.safetensors")
        for tensor in model.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(numpy_helper.from_array(values.pop(tensor.name), tensor.name))
        assert not values
    return model


def encodings_path(pack: Path, use_case: str | None) -> str:
    name = f"{use_case}/quant_overrides.json" if use_case else "base_encodings.json"
    return str(pack / "qairt" / name)


def simulate(model: ModelProto) -> Any:
    """The quantizers that the sample's encodings were made with."""
    from aimet_onnx.quantsim import QuantizationSimModel

    return QuantizationSimModel(
        model, param_type="int8", activation_type="int16", providers=["CPUExecutionProvider"]
    )


def load(sim: Any, encodings: str, *, strict: bool = False) -> dict[str, dict[str, Any]]:
    """Load a file into every quantizer; returns what does not fit: tensor -> property -> values."""
    from aimet_onnx.quantsim import load_encodings_to_sim

    found = load_encodings_to_sim(
        sim, encodings, strict=strict, disable_missing_quantizers=not strict
    )
    return {
        item.quantizer_name: {
            key.removesuffix("_mismatch"): value
            for key, value in vars(item).items()
            if key.endswith("_mismatch") and value is not None
        }
        for item in found
    }


def run(model: ModelProto, feeds: Iterable[Mapping[str, Array]]) -> Array:
    """The first output of each feed, joined."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, dict(feed))[0] for feed in feeds])


def sqnr(exact: Array, quantized: Array) -> float:
    """Signal to quantization noise in dB."""
    signal = exact.astype(np.float64)
    noise = signal - quantized
    return float(10 * np.log10((signal**2).sum() / (noise**2).sum()))
