"""Write the tiny Llama sample: ``model/``, ``adapters/``, ``reference/`` and the JSON and YAML.

Needs the packages of ``requirements.txt`` (without AIMET). Run ``python make.py``, then
``python make_encodings.py`` for the AIMET encodings. The same bytes come out of every run.

What is made:

- ``model/model.onnx`` + ``model/model.data``: the float32 base graph, TorchScript node names.
- ``adapters/tone``: rank 4, alpha 8, q_proj and v_proj.
- ``adapters/legal``: rank 8, alpha 16, rsLoRA, all seven linears of a layer.
- ``adapters/style``: rank 6 (3 in layer 0's down_proj), alpha 6 (12 in o_proj), bfloat16.
- ``reference/inputs.safetensors``: ``input_ids`` int64 [2, 16], two prompts, to be run one by one.
- ``reference/logits.safetensors``: PEFT's logits [2, 16, 256] per use case, unquantized float32.
- ``attach_points.json``: module path -> ONNX node names, for every module of the graph.
- ``adapter_params/*.json``: what the vendor's flow tells of an adapter whose weights are in graphs:
  rank, alpha, target modules. It cannot tell rsLoRA (``legal``); patterns take several (``style``).
- ``lora_config.yaml``, ``lora_config_all.yaml``: the use cases, with the encodings of the
  frozen base (mode ``adapter_only``) and of a full recalibration (mode ``all``).
- ``lora_config_exported.yaml``, ``lora_config_exported_all.yaml``: the same use cases, each from a
  graph of its own that ``make_encodings.py`` writes, and from ``adapter_params``.
"""

import json
import shutil

from net import (
    HERE,
    USE_CASES,
    base_model,
    export,
    fix_environment,
    module_path,
    peft_model,
    prompts,
)

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Adapter -> its descriptions: file, rank, alpha and target modules of each. The first is the
# adapter's own; others tell of modules that differ.
PARAMS = {
    "tone": [("tone", 4, 8, ["q_proj", "v_proj"])],
    "legal": [("legal", 8, 16, LINEARS)],
    "style": [
        ("style", 6, 6, ["down_proj"]),
        ("style_o_proj", 6, 12, ["o_proj"]),
        ("style_layer_0", 3, 6, ["layers.0.mlp.down_proj"]),
    ],
}


def make_model() -> None:
    import onnx

    folder = HERE / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "model.onnx"
    export(base_model(), path)
    onnx.save(
        onnx.load(str(path)),
        str(path),
        save_as_external_data=True,
        location="model.data",
        size_threshold=0,
    )
    onnx.checker.check_model(str(path), full_check=True)


def make_adapters() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    shutil.rmtree(HERE / "adapters", ignore_errors=True)
    cases = {
        "tone": (
            LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
            0.04,
            torch.float32,
        ),
        "legal": (
            LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=LINEARS),
            0.007,
            torch.float32,
        ),
        "style": (
            LoraConfig(
                r=6,
                lora_alpha=6,
                target_modules=["o_proj", "down_proj"],
                rank_pattern={"layers.0.mlp.down_proj": 3},
                alpha_pattern={"o_proj": 12},
            ),
            0.04,
            torch.bfloat16,
        ),
    }
    for seed, (name, (config, spread, dtype)) in enumerate(cases.items(), start=1):
        config.task_type = "CAUSAL_LM"
        model = get_peft_model(base_model(), config, autocast_adapter_dtype=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, weight in sorted(model.named_parameters()):
                if "lora_" in key:
                    std = weight.shape[1] ** -0.5 if "lora_A" in key else spread
                    weight.copy_(std * torch.randn(weight.shape, generator=generator))
                    weight.data = weight.data.to(dtype)
        folder = HERE / "adapters" / name
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink()


def reference_logits(use_case: str, input_ids):
    """PEFT's logits [prompts, 16, 256] of one use case."""
    import torch

    def run(model):
        with torch.no_grad():
            return torch.cat([model(input_ids=row[None]).logits for row in input_ids])

    strengths = USE_CASES[use_case]
    if not strengths:
        return run(base_model())
    model = peft_model(strengths)
    if len(strengths) == 1:
        return run(model)
    # Two ways that must agree: both adapters active with scaled strengths, and PEFT's cat.
    # cat is wrong by sqrt(rank) when it inherits use_rslora, so the flag of the copy is cleared.
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, strength in strengths.items():
                if name in module.scaling:
                    module.set_scale(name, strength)
    model.base_model.set_adapter(list(strengths))
    summed = run(model)

    model = peft_model(strengths)
    for config in model.peft_config.values():
        config.use_rslora = False
    model.add_weighted_adapter(
        list(strengths), list(strengths.values()), "joined", combination_type="cat"
    )
    model.set_adapter("joined")
    gap = (run(model) - summed).abs().max().item()
    assert gap < 1e-5, f"PEFT's two ways of joining differ by {gap}"
    return summed


def make_reference() -> None:
    import onnxruntime
    from safetensors.torch import save_file

    folder = HERE / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    input_ids = prompts(2, seed=99)
    logits = {name: reference_logits(name, input_ids) for name in USE_CASES}
    save_file({"input_ids": input_ids}, str(folder / "inputs.safetensors"))
    save_file(
        {name: value.contiguous() for name, value in logits.items()},
        str(folder / "logits.safetensors"),
    )

    session = onnxruntime.InferenceSession(str(HERE / "model" / "model.onnx"))
    for row, expected in zip(input_ids, logits["base"], strict=True):
        (got,) = session.run(None, {"input_ids": row[None].numpy()})
        error = abs(got[0] - expected.numpy()).max()
        assert error < 1e-5, f"ONNX Runtime differs from PyTorch by {error}"
        print(f"ONNX Runtime against PyTorch: {error:.1e}")
    base = logits["base"]
    for name, value in logits.items():
        moved = ((value - base).norm() / base.norm()).item()
        print(f"{name}: logits moved by {moved:.1%}")


def make_attach_points() -> None:
    import onnx

    graph = onnx.load(str(HERE / "model" / "model.onnx"), load_external_data=False).graph
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type != "Constant" and module_path(node.name):
            nodes.setdefault(module_path(node.name), []).append(node.name)
    text = json.dumps(nodes, indent=2) + "\n"
    (HERE / "attach_points.json").write_text(text, encoding="utf-8")


def make_adapter_params() -> None:
    folder = HERE / "adapter_params"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, descriptions in PARAMS.items():
        for file, rank, alpha, targets in descriptions:
            content = {"name": name, "rank": rank, "alpha": alpha, "target_modules": targets}
            text = json.dumps(content, indent=2) + "\n"
            (folder / f"{file}.json").write_text(text, encoding="utf-8")


def make_configs() -> None:
    for suffix in ("", "_all"):
        checkpoints = {name: f"adapters/{name}" for name in PARAMS}
        models = dict.fromkeys(USE_CASES, "model/model.onnx")
        write_config(f"lora_config{suffix}", suffix, checkpoints, models)

        described = {
            name: [f"adapter_params/{file}.json" for file, *_ in descriptions]
            for name, descriptions in PARAMS.items()
        }
        described = {n: files if len(files) > 1 else files[0] for n, files in described.items()}
        own = {name: f"use_case_graphs/{name}.onnx" for name in USE_CASES if USE_CASES[name]}
        write_config(f"lora_config_exported{suffix}", suffix, described, {**models, **own})


def write_config(file: str, suffix: str, adapters: dict, models: dict[str, str]) -> None:
    """Write one YAML: adapter -> its ``lora_config``, use case -> its graph."""
    import yaml

    config = {
        "adapter": [{"name": name, "lora_config": adapters[name]} for name in PARAMS],
        "attach_point_onnx_mapping": "attach_points.json",
        "use-case": [],
    }
    for name, strengths in USE_CASES.items():
        entry = {
            "name": name,
            "adapter_names": list(strengths),
            "adapter_alphas": list(strengths.values()),
            "model_name": models[name],
            "quant_overrides": f"encodings{suffix}/{name}.encodings",
        }
        if strengths:
            entry["quant_updatable_tensors"] = f"quant_updatable{suffix}/{name}.txt"
        config["use-case"].append(entry)
    # The base is calibrated once; all configurations read the same file.
    config["use-case"][0]["quant_overrides"] = "encodings/base.encodings"
    text = yaml.safe_dump(config, sort_keys=False)
    (HERE / f"{file}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    fix_environment()
    make_model()
    make_adapters()
    make_reference()
    make_attach_points()
    make_adapter_params()
    make_configs()
