"""Small packs of the onnxruntime target, made by hand and by the engine's own adapter writer.

Two layers on x [batch, tokens, 4]: `q` is adapted by both adapters, `v` by `tone` only.

    q = x Wq + ((alpha E_q) * (x A_q)) B_q      v = x Wv + ((alpha E_v) * (x A_v)) B_v

The use case `tone` has rank 2, `legal` 3, and `both` 5 at q; `expected` computes them in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_seal import UNSEALED
from lora_quant.graph.files.data_files import sampled_sha256

Array = NDArray[Any]

DIM = 4
FINGERPRINT = 20_777
RANKS = {"tone": 2, "legal": 3}
LAYERS = {"q": ("tone", "legal"), "v": ("tone",)}
USE_CASES: Mapping[str, Mapping[str, float]] = {
    "tone": {"tone": 1.0},
    "legal": {"legal": 0.5},
    "both": {"tone": 0.75, "legal": 1.5},
    "plain": {},
}
SCALES = {"tone": 2.0, "legal": 0.25}
INVOCATION = (7, 8)


@dataclass(frozen=True)
class Handmade:
    """What to make; `seed` makes the adapters, so that two packs may differ in them alone.

    `magnitude` takes the absolute values of all weights, for bounds.
    """

    seed: int = 0
    fingerprint: int = FINGERPRINT
    gated: Sequence[str] = ()
    beyond_alpha: Mapping[str, Sequence[str]] = field(default_factory=dict)
    prompt_of: str | None = None
    beside_base: bool = False
    sizes: tuple[int | str, int | str] = ("batch", "tokens")
    magnitude: bool = False

    @property
    def base(self) -> dict[str, Array]:
        random = np.random.default_rng(100)
        return {name: self._made(random, (DIM, DIM)) for name in LAYERS}

    @property
    def prompt(self) -> Array:
        random = np.random.default_rng(200)
        return random.standard_normal((2, DIM)).astype(np.float32)

    def factors(self, layer: str, adapter: str) -> tuple[Array, Array]:
        """A `[4, rank]` and B `[rank, 4]`."""
        number = [*LAYERS].index(layer) * 10 + [*RANKS].index(adapter)
        random = np.random.default_rng([self.seed, number])
        rank = RANKS[adapter]
        return self._made(random, (DIM, rank)), self._made(random, (rank, DIM))

    def _made(self, random: np.random.Generator, shape: tuple[int, int]) -> Array:
        values = random.standard_normal(shape).astype(np.float32)
        return np.abs(values) if self.magnitude else values

    def expected(
        self, x: Array, strengths: Mapping[str, float], gate: Array | None = None
    ) -> dict[str, Array]:
        """The outputs in float64; `gate` `[batch, tokens]` of the gated adapters."""
        x = x.astype(np.float64)
        found = {}
        for layer, weight in self.base.items():
            y = x @ weight.astype(np.float64)
            for adapter, strength in strengths.items():
                if adapter in LAYERS[layer]:
                    a, b = (one.astype(np.float64) for one in self.factors(layer, adapter))
                    update = strength * SCALES[adapter] * (x @ a @ b)
                    if gate is not None and adapter in self.gated:
                        update = update * gate[..., None]
                    y = y + update
            found[layer] = y
        return found

    def bounds(self, x: Array, strengths: Mapping[str, float]) -> dict[str, float]:
        """How far float32 may be from `expected`.

        Each output is a chain of at most 4 + 4 + 1 + 1 + 5 + 1 roundings (sums over 4 inputs, twice
        over 4 and 5 products in the branch, alpha and the scale), each of 2^-24 of the sum of the
        absolute values of what it adds.
        """
        roundings = 16 * 2.0**-24
        sizes = replace(self, magnitude=True).expected(
            np.abs(x), {name: abs(strength) for name, strength in strengths.items()}
        )
        return {name: roundings * float(size.max()) for name, size in sizes.items()}

    def write(self, folder: Path) -> Path:
        """Write the pack into `folder`; returns it."""
        target = folder / "onnxruntime"
        target.mkdir(parents=True)
        base_folder = folder.parent / f"base of {folder.name}"
        home = base_folder if self.beside_base else target
        home.mkdir(exist_ok=True)
        data = home / "weights.data"
        graph = home / ("lora.onnx" if self.beside_base else "model.onnx")
        _save_graph(self, graph, data)
        files = [_file(folder, graph, "graph")]
        if not self.beside_base:
            files.append(_file(folder, data, "graph-data"))
        for name in USE_CASES:
            path = target / f"{name}.onnx_adapter"
            write_parameters(path, self.parameters(name), self.fingerprint)
            files.append(_file(folder, path, "adapter", name))
            if self.prompt_of == name:
                prompt = target / f"{name}.safetensors"
                save_file({"prefix_embeds": self.prompt}, prompt)
                files.append(_file(folder, prompt, "prompt", name))
        manifest = self._manifest(folder, files, data)
        (folder / "pack.json").write_text(manifest.dump(), encoding="utf-8")
        return folder

    def parameters(self, use_case: str) -> dict[str, Array]:
        """What the adapter file of a use case holds."""
        strengths = USE_CASES[use_case]
        alpha = np.zeros(len(RANKS), np.float32)
        alpha[: len(strengths)] = list(strengths.values())
        values: dict[str, Array] = {"lora_alpha": alpha}
        for layer, adapters in LAYERS.items():
            present = [name for name in strengths if name in adapters]
            if not present:
                continue
            pairs = [self.factors(layer, name) for name in present]
            values[f"{layer}.A"] = np.concatenate([a for a, _ in pairs], axis=1)
            values[f"{layer}.B"] = np.concatenate([b for _, b in pairs], axis=0)
            expansion = np.zeros((len(RANKS), sum(RANKS[n] for n in present)), np.float32)
            start = 0
            for name in present:
                slot = [*strengths].index(name)
                expansion[slot, start : start + RANKS[name]] = SCALES[name]
                start += RANKS[name]
            values[f"{layer}.expansion"] = expansion
        return values

    def _manifest(self, folder: Path, files: list[dict[str, Any]], data: Path) -> Manifest:
        inputs = [
            {"name": "lora_alpha", "dtype": "float32", "shape": [len(RANKS)], "role": "alpha"}
        ]
        for layer in LAYERS:
            for part, role, shape in (
                ("A", "a_weight", [DIM, -1]),
                ("B", "b_weight", [-1, DIM]),
                ("expansion", "expansion", [len(RANKS), -1]),
            ):
                name = f"{layer}.{part}"
                inputs.append({"name": name, "dtype": "float32", "shape": shape, "role": role})
        alpha: dict[str, Any] = {
            "tensor": "lora_alpha",
            "layout": "slot",
            "dtype": "float32",
            "shape": [len(RANKS)],
        }
        if self.gated:
            alpha["gate"] = {"tensor": "lora_gate", "dtype": "float32", "shape": [len(RANKS)]}
        stored = {
            "path": f"../base of {folder.name}/weights.data",
            "size": data.stat().st_size,
            "sampled_sha256": sampled_sha256(data),
        }
        document = {
            "manifest_sha256": UNSEALED,
            "tool": {"name": "lora-quant", "version": "0"},
            "mode": "none",
            "max_rank": sum(RANKS.values()),
            "alpha": alpha,
            "base": {
                "graph": {"path": "../base.onnx", "size": 1, "sha256": "0" * 64},
                "data": [stored] if self.beside_base else [],
                "beside_base": self.beside_base,
            },
            "adapters": [
                {
                    "name": name,
                    "kind": "LORA",
                    "rank": rank,
                    "scale": SCALES[name],
                    "invocation_tokens": list(INVOCATION) if name in self.gated else [],
                }
                for name, rank in RANKS.items()
            ],
            "use_cases": [self._use_case(name) for name in USE_CASES],
            "targets": [
                {
                    "name": "onnxruntime",
                    "files": files,
                    "inputs": inputs,
                    "fingerprint": self.fingerprint,
                }
            ],
        }
        return Manifest.model_validate(document)

    def _use_case(self, name: str) -> dict[str, Any]:
        start, slots = 0, []
        for adapter, strength in USE_CASES[name].items():
            slots.append(
                {
                    "adapter": adapter,
                    "start": start,
                    "rank": RANKS[adapter],
                    "alpha": strength,
                    "scale": SCALES[adapter],
                    "gated": adapter in self.gated,
                    "beyond_alpha": list(self.beyond_alpha.get(adapter, ())),
                }
            )
            start += RANKS[adapter]
        record: dict[str, Any] = {"name": name, "slots": slots}
        if self.prompt_of == name:
            record["prompt"] = {
                "adapter": "tone",
                "form": "prefix_embeds",
                "shape": [2, DIM],
                "inputs": ["x"],
            }
        return record


def write_parameters(path: Path, values: Mapping[str, Array], model_version: int) -> None:
    """An adapter file by the engine's own writer."""
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(model_version)
    adapter.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}
    )
    adapter.export_adapter(str(path))


def rewrite(folder: Path, use_case: str, values: Mapping[str, Array], model_version: int) -> None:
    """Replace the adapter file of a use case, and its entry in the manifest."""
    path = folder / "onnxruntime" / f"{use_case}.onnx_adapter"
    write_parameters(path, values, model_version)
    record_again(folder, path)


def record_again(folder: Path, path: Path) -> None:
    """Put size and hash of a changed file into the manifest."""
    manifest = Manifest.model_validate_json((folder / "pack.json").read_text(encoding="utf-8"))
    (target,) = manifest.targets
    relative = path.relative_to(folder).as_posix()
    files = tuple(
        f.model_copy(update={"size": path.stat().st_size, "sha256": _sha256(path)})
        if f.path == relative
        else f
        for f in target.files
    )
    changed = manifest.model_copy(update={"targets": (target.model_copy(update={"files": files}),)})
    (folder / "pack.json").write_text(changed.dump(), encoding="utf-8")


def _save_graph(pack: Handmade, path: Path, data: Path) -> None:
    slots = len(RANKS)
    nodes, initializers = [], []
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [*pack.sizes, DIM])
    inputs = [x, helper.make_tensor_value_info("lora_alpha", TensorProto.FLOAT, [slots])]
    initializers.append(numpy_helper.from_array(np.zeros(slots, np.float32), "lora_alpha"))
    strengths = "lora_alpha"
    if pack.gated:
        shape = [*pack.sizes, slots]
        inputs.append(helper.make_tensor_value_info("lora_gate", TensorProto.FLOAT, shape))
        nodes.append(helper.make_node("Mul", ["lora_alpha", "lora_gate"], ["gated"]))
        strengths = "gated"
    offset = 0
    content = b""
    for layer, weight in pack.base.items():
        rank = f"lora_rank_{layer}"
        stored = TensorProto(
            name=f"{layer}.weight",
            data_type=TensorProto.FLOAT,
            dims=weight.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", data.name),
            ("offset", str(offset)),
            ("length", str(weight.nbytes)),
        ):
            stored.external_data.add(key=key, value=value)
        content += weight.tobytes()
        offset += weight.nbytes
        initializers.append(stored)
        for part, sizes, zero in (
            ("A", (DIM, rank), (DIM, 0)),
            ("B", (rank, DIM), (0, DIM)),
            ("expansion", (slots, rank), (slots, 0)),
        ):
            name = f"{layer}.{part}"
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [*sizes]))
            initializers.append(numpy_helper.from_array(np.zeros(zero, np.float32), name))
        for op, sources, output in (
            ("MatMul", ["x", f"{layer}.weight"], f"{layer}.h"),
            ("MatMul", [strengths, f"{layer}.expansion"], f"{layer}.s"),
            ("MatMul", ["x", f"{layer}.A"], f"{layer}.a"),
            ("Mul", [f"{layer}.a", f"{layer}.s"], f"{layer}.m"),
            ("MatMul", [f"{layer}.m", f"{layer}.B"], f"{layer}.l"),
            ("Add", [f"{layer}.h", f"{layer}.l"], layer),
        ):
            nodes.append(helper.make_node(op, sources, [output], name=output))
    data.write_bytes(content)
    outputs = [
        helper.make_tensor_value_info(layer, TensorProto.FLOAT, ["batch", "tokens", DIM])
        for layer in LAYERS
    ]
    graph = helper.make_graph(nodes, "handmade", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def _file(folder: Path, path: Path, role: str, use_case: str | None = None) -> dict[str, Any]:
    found = {
        "role": role,
        "path": _relative(path, folder),
        "size": path.stat().st_size,
        "sha256": _sha256(path),
    }
    return found if use_case is None else {**found, "use_case": use_case}


def _relative(path: Path, folder: Path) -> str:
    if folder in path.parents:
        return path.relative_to(folder).as_posix()
    return f"../{path.relative_to(folder.parent).as_posix()}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
