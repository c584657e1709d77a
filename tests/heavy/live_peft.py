"""Tiny random models with PEFT adapters: exported by torch, saved by PEFT, answered by both.

Everything is seeded. Imports torch, transformers and peft only when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

Array = NDArray[Any]
LENGTH = 6
LLAMA_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """`make` returns a float32 module, `run` its answer to `inputs`; adapters are LoraConfigs."""

    make: Callable[[], Any]
    run: Callable[[Any, Any], Any]
    inputs: Callable[[], Any]
    adapters: Mapping[str, Mapping[str, Any]]


def _tokens() -> Any:
    import torch

    return torch.randint(0, 48, (1, LENGTH), generator=torch.Generator().manual_seed(5))


def _image() -> Any:
    import torch

    return torch.randn(1, 4, 10, 10, generator=torch.Generator().manual_seed(6))


def _seeded(make: Callable[[], Any]) -> Any:
    """The module with norms and biases that are not trivial."""
    import torch

    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def llama() -> Any:
    """Two layers, grouped-query attention, no biases."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.15,
        use_cache=False,
        attn_implementation="eager",
    )
    return _seeded(lambda: LlamaForCausalLM(config))


def gpt2() -> Any:
    """Conv1D: weights stored [in, out], with biases, q, k and v in one c_attn."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=48,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.15,
        use_cache=False,
        attn_implementation="eager",
    )
    return _seeded(lambda: GPT2LMHeadModel(config))


def bert() -> Any:
    """nn.Linear with biases."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=48,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        initializer_range=0.15,
        attn_implementation="eager",
    )
    return _seeded(lambda: BertModel(config, add_pooling_layer=False))


def convolutions() -> Any:
    """3 x 3 with stride and padding, 1 x 1, and a linear head: [1, 4, 10, 10] -> [1, 7]."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(4, 12, 3, stride=2, padding=1)
            self.point = nn.Conv2d(12, 10, 1, bias=False)
            self.head = nn.Linear(10, 7)

        def forward(self, x: Any) -> Any:
            hidden = torch.relu(self.point(torch.relu(self.wide(x))))
            return self.head(hidden.mean(dim=(2, 3)))

    return _seeded(Net)


def _causal(model: Any, tokens: Any) -> Any:
    import torch

    mask = torch.full((1, 1, LENGTH, LENGTH), -100.0).triu(1)
    positions = torch.arange(LENGTH).unsqueeze(0)
    return model.forward(
        input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False
    ).logits


def _encoder(model: Any, tokens: Any) -> Any:
    import torch

    mask = torch.zeros((1, 1, LENGTH, LENGTH))
    return model.forward(input_ids=tokens, attention_mask=mask).last_hidden_state


CASES: dict[str, Case] = {
    "llama": Case(
        llama,
        _causal,
        _tokens,
        {
            "a": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]},
            "b": {"r": 5, "lora_alpha": 9, "use_rslora": True, "target_modules": LLAMA_LINEARS},
            "c": {
                "r": 4,
                "lora_alpha": 6,
                "target_modules": ["o_proj", "down_proj", "k_proj"],
                "rank_pattern": {"layers.0.mlp.down_proj": 2, "k_proj": 7},
                "alpha_pattern": {"o_proj": 11},
            },
        },
    ),
    "gpt2": Case(
        gpt2,
        _causal,
        _tokens,
        {
            "a": {"r": 2, "lora_alpha": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True},
            "b": {
                "r": 6,
                "lora_alpha": 4,
                "target_modules": ["c_attn", "c_proj", "c_fc"],
                "fan_in_fan_out": True,
                "use_rslora": True,
            },
        },
    ),
    "bert": Case(
        bert,
        _encoder,
        _tokens,
        {
            "a": {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]},
            "b": {
                "r": 3,
                "lora_alpha": 4,
                "target_modules": ["key", "output.dense", "intermediate.dense"],
                "alpha_pattern": {r"layer\.1\.attention\.self\.key": 10},
            },
        },
    ),
    "convolutions": Case(
        convolutions,
        lambda model, image: model.forward(image),
        _image,
        {
            "a": {"r": 3, "lora_alpha": 5, "target_modules": ["wide", "head"]},
            "b": {"r": 4, "lora_alpha": 2, "target_modules": ["wide", "point", "head"]},
        },
    ),
}


def export(case: Case, exporter: str, path: Path) -> Path:
    """Write the base graph, static shapes, input `x`, output `y`."""
    import torch

    model = case.make()

    class Plain(torch.nn.Module):
        """The model's own submodules under their own names, with one input."""

        def __init__(self) -> None:
            super().__init__()
            self._modules.update(model._modules)

        def forward(self, x: Any) -> Any:
            return case.run(model, x)

    torch.onnx.export(
        Plain().eval(),
        (case.inputs(),),
        str(path),
        dynamo=exporter == "dynamo",
        input_names=["x"],
        output_names=["y"],
        **({"verbose": False} if exporter == "dynamo" else {"opset_version": 17}),
    )
    return path


def save_adapters(case: Case, folder: Path) -> None:
    """Write every adapter with random A and B as `save_pretrained` does."""
    import torch
    from peft import LoraConfig, get_peft_model

    for seed, (name, settings) in enumerate(case.adapters.items(), start=1):
        model = get_peft_model(case.make(), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, weight in sorted(model.named_parameters(), key=lambda item: item[0]):
                if "lora_" in key:
                    weight.copy_(0.15 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(str(folder / name), save_embedding_layers=False)


def answer(case: Case, folder: Path, strengths: Mapping[str, float]) -> tuple[Array, float]:
    """PEFT's output with these adapters at these strengths, and PEFT's own rounding.

    The second figure is how far the output moves when PEFT merges the same adapters into W: the
    same sums in float32, in another order.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    def run(model: Any) -> Array:
        with torch.no_grad():
            return np.ascontiguousarray(case.run(model.eval(), case.inputs()).numpy())

    if not strengths:
        return run(case.make()), 0.0
    names = list(strengths)
    model = PeftModel.from_pretrained(case.make(), str(folder / names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(folder / name), adapter_name=name)
    model.base_model.set_adapter(names)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.scaling:
                module.set_scale(name, strengths[name])
    plain = run(model.base_model.model)
    model.base_model.merge_adapter(names)
    return plain, float(np.abs(run(model.base_model.model) - plain).max())


def write_config(
    folder: Path, graph: Path, adapters: list[str], use_cases: Mapping[str, Mapping[str, float]]
) -> Path:
    """lora_config.yaml of a float build, without a map of attach points."""
    document = {
        "adapter": [{"name": name, "lora_config": str(folder / name)} for name in adapters],
        "use-case": [
            {
                "name": name,
                "adapter_names": list(strengths),
                "adapter_alphas": list(strengths.values()),
                "model_name": str(graph),
            }
            for name, strengths in use_cases.items()
        ],
    }
    path = folder / "lora_config.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path
