"""What is measured when use cases switch: four forms of one model, each with the same adapters.

base      without branches
open      target onnxruntime: ranks as each adapter has them, none with no adapter
padded    one rank for all, zeros beyond an adapter's own: the graph of target qairt, whose weights
          are made inputs with zeros as defaults
olive     what Olive makes (see make_olive.py): a rank that all modules share, none with no adapter

Adapters of ranks 4, 16 and 32 on every linear; each is a use case.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from case_adapters import write_adapter
from decoder_chain import Chain, write_chain
from make_olive import FF, HEADS, HIDDEN, LAYERS, OLIVE, VOCAB
from numpy.typing import NDArray
from onnx import helper
from safetensors.numpy import load_file
from shape import Shape

from lora_quant.api import build
from lora_quant.config.options import BuildOptions

HERE = Path(__file__).parent
DATA = HERE / "data" / "switching"
RANKS = (4, 16, 32)
CHAIN = Chain(32, 1024)
DECODER = Shape(LAYERS, HIDDEN, FF, HEADS, HEADS, VOCAB, tied=False)

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Model:
    """A base model. `feeds` gives inputs for that many new tokens."""

    name: str
    title: str
    shape: Chain | Shape
    feeds: Callable[[int], Feeds]
    module: Callable[[str], str]

    @property
    def folder(self) -> Path:
        """Where it lies, with its adapters and all forms."""
        return DATA / self.name


def chain_feeds(tokens: int) -> Feeds:
    """x [tokens, width]."""
    rng = np.random.default_rng(tokens)
    return {"x": rng.standard_normal((tokens, CHAIN.width), dtype=np.float32)}


def decoder_feeds(tokens: int) -> Feeds:
    """`tokens` new tokens after 32 that are in the cache."""
    past = 32
    rng = np.random.default_rng(tokens)
    feeds: Feeds = {
        "input_ids": rng.integers(0, VOCAB, (1, tokens)),
        "attention_mask": np.ones((1, past + tokens), np.int64),
    }
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            shape = (1, HEADS, past, DECODER.head)
            feeds[f"past_key_values.{layer}.{kind}"] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


MODELS = (
    Model(
        "chain",
        f"{CHAIN.layers} linears of {CHAIN.width} x {CHAIN.width}",
        CHAIN,
        chain_feeds,
        lambda name: name,
    ),
    Model(
        "decoder",
        f"Llama of {LAYERS} layers, hidden {HIDDEN}, as the GenAI builder writes it",
        DECODER,
        decoder_feeds,
        lambda name: name.replace(".attn.", ".self_attn."),
    ),
)


class NotMadeError(Exception):
    """A form that cannot be made here; the text says what is missing."""


def prepare(model: Model, olive: str | None) -> None:
    """Make what is missing of a model; `olive` is a Python that has Olive and the GenAI builder."""
    folder = model.folder
    for seed, rank in enumerate(RANKS):
        if not (folder / "adapters" / f"r{rank}").is_dir():
            write_adapter(folder / "adapters" / f"r{rank}", model.shape, rank, "F32", seed)
    if isinstance(model.shape, Chain) and not (folder / "model").is_dir():
        write_chain(model.shape, folder / "model")
    if olive is not None and not (folder / OLIVE / "model.onnx").is_file():
        script = str(HERE / "make_olive.py")
        subprocess.run([olive, script, model.name, str(folder)], check=True)
    if not (folder / "model" / "model.onnx").is_file():
        raise NotMadeError(
            f"{model.title}: not measured; its graph is written by onnxruntime-genai's builder: "
            "give --olive PYTHON"
        )
    _build(folder)


def _build(folder: Path) -> None:
    """The pack, always new: it is what is measured."""
    lines = ["adapter:"]
    lines += [f"  - {{name: r{rank}, lora_config: adapters/r{rank}}}" for rank in RANKS]
    lines.append("use-case:")
    lines += [
        f"  - {{name: r{rank}, adapter_names: [r{rank}], adapter_alphas: [1.0], "
        "model_name: model/model.onnx}"
        for rank in RANKS
    ]
    (folder / "lora_config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.rmtree(folder / "pack", ignore_errors=True)  # it holds files that are no part of it
    options = BuildOptions(targets=("onnxruntime", "qairt"))
    build(folder / "lora_config.yaml", folder / "pack", options)


@dataclass(frozen=True)
class Form:
    """A graph, and the adapter file of each rank."""

    name: str
    graph: Path
    adapters: dict[int, Path]


def forms(model: Model) -> Iterator[Form]:
    """All forms that are there, the base first."""
    pack = model.folder / "pack"
    yield Form("base", model.folder / "model" / "model.onnx", {})
    yield Form(
        "open",
        pack / "onnxruntime" / "model.onnx",
        {rank: pack / "onnxruntime" / f"r{rank}.onnx_adapter" for rank in RANKS},
    )
    yield _padded(pack)
    olive = model.folder / OLIVE / "model.onnx"
    if olive.is_file():
        yield Form("olive", olive, dict(_olive_adapters(model, olive)))


def _padded(pack: Path) -> Form:
    """The qairt graph with its weights and strengths as inputs with defaults, written beside it."""
    source = pack / "qairt"
    graph = source / "open.onnx"
    model = onnx.load(str(source / "model.onnx"), load_external_data=False)
    names = (source / "lora_tensor_names.txt").read_text(encoding="utf-8").split()
    stored = {item.name: item for item in model.graph.initializer}
    for name in names:
        item = stored[name]
        model.graph.input.append(
            helper.make_tensor_value_info(name, item.data_type, list(item.dims))
        )
    (alpha,) = [v for v in model.graph.input if v.name == "lora_alpha"]
    slots = alpha.type.tensor_type.shape.dim[0].dim_value
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.zeros(slots, np.float32), "lora_alpha")
    )
    onnx.save(model, str(graph))
    alphas = np.eye(1, slots, dtype=np.float32)[0]
    adapters = {}
    for rank in RANKS:
        weights = load_file(source / f"r{rank}" / "lora_weights.safetensors")
        adapters[rank] = source / f"r{rank}.onnx_adapter"
        _write_adapter(adapters[rank], {**weights, "lora_alpha": alphas})
    return Form("padded", graph, adapters)


def _olive_adapters(model: Model, graph: Path) -> Iterator[tuple[int, Path]]:
    """Every adapter in the names of Olive's graph; its own file holds the one of rank 16."""
    inputs = onnx.load(str(graph), load_external_data=False).graph.input
    names = {value.name for value in inputs if ".lora_" in value.name}
    for rank in RANKS:
        folder = model.folder / "adapters" / f"r{rank}"
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        stored = load_file(folder / "adapter_model.safetensors")
        values = {}
        for name in names:
            key = model.module(name).replace(".MatMul.weight", ".weight")
            scale = config["lora_alpha"] / config["r"] if ".lora_B." in name else 1.0
            values[name] = np.ascontiguousarray(
                stored[f"base_model.model.{key}"].T * np.float32(scale)
            )
        path = graph.parent / f"r{rank}.onnx_adapter"
        _write_adapter(path, values)
        yield rank, path


def _write_adapter(path: Path, values: dict[str, NDArray[Any]]) -> None:
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    held = {n: onnxruntime.OrtValue.ortvalue_from_numpy(v) for n, v in values.items()}
    file.set_parameters(held)
    file.export_adapter(str(path))
