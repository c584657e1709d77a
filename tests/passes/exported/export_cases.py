"""One small net, adapters for it, and both inputs that a build takes: PEFT folders, or a graph per
use case that holds the branches.

    net = Net({"fc1": "matmul", "conv": "conv"})
    tone = Lora("tone", rank=2, alpha=4, modules=("fc1", "conv"))
    folder = Exports(tmp_path, net, [tone])
    folder.use_case("soft", {"tone": 0.5})
    build(folder.peft_config(), ...); build(folder.exported_config(), ...)

All modules read x, or image, side by side. Factors are seeded by adapter and module. Shares no code
with lora_quant but the class of its configuration.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lora_quant.config.lora_config import LoraConfig
from tests.builders import DTYPES, GraphBuilder

Array = NDArray[Any]

INPUTS, OUTPUTS, SIDE = 6, 5, 4
OPERATORS = {"matmul": "MatMul", "gemm": "Gemm", "conv1": "Conv", "conv3": "Conv"}


@dataclass(frozen=True)
class Net:
    """Modules by name, each "matmul", "gemm" (with a bias), "conv1" or "conv3"."""

    modules: Mapping[str, str]
    dtype: str = "float32"
    opaque: bool = False

    def weight(self, module: str) -> Array:
        """`[out, in, *kernel]`."""
        return self._random(module, OUTPUTS, INPUTS, *self.kernel(module))

    def kernel(self, module: str) -> tuple[int, ...]:
        return {"conv1": (1, 1), "conv3": (3, 3)}.get(self.modules[module], ())

    def factors(self, adapter: str, module: str, rank: int) -> tuple[Array, Array]:
        """A `[rank, in, *kernel]`, B `[out, rank]`."""
        a = self._random(f"{adapter} A {module}", rank, INPUTS, *self.kernel(module))
        return a, self._random(f"{adapter} B {module}", OUTPUTS, rank)

    def feeds(self, rows: int = 3) -> dict[str, Array]:
        feeds = {"x": self._random("x", rows, INPUTS)}
        if any(kind.startswith("conv") for kind in self.modules.values()):
            feeds["image"] = self._random("image", 1, INPUTS, SIDE, SIDE)
        return {n: v for n, v in feeds.items() if n in self.inputs()}

    def inputs(self) -> list[str]:
        kinds = self.modules.values()
        names = ["x"] if any(not kind.startswith("conv") for kind in kinds) else []
        return names + (["image"] if any(kind.startswith("conv") for kind in kinds) else [])

    def _random(self, what: str, *shape: int) -> Array:
        rng = np.random.default_rng(zlib.crc32(what.encode()))
        return rng.normal(size=shape).astype(DTYPES[self.dtype])


@dataclass(frozen=True)
class Lora:
    """One adapter. `ranks` and `alphas` are those of modules that deviate."""

    name: str
    rank: int
    alpha: float
    modules: Sequence[str]
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False

    def rank_at(self, module: str) -> int:
        return self.ranks.get(module, self.rank)

    def scale_at(self, module: str) -> float:
        rank = self.rank_at(module)
        alpha = self.alphas.get(module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def config(self) -> dict[str, Any]:
        """PEFT's adapter_config.json."""
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": list(self.modules),
            "rank_pattern": dict(self.ranks),
            "alpha_pattern": dict(self.alphas),
            "use_rslora": self.rslora,
        }

    def params(self) -> dict[str, Any]:
        """The adapter JSON."""
        return {
            "name": self.name,
            "rank": self.rank,
            "alpha": self.alpha,
            "target_modules": list(self.modules),
        }


@dataclass(frozen=True)
class Shape:
    """How a use case's graph holds its branches.

    style: "between" and "behind" concatenate the adapters and scale there, "chained" adds one
    branch after the other, scaled behind B. factor: what the scale constants are multiplied by.
    padding: zero ranks at the end of each branch. order: of the adapters in the ranks.
    folded: the scale is in B, and there is no Mul. run_time: the scale is the product of a constant
    and of an input ("both"), or an input alone ("alone"), or an input times a matrix ("slots").
    """

    style: str = "between"
    factor: float = 1.0
    padding: int = 0
    order: Sequence[str] | None = None
    folded: bool = False
    run_time: str = ""
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seed: str = ""


class Exports:
    """A folder with a base, adapters, and the graphs of use cases."""

    def __init__(self, folder: Path, net: Net, adapters: Sequence[Lora]) -> None:
        self.folder = folder
        self.net = net
        self.adapters = {adapter.name: adapter for adapter in adapters}
        self.use_cases: dict[str, dict[str, float]] = {"base": {}}
        self.descriptions: dict[str, Any] = {a.name: a.params() for a in adapters}
        self._graph({}, Shape()).save(folder / "base.onnx")

    def use_case(
        self, name: str, strengths: Mapping[str, float], shape: Shape | None = None
    ) -> Path:
        """Export a use case; the path of its graph."""
        self.use_cases[name] = dict(strengths)
        graph = self._graph(strengths, shape or Shape())
        return graph.save(self.folder / f"{name}.onnx")

    def checkpoint(self, name: str) -> Path:
        """The PEFT folder of an adapter."""
        adapter, folder = self.adapters[name], self.folder / f"peft_{name}"
        folder.mkdir(exist_ok=True)
        tensors = {}
        for module in adapter.modules:
            a, b = self.net.factors(name, module, adapter.rank_at(module))
            ones = (1,) * len(self.net.kernel(module))
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.reshape(*b.shape, *ones)
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(adapter.config()))
        return folder

    def peft_config(self) -> LoraConfig:
        """All use cases on the base, adapters from their folders."""
        sources = {name: str(self.checkpoint(name)) for name in self.adapters}
        return self._config(sources, exported=False)

    def exported_config(self, **descriptions: Any) -> LoraConfig:
        """A graph for every use case; adapters are described by the adapter JSON by default."""
        return self._config({**self.descriptions, **descriptions}, exported=True)

    def _config(self, sources: Mapping[str, Any], *, exported: bool) -> LoraConfig:
        def model(name: str) -> str:
            return str(self.folder / (f"{name}.onnx" if exported else "base.onnx"))

        return LoraConfig.model_validate(
            {
                "adapter": [
                    {"name": name, "lora_config": source} for name, source in sources.items()
                ],
                "use-case": [
                    {
                        "name": name,
                        "adapter_names": list(strengths),
                        "adapter_alphas": list(strengths.values()),
                        "model_name": model(name),
                    }
                    for name, strengths in self.use_cases.items()
                ],
            }
        )

    def _graph(self, strengths: Mapping[str, float], shape: Shape) -> GraphBuilder:
        graph = GraphBuilder(self.net.dtype)
        for name in self.net.inputs():
            sizes = ("rows", INPUTS) if name == "x" else (1, INPUTS, SIDE, SIDE)
            graph.input(name, sizes)
        if shape.run_time:
            graph.input("lora_alpha", (len(strengths),))
        for number, (module, kind) in enumerate(self.net.modules.items()):
            _Module(self, graph, module, kind, number).add(strengths, shape)
        return graph


class _Module:
    """Writes one module, with its branches, into a graph."""

    def __init__(
        self, exports: Exports, graph: GraphBuilder, module: str, kind: str, number: int
    ) -> None:
        self.net, self.adapters, self.graph = exports.net, exports.adapters, graph
        self.module, self.kind = module, kind
        levels = module.replace(".", "/")
        self.path = f"/n{number}" if self.net.opaque else f"/{levels}"
        self.weight = f"w{number}" if self.net.opaque else f"{module}.weight"
        self.down, self.up = ("a", "b") if self.net.opaque else ("lora_A", "lora_B")
        self.x = "image" if kind.startswith("conv") else "x"

    def add(self, strengths: Mapping[str, float], shape: Shape) -> None:
        adapters = [
            self.adapters[name]
            for name in (shape.order or strengths)
            if name in strengths
            and self.module in self.adapters[name].modules
            and self.module not in shape.skipped.get(name, ())
        ]
        groups = [[a] for a in adapters] if shape.style == "chained" else [adapters]
        groups = [group for group in groups if group]
        out = f"y_{self.module}"
        names = [f"{self.path}/add_{i}_output_0" for i in range(len(groups) - 1)] + [out]
        h = self._linear(self.weight, self.net.weight(self.module), f"{self.path}/", self.x,
                         output=out if not groups else f"{self.path}/base_output_0")  # fmt: skip
        for number, (group, y) in enumerate(zip(groups, names, strict=False)):
            h = self._branch(group, strengths, shape, h, f"{self.path}/lora_{number}", y)
        ends = () if self.x == "x" else (SIDE, SIDE)
        kernel = self.net.kernel(self.module)
        sizes = tuple(side - (kernel[0] - 1) for side in ends) if kernel else ()
        rows: int | str = "rows" if self.x == "x" else 1
        self.graph.output(out, (rows, OUTPUTS, *sizes))

    def _branch(
        self,
        group: Sequence[Lora],
        strengths: Mapping[str, float],
        shape: Shape,
        h: str,
        path: str,
        y: str,
    ) -> str:
        parts = [self.net.factors(a.name + shape.seed, self.module, a.rank_at(self.module))
                 for a in group]  # fmt: skip
        ranks = [a.shape[0] for a, _ in parts]
        values = [a.scale_at(self.module) * strengths[a.name] * shape.factor for a in group]
        if shape.run_time == "both":
            values = [a.scale_at(self.module) * shape.factor for a in group]
        a = np.concatenate([a for a, _ in parts])
        b = np.concatenate([b for _, b in parts], axis=1)
        dtype = a.dtype
        scale = np.repeat(np.array(values), ranks)
        if shape.folded:
            b = (b * scale).astype(dtype)
        pad = shape.padding
        a = np.concatenate([a, np.zeros((pad, *a.shape[1:]), dtype)])
        b = np.concatenate([b, np.zeros((b.shape[0], pad), dtype)], axis=1)
        scale = np.concatenate([scale, np.zeros(pad)]).astype(dtype)
        if len(group) == 1 and not pad:
            scale = scale[:1]
        kernel = self.net.kernel(self.module)
        low = self._linear(f"{path}.A", a, f"{path}/{self.down}/", self.x)
        b = b.reshape(*b.shape, *[1] * len(kernel))
        if shape.folded:
            up = self._linear(f"{path}.B", b, f"{path}/{self.up}/", low)
        elif shape.style == "between":
            up = self._linear(f"{path}.B", b, f"{path}/{self.up}/",
                              self._scaled(low, scale, shape, path, strengths, group))  # fmt: skip
        else:
            up = self._linear(f"{path}.B", b, f"{path}/{self.up}/", low)
            up = self._scaled(up, scale[:1], shape, path, strengths, group)
        return self.graph.node("Add", [h, up], f"{path}/Add", y)

    def _scaled(
        self,
        tensor: str,
        scale: Array,
        shape: Shape,
        path: str,
        strengths: Mapping[str, float],
        group: Sequence[Lora],
    ) -> str:
        ones = (1, 1) if self.x == "image" else ()
        graph = self.graph
        if shape.run_time == "slots":
            listed = list(strengths)
            matrix = np.zeros((len(listed), scale.size), scale.dtype)
            begin = 0
            for adapter in group:
                end = begin + adapter.rank_at(self.module)
                matrix[listed.index(adapter.name), begin:end] = adapter.scale_at(self.module)
                begin = end
            expansion = graph.constant(f"{path}.E", matrix)
            vector = graph.node("MatMul", ["lora_alpha", expansion], f"{path}/expand")
            return graph.node("Mul", [tensor, vector], f"{path}/scale")
        if shape.run_time != "alone":
            kept = scale.reshape(-1, *ones) if scale.size > 1 else scale.reshape(())
            constant = graph.constant(f"{path}.scale", kept)
            tensor = graph.node("Mul", [tensor, constant], f"{path}/scale")
        if shape.run_time:
            tensor = graph.node("Mul", [tensor, "lora_alpha"], f"{path}/strength")
        return tensor

    def _linear(
        self, name: str, weight: Array, path: str, x: str, output: str | None = None
    ) -> str:
        """The module's own operator by `[out, in, *kernel]`."""
        op = OPERATORS[self.kind]
        node = f"{path}{op}"
        if op == "MatMul":
            return self.graph.node(
                op, [x, self.graph.constant(name, weight.T.copy())], node, output
            )
        stored = self.graph.constant(name, weight)
        if op == "Conv":
            return self.graph.node(op, [x, stored], node, output,
                                   kernel_shape=list(weight.shape[2:]))  # fmt: skip
        inputs = [x, stored]
        if name == self.weight:
            bias = np.arange(OUTPUTS).astype(weight.dtype)
            inputs.append(self.graph.constant(f"{name}_bias", bias))
        return self.graph.node(op, inputs, node, output, transB=1)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a pack but its manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "pack.json"
    }
