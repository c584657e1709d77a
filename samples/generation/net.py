"""The tiny Llama of the generation sample: weights, tokenizer and adapters, all seeded.

The vocabulary is that of a small byte-pair tokenizer, so that requests are text. The weights are
random: the answers are gibberish, but each use case has its own.
"""

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
VOCAB = 160
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# One entry per use case: adapter name -> strength.
USE_CASES: dict[str, dict[str, float]] = {
    "base": {},
    "tone": {"tone": 1.0},
    "legal": {"legal": 1.0},
    "style": {"style": 1.0},
    "mix": {"tone": 0.7, "legal": 0.5, "style": 1.2},
}

TEXT = """
One graph answers many requests, and each request names the use case that it wants.
An adapter is a small file: it adds a few ranks to the weights of a large model.
The base model does not change when the adapter does, so switching is quick.
Please write a short and friendly letter to the people who live next door.
Read the contract and tell me which of the terms are not in our favour.
Tell the story again, but in the style of an old sea captain who has seen it all.
What happens when two adapters are active at the same time, with different strengths?
"""


def fix_environment() -> None:
    """Make runs repeatable: PEFT writes sets, whose order depends on the hash seed."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", ORT_DISABLE_TELEMETRY="1")
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    warnings.filterwarnings("ignore")


def tokenizer():
    """A byte-pair tokenizer trained on TEXT: 0 is unknown, 1 begins and 2 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    found.train_from_iterator(TEXT.strip().splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=found, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def base_model():
    """Return the seeded random LlamaForCausalLM (2 layers, 4 heads, 2 KV heads)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(4321)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    model.name_or_path = "tiny-llama"
    return model


def adapter_configs():
    """Adapter name -> its PEFT configuration and the spread of its random B."""
    from peft import LoraConfig

    patterns = LoraConfig(
        r=6,
        lora_alpha=6,
        target_modules=["q_proj", "o_proj", "down_proj"],
        rank_pattern={"layers.0.mlp.down_proj": 3, "layers.1.self_attn.q_proj": 10},
        alpha_pattern={"o_proj": 12},
    )
    return {
        "tone": (LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), 0.15),
        "legal": (LoraConfig(r=16, lora_alpha=8, use_rslora=True, target_modules=LINEARS), 0.04),
        "style": (patterns, 0.1),
    }


def peft_model(model, names):
    """`model` with the adapters `names` read from ``adapters/``; it is changed in place."""
    from peft import PeftModel

    folder = HERE / "adapters"
    first, *others = names
    adapted = PeftModel.from_pretrained(model, str(folder / first), adapter_name=first)
    for name in others:
        adapted.load_adapter(str(folder / name), adapter_name=name)
    return adapted.eval()


def with_use_case(model, strengths: dict[str, float]):
    """`model` as PEFT runs it with all adapters of a use case active, each at its strength.

    PEFT sums the active adapters, so scaling each of them is exact.
    """
    if not strengths:
        return model
    from peft.tuners.lora import LoraLayer

    adapted = peft_model(model, list(strengths))
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            for name, strength in strengths.items():
                if name in module.scaling:
                    module.set_scale(name, strength)
    adapted.base_model.set_adapter(list(strengths))
    return adapted.eval()
