"""What `lower` writes, loaded by PEFT itself: the same outputs as the adapter that it was made of.

Both are float32 sums of the same numbers in another order, so they differ by rounding that depends
on how a model amplifies it. PEFT shows how much: with the adapter merged into W, its own output
moves by `noise` (0 where it cannot merge, or where layers share W and merging is no equal). Allowed
is

    max|y - y_ref|  <=  4 * noise  +  32 * 2**-24 * max|y_ref|

as in test_peft_live.py.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.lower import lower_adapter
from tests.adapters.fixture_base import KINDS

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

Array = NDArray[Any]

CASES = [
    "adalora_conv2d",
    "adalora_gpt2",
    "adalora_linear",
    "beft",
    "beft_qwen",
    "deft_qr",
    "delora_patterns",
    "gralora_hybrid",
    "hra_conv",
    "hra_linear",
    "loha_conv1d",
    "loha_conv2d",
    "loha_conv2d_effective",
    "loha_conv_grouped",
    "loha_linear",
    "lokr_conv2d_tucker",
    "lokr_conv_grouped",
    "lokr_linear",
    "lora_bf16",
    "lora_bias",
    "lora_bias_all",
    "lora_bias_only",
    "lora_conv2d",
    "lora_conv_grouped",
    "lora_embed_tokens",
    "lora_embedding",
    "lora_embedding_table",
    "lora_ensure_weight_tying",
    "lora_gpt2",
    "lora_kasa",
    "lora_layer_replication",
    "lora_lm_head_table",
    "lora_modules_to_save",
    "lora_norms_to_save",
    "lora_patterns",
    "lora_pissa",
    "lora_rslora",
    "lora_trainable_tokens",
    "lora_trainable_tokens_tied",
    "miss_std",
    "osf_rank",
    "poly_task2",
    "randlora_saved",
    "unilora_saved",
    "vblora_full",
    "vera_saved",
]

# scaled and dense kinds, on every form of module, with and without biases of the base
APPROXIMATED = [
    "boft_conv",
    "glora_lora",
    "glora_vector",
    "hira_embedding",
    "ia3_bias",
    "ia3_conv",
    "ia3_conv_grouped",
    "ia3_conv_grouped_feedforward",
    "ia3_feedforward",
    "ia3_gpt2",
    "ia3_out",
    "lora_dora",
    "lora_dora_bias",
    "lora_dora_conv2d",
    "lora_dora_embedding",
    "oft_default",
    "road_bias",
    "supertuning_lora",
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch: Any = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.set_num_threads(1)


def facts_of(case: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((KINDS / "cases.json").read_text("utf-8"))[case]
    return facts


def loaded(base: str, folder: Path) -> Any:
    """The adapter on a fresh base; nothing that the file does not hold may come out by luck."""
    import torch
    from peft import PeftModel

    torch.manual_seed(99)
    source = "llama" if base == "llama_replicated" else base
    return PeftModel.from_pretrained(bases().BUILDERS[source](), str(folder)).eval()


def bases() -> Any:
    return import_module("tests.fixtures.kinds_bases")


def answer(model: Any, base: str, **forward: Any) -> Array:
    import torch

    value = bases().model_input(base)
    with torch.no_grad():
        if base in bases().LANGUAGE_MODELS:
            return np.ascontiguousarray(model(input_ids=value, **forward).logits.numpy())
        return np.ascontiguousarray(model(value, **forward).numpy())


def merged_answer(model: Any, base: str) -> Array | None:
    """The output with the adapter merged into W; None where PEFT cannot."""
    try:
        model.base_model.merge_adapter()
    except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError):
        return None
    return answer(model, base)


def compare(case: str, out: Path, **forward: Any) -> None:
    base = facts_of(case)["base"]
    reference = loaded(base, KINDS / case)
    expected = answer(reference, base, **forward)
    is_shared = base in ("llama_replicated", "llama_tied")
    merged = None if forward or is_shared else merged_answer(reference, base)
    noise = 0.0 if merged is None else float(np.abs(merged - expected).max())
    got = answer(loaded(base, out), base)
    bound = 4 * noise + 32 * 2.0**-24 * float(np.abs(expected).max())
    assert np.abs(got - expected).max() <= bound
    plain = answer(bases().BUILDERS["llama" if "replicated" in base else base](), base)
    # the bound is far below what the adapter does
    assert np.abs(expected - plain).max() > 100 * bound


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same_with_the_lowered_adapter(case: str, tmp_path: Path) -> None:
    import torch

    facts = facts_of(case)
    # a checkpoint does not tell the groups of a convolution
    file = "model.onnx" if facts["base"] == "groupnet" else "weights.safetensors"
    base = KINDS / "bases" / facts["base"] / file
    is_replicated = facts["base"] == "llama_replicated"
    task = facts.get("task_id")
    lower_adapter(KINDS / case, tmp_path / "out", base=None if is_replicated else base, task=task)
    forward = {} if task is None else {"task_ids": torch.tensor([task, task])}
    compare(case, tmp_path / "out", **forward)


@pytest.mark.parametrize("case", APPROXIMATED)
def test_peft_computes_the_same_with_an_approximation_of_full_rank(
    case: str, tmp_path: Path
) -> None:
    base = KINDS / "bases" / facts_of(case)["base"] / "model.onnx"
    lower_adapter(KINDS / case, tmp_path / "out", base=base, approximate_rank=1000, max_error=1e-9)
    compare(case, tmp_path / "out")


def test_peft_loads_every_tensor_that_was_written(tmp_path: Path) -> None:
    """A key that PEFT does not expect would be left out without a word."""
    from safetensors.numpy import load_file

    for case in ("lora_patterns", "lora_bias_all", "lora_trainable_tokens", "lora_modules_to_save"):
        out = tmp_path / case
        lower_adapter(KINDS / case, out)
        model = loaded(facts_of(case)["base"], out)
        again = tmp_path / f"{case}_again"
        model.save_pretrained(str(again), save_embedding_layers=False)
        ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (out, again))
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])


@pytest.mark.parametrize("case", ["loha_linear", "lora_patterns", "adalora_gpt2"])
def test_transformers_itself_loads_it(case: str, tmp_path: Path) -> None:
    """Without a PeftModel, in the way that a pipeline of transformers takes adapters."""
    base = facts_of(case)["base"]
    checkpoint = KINDS / "bases" / base / "weights.safetensors"
    lower_adapter(KINDS / case, tmp_path / "out", base=checkpoint)
    model = bases().BUILDERS[base]()
    model.load_adapter(str(tmp_path / "out"))
    got = answer(model.eval(), base)
    expected = answer(loaded(base, KINDS / case), base)
    # the same sums in float32 in another order, as above and without a merge
    assert np.abs(got - expected).max() <= 32 * 2.0**-24 * np.abs(expected).max()
