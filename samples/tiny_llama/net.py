"""The tiny Llama of the sample: weights, ONNX export and adapter loading, shared by the scripts.

Everything is seeded. The graph is static: ``input_ids`` int64 [1, 16] -> ``logits`` float32
[1, 16, 256]; no KV cache, the causal mask and the rotary tables are constants.
"""

import itertools
import os
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEQUENCE = 16
VOCAB = 256

# One entry per use case: adapter name -> strength.
USE_CASES: dict[str, dict[str, float]] = {
    "base": {},
    "tone": {"tone": 1.0},
    "legal": {"legal": 1.0},
    "style": {"style": 1.0},
    "both": {"tone": 1.0, "legal": 0.6},
}


def fix_environment() -> None:
    """Make runs repeatable: PEFT writes sets, whose order depends on the hash seed."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", ORT_DISABLE_TELEMETRY="1")
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    warnings.filterwarnings("ignore")


def base_model():
    """Return the seeded random LlamaForCausalLM (2 layers, 4 heads, 2 KV heads)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(1234)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.12,
        tie_word_embeddings=False,
        attn_implementation="eager",
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    model.name_or_path = "tiny-llama"
    return model


def prompts(count: int, seed: int):
    """Return ``count`` random prompts, int64 [count, 16]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (count, SEQUENCE), generator=generator)


def export(llama, path: Path) -> None:
    """Export a (possibly adapted) LlamaForCausalLM by the TorchScript exporter to ``path``."""
    import onnx
    import torch

    class Plain(torch.nn.Module):
        """input_ids -> logits with a constant causal mask."""

        def __init__(self):
            super().__init__()
            self.model, self.lm_head = llama.model, llama.lm_head

        def forward(self, input_ids):
            length = input_ids.shape[1]
            mask = torch.full((1, 1, length, length), -100.0).triu(1)
            hidden = self.model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=torch.arange(length).unsqueeze(0),
                use_cache=False,
            )
            return self.lm_head(hidden.last_hidden_state)

    torch.onnx.export(
        Plain().eval(),
        (prompts(1, 0),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input_ids"],
        output_names=["logits"],
    )
    model = onnx.load(str(path))
    name_linear_weights(model.graph)
    onnx.save(model, str(path))


def name_linear_weights(graph) -> None:
    """Rename ``onnx::MatMul_123`` to the parameter's path, ``model.layers.0.mlp.up_proj.weight``.

    The exporter numbers transposed weights, and the numbers differ between two exports. Graphs
    that share a base need stable names. The layout stays that of MatMul, [in, out].
    """
    names = {}
    for node in graph.node:
        if node.op_type == "MatMul" and re.match(r"onnx::MatMul_\d+$", node.input[1]):
            names[node.input[1]] = module_path(node.name) + ".weight"
            node.input[1] = names[node.input[1]]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def module_path(node_name: str) -> str:
    """``/layer2/layer2.0/downsample/Conv`` -> ``layer2.0.downsample``: AIMET's rule."""
    parts = [*node_name.split("/")[1:-1], ""]
    return ".".join(
        part
        for part, following in itertools.pairwise(parts)
        if not ("." in following and part in following)
    )


def peft_model(names=()):
    """Return a fresh PeftModel with the adapters ``names`` read from ``adapters/``."""
    from peft import PeftModel

    names = list(names)
    model = PeftModel.from_pretrained(
        base_model(), str(HERE / "adapters" / names[0]), adapter_name=names[0]
    )
    for name in names[1:]:
        model.load_adapter(str(HERE / "adapters" / name), adapter_name=name)
    return model.eval()
