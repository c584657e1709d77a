"""Write the AIMET encodings of the tiny Llama sample; run after ``make.py``.

Needs the packages of ``requirements.txt`` and aimet-onnx 2.42.0. int8 symmetric per-channel
weights, uint16 activations, min-max over 64 random prompts, encoding format 1.0.0.

Every use case is calibrated on a graph of its own that already holds its branches, in the form
that AIMET's PyTorch package gives a PEFT layer: ``lora_A.0 -> mul_scale -> lora_B.0 ->
add_lora_to_res``. A use case of two adapters has A and B concatenated along the rank and one
scale per rank position; a module that only one of them targets keeps that adapter's rank.
``prepare_lora_onnx`` of AIMET names the branch weights. The base branch has the names of
``model/model.onnx``: the ``base_layer`` level that a wrapper adds to node names is taken out.

What is made:

- ``use_case_graphs/<use case>.onnx``: the graph that the use case is calibrated on, as it is before
  AIMET adds its quantizers, weights inside: what the vendor's flow hands over beside the base. The
  scale of a rank is lora_alpha / r (the root of r for rsLoRA) times the use case's strength.
- ``encodings/base.encodings``: the base graph.
- ``encodings/<use case>.encodings``: base tensors loaded from ``base.encodings`` and frozen, the
  outputs of the final Adds calibrated with the branches at zero and frozen, then the branch
  tensors calibrated. ``quant_updatable/<use case>.txt``: the branch tensors.
- ``encodings_all/<use case>.encodings``: everything calibrated with the branches active.
  ``quant_updatable_all/<use case>.txt``: the branch tensors, the outputs of the final Adds, and
  every other tensor whose encoding differs from the base's.

AIMET makes the second operand of an attention MatMul symmetric. With a branch on v_proj this rule
reaches the Add and not the base node, so the base's settings are loaded in both flows: a tensor
keeps its symmetry over all use cases.
"""

import json
import logging
import shutil
import tempfile
from pathlib import Path

from net import HERE, USE_CASES, export, fix_environment, peft_model, prompts


def with_branches(strengths: dict[str, float]):
    """Return the base model with the adapters' branches as modules, ready for export."""
    import torch
    from peft.tuners.lora import LoraLayer

    class Add(torch.nn.Module):
        def forward(self, left, right):
            return left + right

    class Multiply(torch.nn.Module):
        def forward(self, left, right):
            return left * right

    class Branch(torch.nn.Module):
        """base(x) + B (scale * (A x)); scale [rank]."""

        def __init__(self, layer: LoraLayer):
            super().__init__()
            names = [name for name in strengths if name in layer.lora_A]
            a = torch.cat([layer.lora_A[name].weight.data for name in names])
            b = torch.cat([layer.lora_B[name].weight.data for name in names], dim=1)
            scale = torch.cat(
                [
                    torch.full((layer.r[name],), layer.scaling[name] * strengths[name])
                    for name in names
                ]
            )
            self.base_layer = layer.base_layer
            self.lora_A = torch.nn.ModuleList([linear(a)])
            self.lora_B = torch.nn.ModuleList([linear(b)])
            self.scaling = torch.nn.Parameter(scale, requires_grad=False)
            self.mul_scale, self.add_lora_to_res = Multiply(), Add()

        def forward(self, x):
            low = self.mul_scale(self.lora_A[0](x), self.scaling)
            return self.add_lora_to_res(self.base_layer(x), self.lora_B[0](low))

    def linear(weight):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.contiguous()
        return layer

    llama = peft_model(strengths).base_model.model
    for name, module in list(llama.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(llama.get_submodule(parent), child, Branch(module))
    return llama.eval()


def use_case_graph(use_case: str, work: Path):
    """Return the ONNX model of one use case and AIMET's record of its branch tensors."""
    import onnx
    from aimet_onnx.experimental.lora import prepare_lora_onnx

    export(with_branches(USE_CASES[use_case]), work / "exported.onnx")
    targets = {"target_modules": ["q_proj"]}  # only used for a warning about missing modules
    _, lora = prepare_lora_onnx(work / "exported.onnx", targets, work / "prepared.onnx")
    model = onnx.load(str(work / "prepared.onnx"))
    for node in model.graph.node:
        node.name = node.name.replace("/base_layer/", "/")
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = base_name(name)
    for tensor in model.graph.initializer:
        tensor.name = base_name(tensor.name)
    del model.graph.value_info[:]
    drop_dead(model.graph)
    check_logits(model, use_case)
    return model, lora


def check_logits(model, use_case: str) -> None:
    """The graph with branches gives the logits that PEFT gives."""
    import numpy as np
    import onnxruntime
    from safetensors.numpy import load_file

    session = onnxruntime.InferenceSession(model.SerializeToString())
    input_ids = load_file(HERE / "reference" / "inputs.safetensors")["input_ids"]
    expected = load_file(HERE / "reference" / "logits.safetensors")[use_case]
    for row, logits in zip(input_ids, expected, strict=True):
        (got,) = session.run(None, {"input_ids": row[None]})
        np.testing.assert_allclose(got[0], logits, rtol=0, atol=2e-5)


def drop_dead(graph) -> None:
    """Remove the shared scales that ``prepare_lora_onnx`` replaced and their readers."""
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for node in [n for n in graph.node if n.op_type in ("Identity", "Constant")]:
        if node.output[0] not in used:
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def base_name(name: str) -> str:
    return name.replace("/base_layer/", "/").replace(".base_layer.", ".")


def feeds():
    return [{"input_ids": row[None].numpy()} for row in prompts(64, seed=7)]


def simulate(model):
    from aimet_onnx.quantsim import QuantizationSimModel

    return QuantizationSimModel(
        model, param_type="int8", activation_type="int16", providers=["CPUExecutionProvider"]
    )


def encodings_of(sim, work: Path) -> dict:
    """What AIMET exports for ``sim``, format 1.0.0."""
    sim.export(str(work), "sim", export_model=False, encoding_version="1.0.0")
    return json.loads((work / "sim.encodings").read_text(encoding="utf-8"))


def by_name(encodings: dict) -> dict[str, dict]:
    sections = ("activation_encodings", "param_encodings")
    return {entry["name"]: entry for section in sections for entry in encodings[section]}


def calibrate_base(work: Path) -> dict:
    import onnx

    sim = simulate(onnx.load(str(HERE / "model" / "model.onnx")))
    sim.compute_encodings(feeds())
    return encodings_of(sim, work)


def load_base(sim, base: dict, *, frozen: bool) -> None:
    """Give the base tensors of ``sim`` the base's settings; if ``frozen``, its grids too."""
    from aimet_onnx.quantsim import load_encodings_to_sim

    load_encodings_to_sim(
        sim, base, strict=False, allow_overwrite=not frozen, disable_missing_quantizers=False
    )


def calibrate_all(use_case: str, base: dict, work: Path) -> tuple[dict, list[str]]:
    """Calibrate every tensor with the branches active."""
    from aimet_onnx.experimental.lora import set_lora_bitwidth

    model, lora = use_case_graph(use_case, work)
    sim = simulate(model)
    load_base(sim, base, frozen=False)
    set_lora_bitwidth(sim, lora, "int8", "int16")
    sim.compute_encodings(feeds())
    return encodings_of(sim, work), [*lora["params"], *lora["activations"]]


def calibrate_frozen(use_case: str, base: dict, work: Path) -> tuple[dict, list[str]]:
    """Freeze base and Adds with the branches at zero, then calibrate the branches."""
    import numpy as np
    from aimet_onnx.experimental.lora import (
        disable_lora_quantizers,
        enable_lora_calibration,
        freeze_base_model,
    )
    from onnx import numpy_helper

    model, lora = use_case_graph(use_case, work)
    trained = {
        tensor.name: numpy_helper.to_array(tensor).copy()
        for tensor in model.graph.initializer
        if tensor.name in lora["params"]
    }

    def write_branches(sim, values):
        for tensor in sim.model.model.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
        sim._rebuild_session()

    sim = simulate(model)
    load_base(sim, base, frozen=True)
    disable_lora_quantizers(sim, lora)
    write_branches(sim, {name: np.zeros_like(value) for name, value in trained.items()})
    sim.compute_encodings(feeds())
    freeze_base_model(sim, lora)
    enable_lora_calibration(sim, lora, "int8", "int16")
    write_branches(sim, trained)
    sim.compute_encodings(feeds())
    return encodings_of(sim, work), [*lora["params"], *lora["activations"]]


def write(folder: str, name: str, encodings: dict, updatable: list[str] | None = None) -> None:
    (HERE / folder).mkdir(exist_ok=True)
    text = json.dumps(encodings, indent=1) + "\n"
    (HERE / folder / f"{name}.encodings").write_text(text, encoding="utf-8")
    if updatable is not None:
        target = HERE / folder.replace("encodings", "quant_updatable")
        target.mkdir(exist_ok=True)
        lines = "".join(f"{tensor}\n" for tensor in sorted(updatable))
        (target / f"{name}.txt").write_text(lines, encoding="utf-8")


def differing(encodings: dict, base: dict) -> list[str]:
    """Tensors that ``base`` lacks or has another encoding for."""
    reference = by_name(base)
    return [name for name, entry in by_name(encodings).items() if entry != reference.get(name)]


def check_frozen(encodings: dict, base: dict, branches: list[str]) -> None:
    """Only branch tensors may be new or changed; an Add's output has its base node's grid."""
    known, entries = by_name(base), by_name(encodings)
    assert set(branches) <= set(entries)
    for name in set(differing(encodings, base)) - set(branches):
        twin = name.replace("/add_lora_to_res/Add_output_0", "/MatMul_output_0")
        assert {**entries[name], "name": twin} == known[twin], f"{name} is not frozen"


def save_graph(use_case: str, work: Path) -> None:
    """Write the use case's graph; the names in its encodings are the graph's own."""
    import onnx

    model, _ = use_case_graph(use_case, work)
    onnx.checker.check_model(model, full_check=True)
    (HERE / "use_case_graphs").mkdir(exist_ok=True)
    onnx.save(model, str(HERE / "use_case_graphs" / f"{use_case}.onnx"))


def main() -> None:
    shutil.rmtree(HERE / "use_case_graphs", ignore_errors=True)
    for kind in ("encodings", "quant_updatable"):
        for suffix in ("", "_all"):
            shutil.rmtree(HERE / (kind + suffix), ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        base = calibrate_base(work)
        write("encodings", "base", base)
        for name, strengths in USE_CASES.items():
            if not strengths:
                continue
            save_graph(name, work)
            encodings, branches = calibrate_frozen(name, base, work)
            check_frozen(encodings, base, branches)
            write("encodings", name, encodings, branches)

            encodings, branches = calibrate_all(name, base, work)
            updatable = differing(encodings, base)
            write("encodings_all", name, encodings, updatable)
            moved = set(updatable) & set(by_name(base))
            print(f"{name}: {len(branches)} branch tensors, {len(moved)} base tensors moved")


if __name__ == "__main__":
    fix_environment()
    logging.disable(logging.WARNING)
    main()
