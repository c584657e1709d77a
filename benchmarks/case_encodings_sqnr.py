"""What encodings of its own are worth to an adapter: SQNR with shared and with switched grids.

    python benchmarks/case_encodings_sqnr.py

Needs onnxruntime, which runs the packs of target `onnxruntime`. Nothing is timed, and nothing is
random from run to run. A figure is the signal-to-quantization-noise ratio of what the adapter adds:

    10 log10( |y - y_base|^2 / |y_quantized - y|^2 )      y, y_base: float reference

- The first table is of samples/tiny_llama with its AIMET encodings (8-bit weights, 16-bit
  activations) and PEFT's logits as reference. Its last columns store weights on grids that are
  computed from the values (`--lora-weights`), and leave activations as floats.
- The second is of two linears of 64 x 64 with two adapters of rank 8, one of them 1 to 64 times as
  large in B. Encodings are the exact ranges over 256 rows: per-channel weights of 8 or 16 bits,
  16-bit activations. The reference is NumPy in float64.

Mode none has one grid for all use cases, adapter_only switches those of the branches with the
adapter, all those of the base's activations too, of which a float base has none.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from case_adapters import write_adapter
from decoder_chain import Chain, write_chain
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.runtime import Session

SAMPLE = Path(__file__).parents[1] / "samples" / "tiny_llama"
CHAIN = Chain(2, 64)
RANK = 8
ROWS = 256
FACTORS = (1, 4, 16, 64)
BITS = (8, 16)
ADAPTERS = ("quiet", "loud")

Array = NDArray[Any]
Columns = dict[str, BuildOptions]
_MODES: Columns = {
    "none": BuildOptions(targets=("onnxruntime",), mode="none"),
    "adapter_only": BuildOptions(targets=("onnxruntime",), mode="adapter_only"),
}
_SAMPLE_ONLY: Columns = {
    "all": BuildOptions(targets=("onnxruntime",), mode="all"),
    "int8": BuildOptions(targets=("onnxruntime",), lora_weights="int8"),
    "int16": BuildOptions(targets=("onnxruntime",), lora_weights="int16"),
}


def sqnr(reference: Array, base: Array, got: Array) -> float:
    """Decibels; see above."""
    exact = reference.astype(np.float64)
    signal = np.square(exact - base).sum()
    return float(10 * np.log10(signal / np.square(got - exact).sum()))


@dataclass(frozen=True)
class Subject:
    """Configurations, inputs of several runs, and what floats give per use case.

    `config_all` is the one for mode all, whose files hold other encodings of the base.
    """

    config: Path
    config_all: Path
    runs: tuple[dict[str, Array], ...]
    base: Array
    expected: dict[str, Array]

    def figures(self, columns: Columns, work: Path) -> dict[str, list[str]]:
        """The figure of every column, by use case; packs go into `work`."""
        cells: dict[str, list[str]] = {name: [] for name in self.expected}
        for title, options in columns.items():
            config = self.config_all if options.mode == "all" else self.config
            build(config, work / title, options)
            with Session(work / title, threads=1) as session:
                for name, reference in self.expected.items():
                    results = [next(iter(session.run(r, name).values())) for r in self.runs]
                    ratio = sqnr(reference, self.base, np.concatenate(results))
                    cells[name].append(f"{ratio:.1f}")
        return cells


def sample() -> Subject:
    """samples/tiny_llama: prompts are run one by one."""
    logits = load_file(SAMPLE / "reference" / "logits.safetensors")
    prompts = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"]
    base = logits.pop("base")
    runs = tuple({"input_ids": row[None]} for row in prompts)
    configs = (SAMPLE / f"lora_config{suffix}.yaml" for suffix in ("", "_all"))
    return Subject(*configs, runs, base, dict(sorted(logits.items())))


def pair(folder: Path, factor: int, bits: int) -> Subject:
    """Two adapters that differ in size, and the encodings of each, in a new folder."""
    write_chain(CHAIN, folder / "model")
    x = np.random.default_rng(9).standard_normal((ROWS, CHAIN.width)).astype(np.float32)
    base_tensors = forward(folder, x, None)
    _write_encodings(folder / "base.encodings", base_tensors, {}, bits)
    expected = {}
    for seed, name in enumerate(ADAPTERS):
        adapter = folder / "adapters" / name
        write_adapter(adapter, CHAIN, RANK, "F32", seed)
        stored = load_file(adapter / "adapter_model.safetensors")
        times = np.float32(factor if name == "loud" else 1)
        stored = {k: v * times if ".lora_B." in k else v for k, v in stored.items()}
        save_file(stored, str(adapter / "adapter_model.safetensors"))
        tensors = forward(folder, x, name)
        branches = {k: v for k, v in tensors.items() if k not in base_tensors}
        params = {k.replace("base_model.model.", "base_model."): v for k, v in stored.items()}
        _write_encodings(folder / f"{name}.encodings", base_tensors | branches, params, bits)
        expected[name] = tensors["y"]
    config = folder / "lora_config.yaml"
    config.write_text(_config(), encoding="utf-8")
    return Subject(config, config, ({"x": x},), base_tensors["y"], expected)


def forward(folder: Path, x: Array, adapter: str | None) -> dict[str, Array]:
    """Every tensor of the chain in float64, by the name that its encoding has."""
    rng = np.random.default_rng(0)  # the weights of write_chain
    stored = {}
    if adapter is not None:
        stored = load_file(folder / "adapters" / adapter / "adapter_model.safetensors")
    tensors: dict[str, Array] = {"x": x.astype(np.float64)}
    current = tensors["x"]
    for number, linear in enumerate(CHAIN.all_projections()):
        weight = rng.standard_normal((CHAIN.width, CHAIN.width), dtype=np.float32)
        weight = weight * np.float32(CHAIN.width**-0.5)
        own = "y" if number == CHAIN.layers - 1 else f"{linear.node}/MatMul_output_0"
        result = current @ weight.astype(np.float64)
        if adapter is not None:
            key = f"base_model.model.{linear.module}"
            a = current @ stored[f"{key}.lora_A.weight"].T.astype(np.float64)
            m = 2.0 * a  # write_adapter: lora_alpha = 2 rank
            branch = m @ stored[f"{key}.lora_B.weight"].T.astype(np.float64)
            for leaf, value in (("lora_A.0/MatMul", a), ("mul_scale/Mul", m)):
                tensors[f"{linear.node}/{leaf}_output_0"] = value
            tensors[f"{linear.node}/lora_B.0/MatMul_output_0"] = branch
            result = result + branch
        tensors[own] = current = result
    return tensors


def _config() -> str:
    lines = ["adapter:"]
    lines += [f"  - {{name: {name}, lora_config: adapters/{name}}}" for name in ADAPTERS]
    lines.append("use-case:")
    for name, adapters, alphas in (
        ("base", "[]", "[]"),
        *((name, f"[{name}]", "[1.0]") for name in ADAPTERS),
    ):
        lines.append(
            f"  - {{name: {name}, adapter_names: {adapters}, adapter_alphas: {alphas}, "
            f"model_name: model/model.onnx, quant_overrides: {name}.encodings}}"
        )
    return "\n".join(lines) + "\n"


def _write_encodings(
    path: Path, tensors: dict[str, Array], params: dict[str, Array], bits: int
) -> None:
    """AIMET 1.0.0: the exact range of every tensor, and of every output channel of a weight."""
    activations = []
    for name, values in tensors.items():
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        scale = (high - low) / 65535
        entry = {"bw": 16, "is_sym": False, "enc_type": "PER_TENSOR", "name": name}
        activations.append(entry | {"scale": [scale], "offset": [float(round(low / scale))]})
    weights = []
    for name, values in params.items():
        largest = np.abs(values).max(axis=1).astype(np.float64)
        entry = {"bw": bits, "is_sym": True, "enc_type": "PER_CHANNEL", "name": name}
        scales = list(largest / (2 ** (bits - 1) - 1))
        weights.append(entry | {"scale": scales, "offset": [-(2.0 ** (bits - 1))] * len(scales)})
    document = {
        "version": "1.0.0",
        "activation_encodings": [entry | {"dtype": "INT"} for entry in activations],
        "param_encodings": [entry | {"dtype": "INT"} for entry in weights],
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def report() -> Iterator[str]:
    """The tables as Markdown."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        yield f"onnxruntime {onnxruntime.__version__}"
        yield ""
        columns = _MODES | _SAMPLE_ONLY
        yield from _head("sample", *columns)
        for name, cells in sample().figures(columns, work / "sample").items():
            yield _row(name, *cells)
        yield ""
        yield from _head(
            "adapter", *(f"{bits}-bit weights, {mode}" for bits in BITS for mode in _MODES)
        )
        for factor in FACTORS:
            rows: dict[str, list[str]] = {name: [] for name in ADAPTERS}
            for bits in BITS:
                folder = work / f"{factor}_{bits}"
                for name, cells in pair(folder, factor, bits).figures(_MODES, folder).items():
                    rows[name] += cells
            for name, cells in rows.items():
                size = f"1x, beside {factor}x" if name == "quiet" else f"{factor}x, beside 1x"
                yield _row(size, *cells)


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + " --- |" * len(cells)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table."""
    print("\n".join(report()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
