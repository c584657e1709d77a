"""Make Olive's graph of a case, and for the decoder the base graph that all others start from.

    PYTHON benchmarks/make_olive.py chain benchmarks/data/switching/chain
    PYTHON benchmarks/make_olive.py decoder benchmarks/data/switching/decoder

PYTHON has olive-ai 0.13; `decoder` also needs torch, transformers 5, peft and onnxruntime-genai.
Olive cannot add branches: it takes them out of a graph into which an adapter was exported. For the
decoder the GenAI model builder writes that graph, with q, k and v apart where its base has them in
one product; for the chain this script writes it, with the builder's names. Then `olive
generate-adapter` makes the adapter's tensors inputs with one symbolic rank.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

OLIVE = "olive"
MADE_WITH = "made_with.txt"
PACKAGES = ("olive-ai", "onnxruntime-genai", "onnx")
LAYERS, HIDDEN, FF, HEADS, VOCAB = 4, 512, 1408, 8, 1024


def olive(baked: Path, output: Path) -> None:
    """`output/model.onnx` from a graph with an adapter in it."""
    environment = {**os.environ, "CI": "true", "OLIVE_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory() as work:  # Olive leaves a cache where it runs
        command = [sys.executable, "-m", "olive", "generate-adapter"]
        command += ["-m", str(baked.resolve()), "-o", str(output.resolve())]
        subprocess.run(command, check=True, capture_output=True, cwd=work, env=environment)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    (output / MADE_WITH).write_text(", ".join(versions) + "\n", encoding="utf-8")


def make_chain(folder: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper
    from safetensors.numpy import load_file

    model = onnx.load(str(folder / "model" / "model.onnx"))
    stored = load_file(folder / "adapters" / "r16" / "adapter_model.safetensors")
    scale = np.float32(_scale(folder / "adapters" / "r16"))
    nodes = []
    for node in model.graph.node:
        place = node.name.removesuffix("/MatMul")
        module = node.input[1].removesuffix(".weight")
        (output,) = node.output
        node.output[0] = f"{place}/base_output_0"
        nodes.append(node)
        current = node.input[0]
        for side, factor in (("lora_A", np.float32(1)), ("lora_B", scale)):
            name = f"{module}.{side}.MatMul.weight"
            values = stored[f"base_model.model.{module}.{side}.weight"].T * factor
            model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(values), name)
            )
            result = f"{place}/{side}/MatMul/output_0"
            nodes.append(
                helper.make_node("MatMul", [current, name], [result], name=f"{place}/{side}/MatMul")
            )
            current = result
        nodes.append(
            helper.make_node("Add", [node.output[0], current], [output], name=f"{place}/lora/Add")
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "model.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="model.data")
        olive(path, folder / OLIVE)


def make_decoder(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "hf"
        _hugging_face(source)
        build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
        build += ["-p", "fp32", "-e", "cpu", "-c", str(Path(work) / "cache"), "-o"]
        _run([*build, str(folder / "model")])
        adapter = (folder / "adapters" / "r16").resolve()
        _run([*build, f"{work}/baked", "--extra_options", f"adapter_path={adapter}"])
        olive(Path(work) / "baked" / "model.onnx", folder / OLIVE)


def _hugging_face(folder: Path) -> None:
    """A random Llama with a tokenizer, as the builder reads it."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="t0", bos_token="t1", eos_token="t2"
    ).save_pretrained(str(folder))


def _run(command: list[str]) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def _scale(adapter: Path) -> float:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return config["lora_alpha"] / config["r"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", choices=("chain", "decoder"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"chain": make_chain, "decoder": make_decoder}[arguments.case](arguments.folder)
