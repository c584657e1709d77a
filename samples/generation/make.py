"""Write the generation sample: two GenAI model folders, three adapters, and what PEFT answers.

Needs torch 2.13.0, transformers 5.23.0, peft 0.21.2, onnx 1.23.2 and onnxruntime-genai 0.18.0,
whose model builder writes the graphs. Seeded; the same bytes come out of every run.

- ``model_fp32/``, ``model_int4/``: one tiny Llama as ONNX Runtime GenAI's builder writes it, with
  genai_config.json and tokenizer. The int4 one holds MatMulNBits with float activations
  (accuracy level 1): with the builder's default of 4 the kernels would round activations to 8 bits,
  and no reference outside of ONNX Runtime could be exact.
- ``adapters/tone``: rank 4, q_proj and v_proj.
- ``adapters/legal``: rank 16, rsLoRA, all seven linears of a layer.
- ``adapters/style``: ranks 6, 3 and 10, and two values of alpha, by patterns.
- ``lora_config.yaml``, ``lora_config_int4.yaml``: the use cases, on either graph.
- ``expected.json``: the requests, and PEFT's greedy tokens per graph, use case and request. For the
  int4 graph PEFT runs the model with the weights that its 4-bit codes stand for.

Requests are kept only if the best token is ahead of the second by MARGIN at every step of every use
case on both graphs. Float kernels differ by 1e-5 here, so no correct engine picks another token.
"""

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from net import (
    HERE,
    TEXT,
    USE_CASES,
    adapter_configs,
    base_model,
    fix_environment,
    tokenizer,
    with_use_case,
)

MARGIN = 1e-3
TOKENS = 16  # generated per request
REQUESTS = 4
COMPANIONS = ("genai_config.json", "tokenizer.json", "tokenizer_config.json")
PRECISIONS = {"fp32": [], "int4": ["--extra_options", "accuracy_level=1"]}


def make_models() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "hf"
        base_model().save_pretrained(str(source))
        tokenizer().save_pretrained(str(source))
        settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "GPT2Tokenizer"  # GenAI knows tokenizers by class
        (source / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        for precision, options in PRECISIONS.items():
            built = Path(temporary) / precision
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
            command += ["-i", str(source), "-o", str(built), "-p", precision, "-e", "cpu"]
            command += ["-c", str(Path(temporary) / "cache"), *options]
            subprocess.run(command, check=True, capture_output=True)
            folder = HERE / f"model_{precision}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in ("model.onnx", "model.onnx.data", *COMPANIONS):
                shutil.copyfile(built / name, folder / name)


def make_adapters() -> None:
    import torch
    from peft import get_peft_model

    shutil.rmtree(HERE / "adapters", ignore_errors=True)
    for seed, (name, (config, spread)) in enumerate(adapter_configs().items(), start=1):
        config.task_type = "CAUSAL_LM"
        model = get_peft_model(base_model(), config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, weight in sorted(model.named_parameters(), key=lambda item: item[0]):
                if "lora_" in key:
                    std = weight.shape[1] ** -0.5 if "lora_A" in key else spread
                    weight.copy_(std * torch.randn(weight.shape, generator=generator))
        folder = HERE / "adapters" / name
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink()


def int4_model():
    """The base model with the weights that the codes of the int4 graph stand for.

    MatMulNBits: B uint8 [N, blocks, block / 2], low nibble first, and one scale per block
    [N, blocks]; without zero points a code of 8 is zero.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(str(HERE / "model_int4" / "model.onnx")).graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    weights = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            inputs = [name for name in node.input if name]
            assert len(inputs) == 3, f"{node.name} has zero points or more"
            packed, scales = (torch.tensor(stored[name]) for name in inputs[1:])
            codes = torch.stack([packed & 15, packed >> 4], -1).flatten(2).float() - 8
            values = (codes * scales.reshape(codes.shape[:2])[..., None]).flatten(1)
            size = next(item.i for item in node.attribute if item.name == "K")
            weights[node.input[1]] = values[:, :size]
    model = base_model()
    heads, key_values = 64, 32
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            place = f"model.layers.{number}"
            joined = weights.pop(f"{place}.attn.qkv_proj.MatMul.weight_Q4")
            parts = joined.split([heads, key_values, key_values])
            for name, values in zip("qkv", parts, strict=True):
                getattr(layer.self_attn, f"{name}_proj").weight.copy_(values)
            values = weights.pop(f"{place}.attn.o_proj.MatMul.weight_Q4")
            layer.self_attn.o_proj.weight.copy_(values)
            for name in ("gate_proj", "up_proj", "down_proj"):
                values = weights.pop(f"{place}.mlp.{name}.MatMul.weight_Q4")
                getattr(layer.mlp, name).weight.copy_(values)
        model.lm_head.weight.copy_(weights.pop("lm_head.MatMul.weight_Q4"))
    assert not weights, f"weights without a place: {sorted(weights)}"
    return model


def answer(model, prompt: list[int]) -> tuple[list[int], float]:
    """PEFT's greedy tokens, and the smallest lead of the best logit over the second."""
    import torch

    result = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    leads = [best - second for best, second in (row[0].topk(2).values for row in result.logits)]
    return result.sequences[0, len(prompt) :].tolist(), float(min(leads))


def candidates():
    """Beginnings of the sentences of TEXT, from all sentences in turn, with the sentence."""
    sentences = TEXT.strip().splitlines()
    for words, sentence in itertools.product(range(3, 12), sentences):
        yield sentence, " ".join(sentence.split()[:words])


def make_expected() -> None:
    models = {
        (precision, name): with_use_case(make(), strengths)
        for precision, make in (("fp32", base_model), ("int4", int4_model))
        for name, strengths in USE_CASES.items()
    }
    words = tokenizer()
    end = words.eos_token_id
    requests: list[dict] = []
    used = set()
    for sentence, text in candidates():
        if sentence in used:
            continue
        prompt = words(text)["input_ids"]
        answers = {key: answer(model, prompt) for key, model in models.items()}
        lead = min(found[1] for found in answers.values())
        whole = all(len(tokens) == TOKENS and end not in tokens for tokens, _ in answers.values())
        distinct = len({tuple(answers["fp32", name][0]) for name in USE_CASES}) == len(USE_CASES)
        if lead > MARGIN and whole and distinct:
            print(f"{text!r}: {lead:.1e} between best and second")
            tokens = {
                precision: {name: answers[precision, name][0] for name in USE_CASES}
                for precision in PRECISIONS
            }
            used.add(sentence)
            requests.append({"text": text, "prompt": prompt, "margin": lead, "tokens": tokens})
        if len(requests) == REQUESTS:
            break
    assert len(requests) == REQUESTS, "too few requests have clear answers: try another seed"
    (HERE / "expected.json").write_text(_json(requests), encoding="utf-8")


def _json(requests: list[dict]) -> str:
    """One line per list of tokens."""
    lines = []
    for request in requests:
        tokens = ",\n".join(
            f'      "{precision}": {{\n'
            + ",\n".join(f'        "{name}": {values}' for name, values in found.items())
            + "\n      }"
            for precision, found in request["tokens"].items()
        )
        lines.append(
            f'    {{\n      "text": {json.dumps(request["text"])},\n'
            f'      "prompt": {request["prompt"]},\n'
            f'      "margin": {request["margin"]:.2g},\n{tokens}\n    }}'
        )
    return '{\n  "requests": [\n' + ",\n".join(lines) + "\n  ]\n}\n"


def check_graphs() -> None:
    """ONNX Runtime on the built graphs gives PyTorch's logits: both are the same model."""
    import numpy as np
    import onnxruntime
    import torch

    requests = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))["requests"]
    for precision, make in (("fp32", base_model), ("int4", int4_model)):
        session = onnxruntime.InferenceSession(str(HERE / f"model_{precision}" / "model.onnx"))
        model = make()
        for request in requests:
            ids = np.array([request["prompt"]])
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            for item in session.get_inputs():
                if item.name.startswith("past"):
                    feeds[item.name] = np.zeros((1, 2, 0, 16), np.float32)  # heads, length, head
            got = session.run(["logits"], feeds)[0]
            with torch.no_grad():
                expected = model(input_ids=torch.tensor(ids)).logits.numpy()
            error = np.abs(got - expected).max()
            assert error < MARGIN / 10, f"{precision}: ONNX Runtime differs by {error}"
            print(f"{precision}: ONNX Runtime against PyTorch: {error:.1e}")


def make_configs() -> None:
    import yaml

    for precision in PRECISIONS:
        config = {
            "adapter": [
                {"name": name, "lora_config": f"adapters/{name}"} for name in adapter_configs()
            ],
            "use-case": [
                {
                    "name": name,
                    "adapter_names": list(strengths),
                    "adapter_alphas": list(strengths.values()),
                    "model_name": f"model_{precision}/model.onnx",
                }
                for name, strengths in USE_CASES.items()
            ],
        }
        suffix = "" if precision == "fp32" else f"_{precision}"
        text = yaml.safe_dump(config, sort_keys=False)
        (HERE / f"lora_config{suffix}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    fix_environment()
    make_models()
    make_adapters()
    make_configs()
    make_expected()
    check_graphs()
