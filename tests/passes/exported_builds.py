"""Builds of one module whose use cases come as graphs of their own, in several forms.

    x [1, 4, 8]  ->  /q/MatMul [8, 6]  ->  (bias)  ->  branches  ->  Relu  ->  out

Names of branch tensors tell nothing: `1.A`, `1.B`, `1.s`, `1.a`, `1.m`, `1.l`, `1.y` are those of
the first branch. Every adapter has lora_alpha = 2 r.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from lora_quant.api import build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions
from tests.builders import GraphBuilder
from tests.passes.kind_builds import SECTIONS, Built, activation, weight
from tests.sample import Document

Array = NDArray[Any]
INPUTS, OUTPUTS = 8, 6
FACTOR = 2.0
H, Q = "/q/MatMul_output_0", "q"
# Our names of a branch at the module.
OURS = {
    "A": "q.lora_A.weight",
    "B": "q.lora_B.weight",
    "a": "/q/lora_A/MatMul_output_0",
    "m": "/q/lora_scale/Mul_output_0",
    "l": "/q/lora_B/MatMul_output_0",
}


@dataclass(frozen=True)
class Own:
    """How a use case's graph holds its adapters.

    `branches`: the adapters of each, several with their ranks side by side; None is one branch for
    each. `padding`: ranks of zeros at the tail. `place`: where the constant scale is. `strengths`:
    an input that scales as well, alone ("input") or by a matrix of lora_alpha / r ("matrix").
    `stored_out_in`: factors are stored as Gemm reads them. `cast_behind`: what PEFT leaves behind
    the last sum, a Cast `c` to the type that it has. `unread`: a Constant that nothing reads.
    """

    branches: Sequence[Sequence[str]] | None = None
    padding: int = 0
    place: Literal["between", "behind", "none"] = "between"
    strengths: Literal["", "input", "matrix"] = ""
    bias_behind: bool = False
    stored_out_in: bool = False
    cast_behind: bool = False
    unread: bool = False


def factors(adapter: str, rank: int) -> tuple[Array, Array]:
    """A `[8, r]` and B `[r, 6]` of an adapter."""
    random = np.random.default_rng(sum(adapter.encode()))
    shapes = (INPUTS, rank), (rank, OUTPUTS)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return a, b


def graph(
    own: Own | None, ranks: Mapping[str, int], mix: Mapping[str, float], *, bias: bool = False
) -> onnx.ModelProto:
    """The base for `own` None, else the graph of a use case of adapters with strengths."""
    made = GraphBuilder(seed=3)
    x = made.input("x", (1, 4, INPUTS))
    last = made.matmul(
        "/q/MatMul", x, in_features=INPUTS, out_features=OUTPUTS, weight="q.weight", output=H
    )
    is_bias_behind = own is not None and own.bias_behind
    if bias and not is_bias_behind:
        last = made.node("Add", [made.weight("q.bias", OUTPUTS), last], "/q/Add")
    if own is not None:
        listed = own.branches or [[name] for name in mix]
        for number, names in enumerate(listed, start=1):
            last = _branch(made, str(number), x, last, own, {n: ranks[n] for n in names}, mix)
        if own.cast_behind:
            last = made.node("Cast", [last], "c", "c", to=TensorProto.FLOAT)
        if own.unread:
            made.node("Constant", [], "unread", "unread", value_float=2.0)
    if bias and is_bias_behind:
        last = made.node("Add", [made.weight("q.bias", OUTPUTS), last], "/q/Add")
    out = made.node("Relu", [last], "/act/Relu", "out")
    made.output(out, (1, 4, OUTPUTS))
    return made.model()


def _branch(
    made: GraphBuilder,
    name: str,
    x: str,
    h: str,
    own: Own,
    ranks: Mapping[str, int],
    mix: Mapping[str, float],
) -> str:
    pairs = [factors(adapter, rank) for adapter, rank in ranks.items()]
    a = np.concatenate([pair[0] for pair in pairs], axis=1)
    b = np.concatenate([pair[1] for pair in pairs])
    strength = {n: 1.0 if own.strengths else mix[n] for n in ranks}
    s = np.concatenate([np.full(r, FACTOR * strength[n], np.float32) for n, r in ranks.items()])
    a, b = np.pad(a, ((0, 0), (0, own.padding))), np.pad(b, ((0, own.padding), (0, 0)))
    s = np.pad(s, (0, own.padding))
    low = _product(made, f"{name}.A", a, x, f"{name}.a", own)
    if own.strengths:
        slots = made.input("strengths", (len(mix),)) if name == "1" else "strengths"
    if own.strengths == "matrix":
        order = list(mix)
        matrix = np.zeros((len(mix), s.size), np.float32)
        begin = 0
        for adapter, rank in ranks.items():
            matrix[order.index(adapter), begin : begin + rank] = FACTOR
            begin += rank
        scale = made.node(
            "MatMul", [slots, made.constant(f"{name}.E", matrix)], f"{name}.s", f"{name}.s"
        )
        low = made.node("Mul", [low, scale], f"{name}.m", f"{name}.m")
    elif own.strengths == "input":
        low = made.node("Mul", [low, slots], f"{name}.m", f"{name}.m")
    elif own.place == "between":
        low = made.node("Mul", [low, made.constant(f"{name}.s", s)], f"{name}.m", f"{name}.m")
    if own.place != "behind":
        update = _product(made, f"{name}.B", b, low, f"{name}.l", own)
    else:
        update = _product(made, f"{name}.B", b, low, f"{name}.ba", own)
        update = made.node(
            "Mul", [update, made.constant(f"{name}.s", s[:1])], f"{name}.l", f"{name}.l"
        )
    return made.node("Add", [h, update], f"{name}.y", f"{name}.y")


def _product(
    made: GraphBuilder, weight_name: str, values: Array, x: str, output: str, own: Own
) -> str:
    stored = made.constant(weight_name, values.T.copy() if own.stored_out_in else values)
    if own.stored_out_in:
        stored = made.node("Transpose", [stored], f"{weight_name}.T", perm=[1, 0])
    return made.node("MatMul", [x, stored], output, output)


Entries = Mapping[str, Document]
"""Entries of version 1.0.0 by tensor name."""


def base_entries(*, bias: bool = False) -> dict[str, Document]:
    """Grids of the base: x, h (and what a bias makes of it), out and the weight."""
    outputs = {"x": activation(-3.0, 3.0), H: activation(-4.0, 5.0), "out": activation(0.0, 5.0)}
    if bias:
        outputs["/q/Add_output_0"] = activation(-4.5, 5.5)
    return {**outputs, "q.weight": weight([0.01 * n for n in range(1, OUTPUTS + 1)])}


def document(found: Entries, **header: Any) -> Document:
    """A file of version 1.0.0; names with `weight`, or that end in .A or .B, are parameters."""
    result: Document = {"version": "1.0.0", **{section: [] for section in SECTIONS}, **header}
    for name, entry in found.items():
        is_param = "weight" in name or name.endswith((".A", ".B"))
        result[SECTIONS[is_param]].append({"name": name, **entry})
    return result


def described(ranks: Mapping[str, int]) -> list[Document]:
    """Adapters without weights of their own, by the vendor's adapter JSON."""
    return [
        {
            "name": name,
            "lora_config": {
                "name": name,
                "rank": rank,
                "alpha": FACTOR * rank,
                "target_modules": [Q],
            },
        }
        for name, rank in ranks.items()
    ]


def build_graphs(
    folder: Path,
    adapters: Sequence[Document],
    use_cases: Mapping[str, tuple[Path, Mapping[str, float]]],
    files: Mapping[str, Entries | Document],
    *,
    lists: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> Built:
    """Build use cases, graph and strengths each. `files`: entries, or a whole document, of some."""
    items: list[dict[str, Any]] = []
    for name, (path, mix) in use_cases.items():
        names, strengths = list(mix), list(mix.values())
        item = {"name": name, "adapter_names": names, "adapter_alphas": strengths}
        item["model_name"] = str(path)
        if name in files:
            found = files[name]
            text = json.dumps(found if "version" in found else document(found))
            (folder / f"{name}.encodings").write_text(text, encoding="utf-8")
            item["quant_overrides"] = str(folder / f"{name}.encodings")
        if lists and name in lists:
            (folder / f"{name}.txt").write_text("\n".join(lists[name]), encoding="utf-8")
            item["quant_updatable_tensors"] = str(folder / f"{name}.txt")
        items.append(item)
    config = LoraConfig.model_validate({"adapter": adapters, "use-case": items})
    return Built(build(config, folder / "out", BuildOptions(**options)))


def build_exported(
    folder: Path,
    use_cases: Mapping[str, tuple[Own, Mapping[str, float]]],
    files: Mapping[str, Entries | Document],
    ranks: Mapping[str, int],
    *,
    adapters: Sequence[Document] | None = None,
    bias: bool = False,
    base_file: bool = True,
    **more: Any,
) -> Built:
    """Build use cases, each with a graph of its own, and the use case `base`.

    The encodings of the base are base_entries, unless `base_file` is False. `adapters` replaces the
    descriptions; `more` is passed on to build_graphs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graphs: dict[str, tuple[Path, Mapping[str, float]]] = {}
    for name, (own, mix) in {"base": (None, {}), **use_cases}.items():
        path = folder / f"{name}.onnx"
        onnx.save(graph(own, ranks, mix, bias=bias), str(path))
        graphs[name] = (path, mix)
    base = {"base": base_entries(bias=bias)} if base_file else {}
    return build_graphs(folder, adapters or described(ranks), graphs, {**base, **files}, **more)
